"""Tiny checkpoints of every family, as `transformers` writes them: configurations drawn, weights random."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import no_init_weights

from tests.drawn import drawn
from tests.model.families import gpts, llamas
from tests.model.families.drawing import Draw, Fields, traits

FAMILIES: dict[str, Callable[[Draw], Fields]] = {
    "openai-gpt": gpts.openai_gpt,
    "bloom": gpts.bloom,
    "cohere": llamas.cohere,
    "cohere2": llamas.cohere2,
    "falcon": gpts.falcon,
    "gemma": llamas.gemma,
    "gemma2": llamas.gemma2,
    "gemma3": llamas.gemma3,
    "gemma3_text": llamas.gemma3_text,
    "gpt2": gpts.gpt2,
    "gpt_neox": gpts.gpt_neox,
    "gpt_oss": llamas.gpt_oss,
    "gptj": gpts.gptj,
    "granite": llamas.granite,
    "llama": llamas.llama,
    "mistral": llamas.mistral,
    "mixtral": llamas.mixtral,
    "olmo2": llamas.olmo2,
    "opt": gpts.opt,
    "phi": llamas.phi,
    "phi3": llamas.phi3,
    "qwen2": llamas.qwen2,
    "qwen2_moe": llamas.qwen2_moe,
    "qwen3": llamas.qwen3,
    "qwen3_moe": llamas.qwen3_moe,
    "stablelm": llamas.stablelm,
    "starcoder2": llamas.starcoder2,
}
MIN_CONFIGURATIONS = 3  # one for each dtype


def configuration(model_type: str, fields: Fields) -> Any:
    """As `transformers` has it."""
    return AutoConfig.for_model(model_type, **{"bos_token_id": 1, "eos_token_id": 2} | fields)


@st.composite
def configurations(draw: Draw, model_type: str) -> Any:
    """A configuration of this family, small."""
    return configuration(model_type, FAMILIES[model_type](draw))


def varied(model_type: str) -> list[Any]:
    """A few configurations of this family, the same each time: each trait of many draws is among them."""
    left = drawn(st.composite(FAMILIES[model_type])(), 60)
    missing = set().union(*map(traits, left))
    chosen: list[Fields] = []
    while missing or len(chosen) < MIN_CONFIGURATIONS:
        chosen.append(max(left, key=lambda fields: len(traits(fields) & missing)))
        left.remove(chosen[-1])
        missing -= traits(chosen[-1])
    return [configuration(model_type, fields) for fields in chosen]


def new_model(config: Any) -> Any:
    """The model of `transformers`, without weights yet."""
    # The plain attention, but for Falcon, where it adds ALiBi's bias twice.
    attention = "sdpa" if config.model_type == "falcon" else "eager"
    with no_init_weights():
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def random_model(config: Any, dtype: torch.dtype, seed: int) -> Any:
    """The model of `transformers`, its weights neither tiny nor alike, and each one that `dtype` has."""
    generator = torch.Generator().manual_seed(seed)
    model = new_model(config)
    for name, parameter in model.named_parameters():
        spread = 0.3 if parameter.dim() == 1 or "norm" in name else 1.5 * parameter.shape[-1] ** -0.5
        is_norm = name.endswith("weight") and ("norm" in name or "ln_" in name)
        centre = 1.0 if is_norm and "gemma" not in config.model_type else 0.0
        drawn = centre + spread * torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            parameter.copy_(drawn.to(dtype).float())
    model.tie_weights()
    return model.requires_grad_(False)


def save(model: Any, folder: Path, dtype: torch.dtype, max_shard_size: int = 5 * 10**9) -> None:
    """A folder as `transformers` writes it, its tensors in `dtype`, its files of so many bytes at most."""
    # A copy: `to` rounds the frequencies of rotary positions as well.
    copy.deepcopy(model).to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
