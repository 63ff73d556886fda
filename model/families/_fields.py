"""Reading a config.json: every field that can change a result is honoured by its family or refused by name.

Decides which fields are harmless to all families. Knows nothing of tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec

from model.config import Activation

# What PretrainedConfig writes, and what older writers left, without any effect on a decoder's logits.
HARMLESS_BY_REASON: Mapping[str, str] = {
    "names and versions": """
        _name_or_path architectures auto_map dtype model_type tokenizer_class torch_dtype transformers_version
        transformers.js_config unsloth_fixed unsloth_version
    """,
    "training": """
        activation_dropout attention_dropout attention_probs_dropout_prob attn_pdrop classifier_dropout
        dropout embd_pdrop embedding_dropout gradient_checkpointing hidden_dropout hidden_dropout_prob
        init_std initializer_factor initializer_range layerdrop
        output_router_logits resid_pdrop residual_dropout router_aux_loss_coef router_jitter_noise
        tf_legacy_loss use_bfloat16
    """,
    "how transformers computes and answers": """
        _attn_implementation _attn_implementation_autoset attn_implementation cache_implementation
        chunk_size_feed_forward output_attentions output_hidden_states output_scores pretraining_tp
        return_dict return_dict_in_generate torchscript use_cache
    """,
    "tokens: what ends an answer is the loader's to read, the rest the tokenizer's": """
        bos_token_id cls_token_id decoder_start_token_id eos_token_id forced_bos_token_id
        forced_eos_token_id mask_token_id model_max_length pad_token_id prefix sep_token_id unk_token_id
    """,
    "heads that no language model has": """
        _num_labels finetuning_task id2label label2id num_labels problem_type summary_activation
        summary_first_dropout summary_proj_to_labels summary_type summary_use_proj task_specific_params
    """,
    "defaults of sampling, which a server reads from generation_config.json, or here if there is none": """
        bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping
        encoder_no_repeat_ngram_size exponential_decay_length_penalty length_penalty max_length min_length
        no_repeat_ngram_size num_beam_groups num_beams num_return_sequences remove_invalid_values
        repetition_penalty suppress_tokens temperature top_k top_p typical_p
    """,
    "how the weights are stored, which the loader reads": "quantization_config",
}
HARMLESS = frozenset(" ".join(HARMLESS_BY_REASON.values()).split())

# What no decoder of ours has: absent, null, or this.
FIXED: Mapping[str, object] = {
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
}

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python": "gelu",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


# A bound for what is laid out in memory before any size is compared with the weights.
NumLayers = Annotated[int, msgspec.Meta(le=10_000)]


class ConfigJson(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that a family honours. What has a default may be left out, as `transformers` leaves it."""


T = TypeVar("T", bound=ConfigJson)


def read(
    config: Mapping[str, Any],
    kind: type[T],
    fixed: Mapping[str, object],
    harmless: frozenset[str] = frozenset(),
) -> T:
    """A config.json as its family's fields.

    What nobody knows may be null or false: it asks for nothing. fixed: fields that must be absent, null or
    exactly this. harmless: those that change nothing in this family. Raises `ValueError` naming the field
    that is unknown, missing or of another value.
    """
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    fixed = {**FIXED, **fixed}
    config = _taken_apart(config, known)
    for name, value in config.items():
        if name in known or name in HARMLESS or name in harmless or value is None:
            continue
        if name not in fixed:
            if value is False:  # what this family does not have, and is not asked for
                continue
            raise ValueError(f"{name} is not a field that is known for this model_type")
        if value != fixed[name]:
            raise ValueError(f"{name} is {str(value)[:100]}, must be {fixed[name]}: no other is supported")
    return msgspec.convert({name: config[name] for name in known if name in config}, kind)


def _taken_apart(config: Mapping[str, Any], known: set[str]) -> Mapping[str, Any]:
    """As version 4 of transformers wrote it, where version 5 gathers what turns positions."""
    gathered = config.get("rope_parameters")
    if gathered is None:
        return config
    found: dict[str, Any] = {}
    if isinstance(gathered, Mapping) and "full_attention" in gathered:  # Gemma 3
        local = {"rope_type": "default", **(gathered.get("sliding_attention") or {})}
        found["rope_local_base_freq"] = local.pop("rope_theta", None)
        if local != {"rope_type": "default"}:
            raise ValueError(
                f"rope_parameters has {str(local)[:100]} for windows: no scaling is supported there"
            )
        gathered = gathered["full_attention"]
    if not isinstance(gathered, Mapping):
        raise ValueError(f"rope_parameters is {str(gathered)[:100]}, must be an object")
    scaling = dict(gathered)
    for newer, older in (("rope_theta", "rotary_emb_base"), ("partial_rotary_factor", "rotary_pct")):
        found[older if older in known else newer] = scaling.pop(newer, None)
    found = {name: value for name, value in found.items() if value is not None}
    found["rope_scaling"] = scaling if scaling.get("rope_type", "default") != "default" else None
    for name, value in found.items():
        if config.get(name) not in (None, value):
            raise ValueError(
                f"{name} is {str(config[name])[:100]}, but {str(value)[:100]} in rope_parameters"
            )
    return {name: value for name, value in config.items() if name != "rope_parameters"} | found


def one_of(otherwise: int | None = None, **names: int | None) -> int:
    """The one value that a field has under several names. Raises `ValueError` naming them."""
    given = {name: value for name, value in names.items() if value is not None}
    if len(set(given.values())) > 1:
        raise ValueError(" but ".join(f"{name} is {value}" for name, value in given.items()))
    if not given and otherwise is None:
        raise ValueError(f"there is no {next(iter(names))}")
    return next(iter(given.values()), otherwise or 0)


def activation(field: str, name: str) -> Activation:
    """Ours of the same formula. Raises `ValueError` naming the field."""
    if name not in ACTIVATIONS:
        raise ValueError(f"{field} is {name!r}, must be one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
