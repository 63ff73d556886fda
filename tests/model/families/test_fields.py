"""Every field of a config.json is honoured, or refused by name, or known to change nothing."""

from __future__ import annotations

import functools
import json
from typing import Any

import msgspec
import pytest
import torch
from transformers import AutoConfig
from transformers.activations import ACT2FN

from model.config import DecoderConfig
from model.families import Family, family_of, known_families
from model.families._fields import ACTIVATIONS, FIXED, HARMLESS
from model.feed_forward import ACTIVATIONS as FORMULAS
from tests.drawn import drawn
from tests.model.decoders import random_ids
from tests.model.families.checkpoints import FAMILIES, configurations, new_model, random_model, varied

Json = dict[str, Any]
EACH_FAMILY = pytest.mark.parametrize("model_type", FAMILIES)


@functools.cache
def files(model_type: str, count: int = 1) -> list[Json]:
    """Files config.json of this family, with every field that `transformers` can write."""
    configs = drawn(configurations(model_type), count)
    return [json.loads(config.to_json_string(use_diff=False)) for config in configs]


def honoured(family: Family) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(family.FIELDS)}


def defaults(family: Family) -> Json:
    fields = msgspec.structs.fields(family.FIELDS)
    return {field.encode_name: field.default for field in fields if field.default is not msgspec.NODEFAULT}


def harmless(family: Family) -> frozenset[str]:
    return HARMLESS | getattr(family, "HARMLESS", frozenset())


def unusual(value: Any) -> Any:
    """Another value of the same kind; of what is absent, a number."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 2 + 1
    if isinstance(value, str):
        return {"silu": "relu", "relu": "gelu"}.get(value, "silu")
    if isinstance(value, list):
        turned = {"full_attention": "sliding_attention", "sliding_attention": "full_attention"}
        return [turned.get(entry, entry) for entry in value] if value and value[0] in turned else [0]
    return {**value, "unusual": 1} if isinstance(value, dict) else 3


def decoder_or_refusal(family: Family, config: Json) -> DecoderConfig | str:
    try:
        return family.decoder_config(config)
    except ValueError as error:
        return str(error)


def outcome(family: Family, config: Json, name: str, before: DecoderConfig) -> str:
    """What changing one field comes to."""
    present = config.get(name, defaults(family).get(name))
    after = decoder_or_refusal(family, {**config, name: unusual(present)})
    if isinstance(after, str):
        return f"refused: {after}"
    return "the same" if after == before else "another decoder"


@EACH_FAMILY
def test_every_field_does_something_or_is_refused_or_is_harmless(model_type: str) -> None:
    """In one of many configurations at least: a window's size, say, does nothing where no layer has one."""
    family = family_of(model_type)
    configs = files(model_type, 40)
    # `transformers` always spells out which layers slide; older files do not.
    configs += [{name: c[name] for name in c if name != "layer_types"} for c in configs]
    unheard = {*honoured(family), *configs[0]} - harmless(family)
    assert "vocab_size" in unheard or model_type == "gemma3"
    for name in harmless(family) & configs[0].keys():
        assert outcome(family, configs[0], name, family.decoder_config(configs[0])) == "the same", name
    for config in configs:
        if not unheard:
            break
        before = family.decoder_config(config)
        for name in sorted(unheard):
            came_to = outcome(family, config, name, before)
            if name not in honoured(family):
                assert came_to.startswith(f"refused: {name} is "), (name, came_to)
            if came_to != "the same":
                unheard.discard(name)
    assert not unheard


# What transformers reads before it builds or runs a model, or makes of the answer; gemma3's other part.
NOT_COMPARED = {
    "auto_map", "cache_implementation", "dtype", "id2label", "label2id", "model_type", "num_labels",
    "num_return_sequences", "output_attentions", "problem_type", "quantization_config", "return_dict",
    "torch_dtype", "torchscript", "vision_config",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # those of transformers
@EACH_FAMILY
def test_what_is_harmless_changes_no_logits_of_transformers(model_type: str) -> None:
    """All of it at once, whether the family's files have it or not."""
    config = varied(model_type)[0]
    model = random_model(config, torch.float32, seed=3)
    changed = json.loads(config.to_json_string(use_diff=False))
    for name in harmless(family_of(model_type)) - NOT_COMPARED:
        present = changed.get(name)
        changed[name] = 0.5 if isinstance(present, float) else unusual(present)
    other = new_model(AutoConfig.for_model(**changed))
    other.load_state_dict(model.state_dict())
    ids = torch.tensor([random_ids(30, config.get_text_config().vocab_size, seed=1)])
    with torch.inference_mode():
        torch.testing.assert_close(other(ids).logits, model(ids).logits)


def test_an_activation_is_the_one_that_transformers_has_under_its_name() -> None:
    x = torch.linspace(-6.0, 6.0, 1000)
    for name, ours in ACTIVATIONS.items():
        torch.testing.assert_close(FORMULAS[ours](x), ACT2FN[name](x), msg=name)


@EACH_FAMILY
def test_a_field_that_nobody_knows_is_refused_by_name(model_type: str) -> None:
    family, [config] = family_of(model_type), files(model_type)
    with pytest.raises(ValueError, match="num_dreams is not a field that is known for this model_type"):
        family.decoder_config({**config, "num_dreams": 2})
    for nothing in (None, False):
        assert family.decoder_config({**config, "num_dreams": nothing}) == family.decoder_config(config)


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("cohere", {"model_max_length": 8192}),
        ("gemma2", {"cache_implementation": "hybrid", "sliding_window_size": 4096}),
        ("gpt2", {"_num_labels": 1}),
        ("gpt_neox", {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}),
        ("llama", {"transformers.js_config": {"dtype": "q4"}}),
        ("mistral", {"unsloth_version": "2024.9"}),
        ("opt", {"activation_dropout": 0.0}),
        ("phi", {"_attn_implementation_autoset": True}),
        ("phi3", {"attention_bias": False}),
        ("qwen2", {"use_mrope": False}),
        ("starcoder2", {"mlp_type": "default", "norm_type": "layer_norm", "rms_norm_eps": 1e-5}),
    ],
)
def test_what_published_files_have_beside_their_fields_changes_nothing(model_type: str, fields: Json) -> None:
    """Each was seen in the config.json of a model that people have; transformers keeps and ignores it."""
    family, [config] = family_of(model_type), files(model_type)
    assert family.decoder_config({**config, **fields}) == family.decoder_config(config)


def gathered(config: Json) -> Json:
    """As version 5 of transformers writes it. One that draws no positions this way stays as it is."""
    config = dict(config)
    scaling = config.pop("rope_scaling", None) or {}
    turned = {"rope_type": scaling.get("rope_type") or scaling.get("type") or "default", **scaling}
    for newer, older in (("rope_theta", "rotary_emb_base"), ("partial_rotary_factor", "rotary_pct")):
        given = [config.pop(name) for name in (newer, older) if name in config]
        turned |= {newer: given[0]} if given else {}
    if "rope_local_base_freq" in config:
        local = {"rope_type": "default", "rope_theta": config.pop("rope_local_base_freq")}
        return {**config, "rope_parameters": {"full_attention": turned, "sliding_attention": local}}
    return {**config, "rope_parameters": turned} if "rope_theta" in turned else config


@EACH_FAMILY
def test_what_version_5_of_transformers_gathers_is_taken_apart(model_type: str) -> None:
    family = family_of(model_type)
    for config in files(model_type, 20):
        assert decoder_or_refusal(family, gathered(config)) == decoder_or_refusal(family, config)


@pytest.mark.parametrize(
    ("model_type", "turned", "message"),
    [
        ("llama", 7, "rope_parameters is 7, must be an object"),
        ("llama", {"rope_theta": 7.0}, "rope_theta is 10000.0, but 7.0 in rope_parameters"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is not a field that is known"),
        ("llama", {"rope_type": "ntk"}, "rope_scaling is of type 'ntk'"),
        (
            "gemma3_text",
            {"full_attention": {}, "sliding_attention": {"factor": 2.0}},
            "no scaling is supported",
        ),
    ],
)
def test_what_it_gathers_must_be_possible(model_type: str, turned: object, message: str) -> None:
    [config] = files(model_type)
    config |= {"rope_scaling": None, "rope_theta": 10_000.0}
    with pytest.raises(ValueError, match=message):
        family_of(model_type).decoder_config({**config, "rope_parameters": turned})


@EACH_FAMILY
def test_what_must_be_as_it_is_is_refused_by_name_if_it_is_not(model_type: str) -> None:
    family, [config] = family_of(model_type), files(model_type)
    for name, value in {**FIXED, **family.FIXED}.items():
        family.decoder_config({**config, name: value})
        with pytest.raises(ValueError, match=f"{name} is .*, must be .*: no other is supported"):
            family.decoder_config({**config, name: unusual(value)})


@EACH_FAMILY
def test_what_is_left_out_is_what_transformers_takes_it_to_be(model_type: str) -> None:
    family = family_of(model_type)
    for config in files(model_type, 4):
        for field in msgspec.structs.fields(family.FIELDS):
            without = {name: value for name, value in config.items() if name != field.encode_name}
            ours = decoder_or_refusal(family, without)
            if not isinstance(ours, str):
                completed = AutoConfig.for_model(**without).to_json_string(use_diff=False)
                assert ours == family.decoder_config(json.loads(completed)), field.encode_name


@EACH_FAMILY
def test_a_field_without_which_there_is_no_model_is_asked_for(model_type: str) -> None:
    family, [config] = family_of(model_type), files(model_type)
    for field in msgspec.structs.fields(family.FIELDS):
        if field.required:
            without = {name: value for name, value in config.items() if name != field.encode_name}
            with pytest.raises(ValueError, match=field.encode_name):
                family.decoder_config(without)


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("llama", {"rope_scaling": {"rope_type": "ntk"}}, "rope_scaling is of type 'ntk', must be one of"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling of type 'linear' has no factor"),
        (
            "llama",
            {"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3}},
            "rope_scaling of type 'linear' has no use for beta_fast",
        ),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling's factor is 0"),
        ("llama", {"rope_theta": 0}, "rope_theta is 0.0, must be above 0"),
        ("llama", {"hidden_act": "mish"}, "hidden_act is 'mish', must be one of gelu"),
        ("llama", {"num_attention_heads": 0}, "num_heads is 0, must be at least 1"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("llama", {"num_key_value_heads": 0}, "num_kv_heads is 0, must be at least 1"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved is True, must be False"),
        ("gemma", {"hidden_activation": "relu", "hidden_act": "silu"}, "hidden_activation is 'relu', but"),
        ("gemma2", {"hidden_act": "relu", "hidden_activation": "silu"}, "hidden_act is 'relu', but"),
        ("gpt_neox", {"rope_theta": 7.0}, "rope_theta is 7.0, but rotary_emb_base is"),
        ("bloom", {"num_attention_heads": 100}, "n_head is .* but num_attention_heads is 100"),
        ("mixtral", {"num_experts_per_tok": 99}, "99 experts are chosen, must be from 1 to"),
        ("mistral", {"sliding_window": 0}, "an attention window is 0, must be at least 1"),
        ("qwen3", {"layer_types": []}, "layer_types has 0 entries, must have"),
        ("gemma2", {"sliding_window": None, "layer_types": None}, "but there is no sliding_window"),
        ("granite", {"logits_scaling": 0}, "logits_scaling is 0"),
        ("gptj", {"rotary_dim": 3}, "rotary positions turn 3 elements of a head, must be even"),
        ("gpt_oss", {"swiglu_limit": 6.0}, "swiglu_limit is 6.0, must be 7.0"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention is True, must be False"),
    ],
)
def test_an_impossible_value_ends_in_a_line_that_says_so(
    model_type: str, changes: Json, message: str
) -> None:
    [config] = files(model_type)
    with pytest.raises(ValueError, match=message):
        family_of(model_type).decoder_config({**config, **changes})


def test_every_family_is_compared_with_transformers() -> None:
    assert {*FAMILIES, "verbatim"} == set(known_families())
