"""What the drawn configurations of several families share."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Draw = st.DrawFn
Fields = dict[str, Any]

MAX_POSITIONS = 160
THETAS = st.sampled_from([100.0, 10_000.0, 500_000.0])
WINDOWS = st.sampled_from([1, 7, 64, 90])
ACTIVATIONS = st.sampled_from(["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "quick_gelu"])
EPSILONS = st.sampled_from([1e-6, 1e-5, 0.1])
TIED: dict[str, st.SearchStrategy[bool]] = {"tie_word_embeddings": st.booleans()}


def fields(draw: Draw, **strategies: st.SearchStrategy[Any]) -> Fields:
    return {name: draw(strategy) for name, strategy in strategies.items()}


def heads(draw: Draw, is_grouped: bool = True) -> tuple[int, int, int]:
    """The number of query heads, of key heads, and a head's size."""
    num_kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3)) if is_grouped else 1
    return num_kv_heads * group, num_kv_heads, 2 * draw(st.integers(2, 6))


def rope_scaling(draw: Draw, pairs: int, kinds: tuple[str, ...]) -> Fields | None:
    """One of the ways to stretch a context, or none."""
    if pairs == 1:  # `transformers` divides by dim - 2
        kinds = tuple(kind for kind in kinds if kind != "dynamic")
    kind = draw(st.sampled_from([None, *kinds]))
    if kind is None:
        return None
    factor = draw(st.sampled_from([2.0, 8.0]))
    if kind == "default":
        return {"rope_type": kind}
    if kind == "llama3":
        return {
            "rope_type": kind, "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }  # fmt: skip
    if kind == "yarn":
        more: Fields = draw(
            st.sampled_from(
                [
                    {},
                    {"original_max_position_embeddings": 20},
                    {"beta_fast": 4.0, "beta_slow": 0.5, "truncate": False},
                    {"attention_factor": 1.3},
                    {"mscale": 0.7, "mscale_all_dim": 1.4},
                ]
            )
        )
        return {"rope_type": kind, "factor": factor, **more}
    if kind == "longrope":
        short = draw(st.lists(st.floats(1.0, 3.0), min_size=pairs, max_size=pairs))
        return {"rope_type": kind, "short_factor": short, "long_factor": [4.0] * pairs, "factor": factor}
    return {"rope_type": kind, "factor": factor}


ALL_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


def llama_like(
    draw: Draw, *, has_head_dim: bool = False, kinds: tuple[str, ...] = ALL_KINDS, **more: Any
) -> Fields:
    """What Llama's descendants have in common. `more`: strategies of fields, or their values."""
    num_heads, num_kv_heads, head_dim = heads(draw)
    c: Fields = {
        "vocab_size": draw(st.integers(20, 90)),
        "hidden_size": 2 * draw(st.integers(4, 20)) if has_head_dim else num_heads * head_dim,
        "intermediate_size": draw(st.integers(3, 40)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "max_position_embeddings": MAX_POSITIONS,
        "rope_theta": draw(THETAS),
        "tie_word_embeddings": draw(st.booleans()),
    }
    if has_head_dim:
        c["head_dim"] = head_dim
    for name, value in more.items():
        c[name] = draw(value) if isinstance(value, st.SearchStrategy) else value
    pairs = int(head_dim * c.get("partial_rotary_factor", 1.0)) // 2
    if kinds and (scaling := rope_scaling(draw, pairs, kinds)):
        c["rope_scaling"] = scaling
    return c


def partial(draw: Draw, c: Fields, name: str, head_dim: int) -> None:
    """Sets the part of a head that is turned: a whole number of pairs."""
    c[name] = 2 * draw(st.integers(1, head_dim // 2)) / head_dim


def layer_types(draw: Draw, num_layers: int) -> Fields:
    """Which layers slide: as the family has it, or one by one."""
    kinds = st.sampled_from(["full_attention", "sliding_attention"])
    types = draw(st.none() | st.lists(kinds, min_size=num_layers, max_size=num_layers))
    return {} if types is None else {"layer_types": types}


def traits(c: Fields) -> set[tuple[str, object]]:
    """What drawn fields have of what is to be compared: flags, names, a kind of scaling, shared keys."""
    found: set[tuple[str, object]] = set()
    for name, value in c.items():
        if name == "text_config":
            found |= traits(value)
        elif name == "rope_scaling":
            found.add((name, value and value.get("rope_type", value.get("type"))))
        elif name == "layer_types":
            found.add((name, frozenset(value)))
        elif name in ("num_key_value_heads", "num_kv_heads"):
            found.add((name, (value == 1, value == c["num_attention_heads"])))
        elif value is None or isinstance(value, bool | str):
            found.add((name, value))
    return found
