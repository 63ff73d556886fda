"""Configurations of the families that came before Llama: each has its own names for its fields."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.model.families.drawing import (
    ACTIVATIONS,
    ALL_KINDS,
    EPSILONS,
    MAX_POSITIONS,
    THETAS,
    TIED,
    Draw,
    Fields,
    fields,
    heads,
    llama_like,
    partial,
    rope_scaling,
)


def openai_gpt(draw: Draw) -> Fields:
    num_heads, _, head_dim = heads(draw, is_grouped=False)
    return {
        "vocab_size": draw(st.integers(20, 90)),
        "n_positions": MAX_POSITIONS,
        "n_embd": num_heads * head_dim,
        "n_layer": draw(st.integers(1, 3)),
        "n_head": num_heads,
        **fields(draw, afn=st.sampled_from(["gelu", "relu", "silu"]), layer_norm_epsilon=EPSILONS, **TIED),
    }


def gpt2(draw: Draw) -> Fields:
    c = openai_gpt(draw)
    del c["afn"]
    return c | fields(
        draw,
        n_inner=st.none() | st.integers(3, 40),
        activation_function=ACTIVATIONS,
        scale_attn_weights=st.booleans(),
        reorder_and_upcast_attn=st.just(False),
    )


def gptj(draw: Draw) -> Fields:
    c = gpt2(draw)
    del c["scale_attn_weights"], c["reorder_and_upcast_attn"]
    head_dim = c["n_embd"] // c["n_head"]
    return c | {"rotary_dim": 2 * draw(st.integers(1, head_dim // 2))}


def opt(draw: Draw) -> Fields:
    num_heads, _, head_dim = heads(draw, is_grouped=False)
    return {
        "hidden_size": num_heads * head_dim,
        "num_attention_heads": num_heads,
        "max_position_embeddings": MAX_POSITIONS,
        **fields(
            draw,
            vocab_size=st.integers(20, 90),
            num_hidden_layers=st.integers(1, 3),
            ffn_dim=st.integers(3, 40),
            do_layer_norm_before=st.booleans(),
            word_embed_proj_dim=st.sampled_from([num_heads * head_dim, 10]),
            activation_function=ACTIVATIONS,
            enable_bias=st.booleans(),
            **TIED,
        ),
    }


def gpt_neox(draw: Draw) -> Fields:
    c = llama_like(draw, kinds=())
    del c["num_key_value_heads"]
    head_dim = c["hidden_size"] // c["num_attention_heads"]
    c["rotary_emb_base"] = c.pop("rope_theta")
    partial(draw, c, "rotary_pct", head_dim)
    pairs = int(head_dim * c["rotary_pct"]) // 2
    c["rope_scaling"] = rope_scaling(draw, pairs, ALL_KINDS)
    return c | fields(
        draw,
        hidden_act=ACTIVATIONS,
        layer_norm_eps=EPSILONS,
        use_parallel_residual=st.booleans(),
        attention_bias=st.booleans(),
    )


def bloom(draw: Draw) -> Fields:
    num_heads, head_dim = draw(st.integers(1, 9)), 2 * draw(st.integers(2, 6))
    return {
        "hidden_size": num_heads * head_dim,
        "n_head": num_heads,
        "n_layer": draw(st.integers(1, 3)),
        "vocab_size": draw(st.integers(20, 90)),
        **fields(draw, layer_norm_epsilon=EPSILONS, **TIED),
    }


def falcon(draw: Draw) -> Fields:
    is_new = draw(st.booleans())
    is_alibi = draw(st.booleans())
    num_heads, num_kv_heads, head_dim = heads(draw)
    c = {
        "hidden_size": num_heads * head_dim,
        "num_attention_heads": num_heads,
        # Without the new architecture `transformers` fails on any other number, or does not read it.
        "num_kv_heads": num_kv_heads if is_new else num_heads,
        "max_position_embeddings": MAX_POSITIONS,
        "new_decoder_architecture": is_new,
        "parallel_attn": is_new or draw(st.booleans()),
        "num_ln_in_parallel_attn": draw(st.sampled_from([None, 1, 2])) if is_new else None,
        "alibi": is_alibi,
        "rope_theta": draw(THETAS),
        **fields(
            draw,
            vocab_size=st.integers(20, 90),
            num_hidden_layers=st.integers(1, 3),
            ffn_hidden_size=st.none() | st.integers(3, 40),
            multi_query=st.booleans(),
            bias=st.booleans(),
            layer_norm_epsilon=EPSILONS,
            activation=ACTIVATIONS,
            **TIED,
        ),
    }
    if not is_alibi and (scaling := rope_scaling(draw, head_dim // 2, ALL_KINDS)):
        c["rope_scaling"] = scaling
    return c
