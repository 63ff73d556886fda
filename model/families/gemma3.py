"""Gemma 3 with eyes, of which only the text part is served: images are no part of a prompt here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from model.config import DecoderConfig
from model.families import gemma3_text
from model.families._fields import ConfigJson, read

# What belongs to the images.
_EYES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


class FIELDS(ConfigJson, frozen=True, kw_only=True):
    """config.json: the text part lies within."""

    text_config: dict[str, Any]
    tie_word_embeddings: bool = True


FIXED: dict[str, object] = {}
HARMLESS = frozenset(
    {"boi_token_index", "eoi_token_index", "image_token_index", "mm_tokens_per_image", "vision_config"}
)


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """That of the text part, tied as the whole is."""
    c = read(config, FIELDS, FIXED, HARMLESS)
    if c.text_config.get("final_logit_softcapping") is not None:
        # Of the models with eyes, `transformers` does not cap the logits.
        raise ValueError("text_config's final_logit_softcapping must be null")
    return gemma3_text.decoder_config({**c.text_config, "tie_word_embeddings": c.tie_word_embeddings})


def parameters(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """Those of the text part, under any of the prefixes that writers have used; the eyes are left out."""
    if name.startswith(_EYES):
        return
    for prefix in ("model.language_model.", "language_model.model.", "language_model."):
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            break
    yield from gemma3_text.parameters(name, tensor, config)
