"""The document's formulas in float64 NumPy, one position after another, one head after another.

Written to be read beside the document, and to share nothing with the decoder but the names of its weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from model.config import DecoderConfig, Rotation

Array = Any  # of float64; NumPy's own annotations lose the dtype at the first operator
Weights = Mapping[str, Array]
Sublayer = Callable[[DecoderConfig, Weights, int, Array], Array]


def logits(config: DecoderConfig, weights: Weights, token_ids: list[int]) -> Array:
    """The logits after every position: [len(token_ids), vocab_size]."""
    x = weights["embedding.weight"][token_ids] * config.embedding_scale
    if config.embedding_size is not None:
        x = linear(weights, "embedding.projection", x)
    if config.has_embedding_norm:
        x = norm(config, weights, "embedding.norm", x)
    if config.positions == "sinusoidal":
        x = x + np.stack([sinusoid(p, config.hidden_size) for p in range(len(token_ids))])
    if config.positions == "learned":
        x = x + weights["positions.weight"][: len(token_ids)]
    for index in range(config.num_layers):
        layer = {
            name.removeprefix(f"layers.{index}."): value
            for name, value in weights.items()
            if name.startswith(f"layers.{index}.")
        }
        x = decoder_layer(config, layer, index, x)
    if config.norm_placement != "post":
        x = norm(config, weights, "final_norm", x)
    if config.embedding_size is not None:
        x = linear(weights, "output_projection", x)
    output = "embedding.weight" if config.is_output_tied else "output.weight"
    out = (x @ weights[output].T + weights.get("output.bias", 0.0)) * config.logits_scale
    return np.asarray(capped(out, config.logits_softcap))


def decoder_layer(config: DecoderConfig, layer: Weights, index: int, x: Array) -> Array:
    """Two sub-layers, each joined to the stream where the norms stand, one after the other or at once."""
    has_norm_before = config.norm_placement in ("pre", "sandwich")
    has_norm_behind = config.norm_placement in ("output", "sandwich")

    def added(name: str, sublayer: Sublayer, x: Array) -> Array:
        is_shared = config.is_norm_shared and name == "feed_forward"
        before = "attention_norm" if is_shared else f"{name}_norm"
        out = sublayer(config, layer, index, norm(config, layer, before, x) if has_norm_before else x)
        if has_norm_behind:
            out = norm(config, layer, f"{name}_output_norm", out)
        return out * config.residual_scale

    if config.is_parallel:
        return x + added("attention", attention, x) + added("feed_forward", feed_forward, x)
    for name, sublayer in (("attention", attention), ("feed_forward", feed_forward)):
        x = x + added(name, sublayer, x)
        if config.norm_placement == "post":
            x = norm(config, layer, f"{name}_norm", x)
    return x


def sinusoid(position: int, width: int) -> Array:
    """sin and cos of position / 10000^(2i / width), interleaved."""
    row = np.zeros(width)
    for i in range(width // 2):
        angle = position / 10000 ** (2 * i / width)
        row[2 * i], row[2 * i + 1] = math.sin(angle), math.cos(angle)
    return row


def rotated(rotation: Rotation, vector: Array, position: int) -> Array:
    """Pairs turned by position * frequency, as complex numbers; the elements beyond them stay."""
    size = 2 * len(rotation.frequencies)
    first, second = np.arange(size // 2), np.arange(size // 2, size)
    if rotation.is_interleaved:
        first, second = np.arange(0, size, 2), np.arange(1, size, 2)
    angles = position * np.array(rotation.frequencies)
    turned = (vector[first] + 1j * vector[second]) * np.exp(1j * angles) * rotation.amplitude
    out = vector.copy()
    out[first], out[second] = turned.real, turned.imag
    return out


def attention(config: DecoderConfig, layer: Weights, index: int, x: Array) -> Array:
    """softmax(q K^T * scale) V over the keys that each query sees, in every head; concatenated; Wo."""
    group = config.num_heads // config.num_kv_heads
    q = projected(config, layer, "q", index, x)  # [num_heads, len(x), head_dim]
    k = projected(config, layer, "k", index, x)
    v = split(linear(layer, "attention.wv", x), config.head_dim)
    window = config.windows[index] if config.windows else None
    scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
    out = np.zeros((len(x), config.num_heads, config.head_dim))
    for head in range(config.num_heads):
        for p in range(len(x)):
            seen = np.arange(0 if window is None else max(0, p - window + 1), p + 1)
            scores = capped(k[head // group, seen] @ q[head, p] * scale, config.attention_softcap)
            if config.positions == "alibi":
                scores = scores + alibi(config, head, seen, scale)
            scores = np.append(scores, layer.get("attention.sinks", np.full(config.num_heads, -np.inf))[head])
            weights = np.exp(scores - scores.max())
            out[p, head] = (weights / weights.sum())[:-1] @ v[head // group, seen]
    return linear(layer, "attention.wo", out.reshape(len(x), -1))


def projected(config: DecoderConfig, layer: Weights, name: str, index: int, x: Array) -> Array:
    """Queries or keys, normed and turned: [heads, len(x), head_dim]."""
    flat = linear(layer, f"attention.w{name}", x)
    if config.head_norm == "all_heads":
        flat = norm(config, layer, f"attention.{name}_norm.norm", flat)
    heads = split(flat, config.head_dim)
    if config.head_norm == "head":
        heads = norm(config, layer, f"attention.{name}_norm", heads)
    if config.head_norm == "each_head":
        plain = dataclasses.replace(config, norm="layer_norm")
        heads = np.stack(
            [norm(plain, layer, f"attention.{name}_norm.norms.{i}", head) for i, head in enumerate(heads)]
        )
    rotation = config.rotations[index] if config.rotations else None
    if rotation is not None:
        heads = np.stack([[rotated(rotation, row, p) for p, row in enumerate(head)] for head in heads])
    return heads


def alibi(config: DecoderConfig, head: int, keys: Array, scale: float) -> Array:
    """The slope times the key's position; as Falcon has it, each of the three rounded to bfloat16."""
    bias = config.alibi_slopes[head] * keys
    if not config.is_alibi_rounded:
        return bias
    slope = np.float32(config.alibi_slopes[head])  # whose product with a rounded position float32 rounds once
    return bfloat16((slope * bfloat16(keys).astype(np.float32)).astype(np.float64)) * scale


def bfloat16(x: Array) -> Array:
    """x to 8 significant bits, ties to even."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(np.asarray(mantissa) * 256) / 256, exponent)


def feed_forward(config: DecoderConfig, layer: Weights, index: int, x: Array) -> Array:
    """One network, or for each token the weighted sum of those that a router chooses."""
    experts = config.experts_of(index)
    if experts is None:
        return network(config, layer, "feed_forward", x)
    out = np.zeros_like(x)
    for p, scores in enumerate(linear(layer, "feed_forward.router", x)):
        shares = np.exp(scores - scores.max())
        shares = shares / shares.sum()
        chosen = np.argsort(-shares, kind="stable")[: experts.num_chosen]
        total = shares[chosen].sum() if experts.is_renormalized else 1.0
        for i in chosen:
            out[p] += shares[i] / total * network(config, layer, f"feed_forward.experts.{i}", x[p])
    if experts.shared_size is not None:
        gate = 1 / (1 + np.exp(-linear(layer, "feed_forward.shared_gate", x)))
        out = out + gate * network(config, layer, "feed_forward.shared_expert", x)
    return out


def network(config: DecoderConfig, weights: Weights, name: str, x: Array) -> Array:
    """W2 act(W1 x), or gated."""
    limit = np.inf if config.gate_limit is None else config.gate_limit
    inner = activation(config.activation, np.minimum(linear(weights, f"{name}.w1", x), limit))
    if config.is_gated:
        factor = np.clip(linear(weights, f"{name}.w3", x), -limit, limit)
        inner = inner * (factor if config.gate_limit is None else factor + 1)
    return linear(weights, f"{name}.w2", inner)


def activation(name: str, x: Array) -> Array:
    """ReLU, GELU by its integral, its tanh form or its sigmoid form, SiLU."""
    if name == "relu":
        return np.maximum(x, 0)
    if name == "gelu":
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    if name == "gelu_tanh":
        return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x / (1 + np.exp(-x * (1.702 if name == "quick_gelu" else 1.0)))


def norm(config: DecoderConfig, weights: Weights, name: str, x: Array) -> Array:
    """Layer norm, with or without a bias, or RMS norm."""
    if config.norm == "rms_norm":
        root = np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps)
        return x / root * (weights[f"{name}.weight"] + config.norm_offset)
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    normed = centred / np.sqrt(variance + config.norm_eps)
    return normed * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0.0)


def capped(x: Array, cap: float | None) -> Array:
    """cap * tanh(x / cap), or x."""
    return x if cap is None else cap * np.tanh(x / cap)


def linear(weights: Weights, name: str, x: Array) -> Array:
    """W x + b, with b where there is one."""
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)


def split(flat: Array, size: int) -> Array:
    """[rows, heads * size] -> [heads, rows, size]."""
    return flat.reshape(len(flat), -1, size).swapaxes(0, 1)
