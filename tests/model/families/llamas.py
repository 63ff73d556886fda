"""Configurations of Llama and of those that took its names."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.model.families.drawing import (
    ACTIVATIONS,
    ALL_KINDS,
    EPSILONS,
    MAX_POSITIONS,
    THETAS,
    WINDOWS,
    Draw,
    Fields,
    fields,
    layer_types,
    llama_like,
    partial,
    rope_scaling,
)


def llama(draw: Draw) -> Fields:
    return llama_like(
        draw,
        has_head_dim=draw(st.booleans()),
        hidden_act=ACTIVATIONS,
        rms_norm_eps=EPSILONS,
        attention_bias=st.booleans(),
        mlp_bias=st.booleans(),
    )


def mistral(draw: Draw) -> Fields:
    has_head_dim = draw(st.booleans())
    return llama_like(
        draw,
        has_head_dim=has_head_dim,
        kinds=ALL_KINDS if has_head_dim else ("linear", "llama3"),  # the others fail on head_dim's null
        hidden_act=ACTIVATIONS,
        rms_norm_eps=EPSILONS,
        sliding_window=st.none() | WINDOWS,
    )


def _sliding(draw: Draw, c: Fields) -> Fields:
    c |= fields(draw, sliding_window=WINDOWS, max_window_layers=st.integers(0, 2))
    if not draw(st.booleans()):
        return c | {"use_sliding_window": False}
    return c | {"use_sliding_window": True} | layer_types(draw, c["num_hidden_layers"])


def qwen2(draw: Draw) -> Fields:
    return _sliding(draw, llama_like(draw, hidden_act=ACTIVATIONS, rms_norm_eps=EPSILONS))


def qwen3(draw: Draw) -> Fields:
    c = llama_like(
        draw, has_head_dim=True, hidden_act=ACTIVATIONS, rms_norm_eps=EPSILONS, attention_bias=st.booleans()
    )
    return _sliding(draw, c)


def gemma(draw: Draw, **more: Any) -> Fields:
    return llama_like(
        draw, has_head_dim=True, rms_norm_eps=EPSILONS, attention_bias=st.booleans(),
        **({"hidden_act": ACTIVATIONS} | more),
    )  # fmt: skip


def gemma2(draw: Draw) -> Fields:
    c = gemma(
        draw,
        hidden_act="silu",
        hidden_activation=ACTIVATIONS,
        query_pre_attn_scalar=st.sampled_from([16, 64]),
        sliding_window=WINDOWS,
        attn_logit_softcapping=st.sampled_from([None, 2.0, 50.0]),
        final_logit_softcapping=st.sampled_from([None, 3.0, 30.0]),
    )
    del c["hidden_act"]
    return c | layer_types(draw, c["num_hidden_layers"])


def gemma3_text(draw: Draw) -> Fields:
    c = gemma2(draw)
    del c["attn_logit_softcapping"]
    c |= fields(draw, rope_local_base_freq=THETAS, sliding_window_pattern=st.integers(1, 3))
    return c | layer_types(draw, c["num_hidden_layers"])


def gemma3(draw: Draw) -> Fields:
    """The eyes are there, and see nothing."""
    eyes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = gemma3_text(draw) | {"final_logit_softcapping": None}
    return {
        "text_config": text,
        "vision_config": eyes | {"image_size": 28, "patch_size": 14},
        "mm_tokens_per_image": 4,
        "tie_word_embeddings": text["tie_word_embeddings"],
    }


def phi(draw: Draw) -> Fields:
    c = llama_like(
        draw, kinds=(), hidden_act=ACTIVATIONS, layer_norm_eps=EPSILONS, qk_layernorm=st.booleans()
    )
    head_dim = c["hidden_size"] // c["num_attention_heads"]
    partial(draw, c, "partial_rotary_factor", head_dim)
    pairs = round(head_dim * c["partial_rotary_factor"]) // 2
    if scaling := rope_scaling(draw, pairs, ALL_KINDS):
        c["rope_scaling"] = scaling
    return c


def phi3(draw: Draw) -> Fields:
    c = llama_like(
        draw, kinds=(), hidden_act=ACTIVATIONS, rms_norm_eps=EPSILONS, sliding_window=st.none() | WINDOWS
    )
    head_dim = c["hidden_size"] // c["num_attention_heads"]
    partial(draw, c, "partial_rotary_factor", head_dim)
    c["pad_token_id"] = 0
    if draw(st.booleans()):
        pairs = int(head_dim * c["partial_rotary_factor"]) // 2
        short = draw(st.lists(st.floats(1.0, 3.0), min_size=pairs, max_size=pairs))
        c["rope_scaling"] = {"type": "longrope", "short_factor": short, "long_factor": [4.0] * pairs}
        c |= {"original_max_position_embeddings": MAX_POSITIONS, "max_position_embeddings": 4 * MAX_POSITIONS}
    return c


def stablelm(draw: Draw) -> Fields:
    c = llama_like(
        draw,
        kinds=(),
        hidden_act=ACTIVATIONS,
        layer_norm_eps=EPSILONS,
        use_qkv_bias=st.booleans(),
        qk_layernorm=st.booleans(),
        use_parallel_residual=st.booleans(),
    )
    head_dim = c["hidden_size"] // c["num_attention_heads"]
    partial(draw, c, "partial_rotary_factor", head_dim)
    pairs = int(head_dim * c["partial_rotary_factor"]) // 2
    return c | {"rope_scaling": rope_scaling(draw, pairs, ALL_KINDS)}


def olmo2(draw: Draw) -> Fields:
    c = llama_like(
        draw, kinds=(), hidden_act=ACTIVATIONS, rms_norm_eps=EPSILONS, attention_bias=st.booleans()
    )
    kind = draw(st.sampled_from([None, "linear", "dynamic"]))  # `transformers` takes no other
    return c | ({"rope_scaling": {"type": kind, "factor": 2.0}} if kind else {})


def granite(draw: Draw) -> Fields:
    some = st.sampled_from([1.0, 0.3, 3.0])
    return llama_like(
        draw, hidden_act=ACTIVATIONS, rms_norm_eps=EPSILONS,
        attention_bias=st.booleans(), mlp_bias=st.booleans(),
        embedding_multiplier=some, logits_scaling=some, attention_multiplier=st.sampled_from([1.0, 0.1]),
        residual_multiplier=st.sampled_from([1.0, 0.3, 1.5]),
    )  # fmt: skip


def cohere(draw: Draw) -> Fields:
    return llama_like(
        draw, hidden_act=ACTIVATIONS, layer_norm_eps=EPSILONS, attention_bias=st.booleans(),
        use_qk_norm=st.booleans(), logit_scale=st.sampled_from([0.0625, 2.0]), pad_token_id=0,
    )  # fmt: skip


def cohere2(draw: Draw) -> Fields:
    c = cohere(draw)
    del c["use_qk_norm"]
    c |= fields(draw, sliding_window=WINDOWS, sliding_window_pattern=st.integers(1, 3))
    return c | layer_types(draw, c["num_hidden_layers"])


def starcoder2(draw: Draw) -> Fields:
    return llama_like(
        draw, hidden_act=ACTIVATIONS, norm_epsilon=EPSILONS, use_bias=st.booleans(),
        sliding_window=st.none() | WINDOWS,
    )  # fmt: skip


def mixtral(draw: Draw) -> Fields:
    num_experts = draw(st.integers(1, 6))
    return mistral(draw) | {
        "num_local_experts": num_experts,
        "num_experts_per_tok": draw(st.integers(1, num_experts)),
    }


def _qwen_experts(draw: Draw) -> Fields:
    num_experts = draw(st.integers(1, 6))
    return {
        "num_experts": num_experts,
        "num_experts_per_tok": draw(st.integers(1, num_experts)),
        **fields(
            draw,
            moe_intermediate_size=st.integers(3, 20),
            norm_topk_prob=st.booleans(),
            decoder_sparse_step=st.integers(1, 2),
            mlp_only_layers=st.lists(st.integers(0, 2), max_size=1),
        ),
    }


def qwen2_moe(draw: Draw) -> Fields:
    c = llama_like(draw, hidden_act=ACTIVATIONS, rms_norm_eps=EPSILONS, qkv_bias=st.booleans())
    c |= fields(draw, shared_expert_intermediate_size=st.integers(3, 20))
    return c | _qwen_experts(draw)


def qwen3_moe(draw: Draw) -> Fields:
    c = llama_like(
        draw, has_head_dim=True, hidden_act=ACTIVATIONS, rms_norm_eps=EPSILONS, attention_bias=st.booleans()
    )
    return c | _qwen_experts(draw)


def gpt_oss(draw: Draw) -> Fields:
    c = llama_like(draw, has_head_dim=True, rms_norm_eps=EPSILONS, sliding_window=WINDOWS)
    c.setdefault("rope_scaling", None)
    num_experts = draw(st.integers(1, 6))
    c |= {"num_local_experts": num_experts, "num_experts_per_tok": draw(st.integers(1, num_experts))}
    return c | layer_types(draw, c["num_hidden_layers"])
