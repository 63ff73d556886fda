"""The document's formulas in float64 NumPy, one position after another, one head after another.

Written to be read beside the document, and to share nothing with the decoder but the names of its weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from model.config import DecoderConfig

Array = Any  # of float64; NumPy's own annotations lose the dtype at the first operator


def logits(config: DecoderConfig, weights: Mapping[str, Array], token_ids: list[int]) -> Array:
    """The logits after every position: [len(token_ids), vocab_size]."""
    x = weights["embedding.weight"][token_ids] * config.embedding_scale
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
        if config.norm_placement == "post":
            x = norm(config, layer, "attention_norm", x + attention(config, layer, x))
            x = norm(config, layer, "feed_forward_norm", x + feed_forward(config, layer, x))
        else:
            x = x + attention(config, layer, norm(config, layer, "attention_norm", x))
            x = x + feed_forward(config, layer, norm(config, layer, "feed_forward_norm", x))
    if config.norm_placement == "pre":
        x = norm(config, weights, "final_norm", x)
    output = "embedding.weight" if config.is_output_tied else "output.weight"
    return np.asarray(x @ weights[output].T)


def sinusoid(position: int, width: int) -> Array:
    """sin and cos of position / 10000^(2i / width), interleaved."""
    row = np.zeros(width)
    for i in range(width // 2):
        angle = position / 10000 ** (2 * i / width)
        row[2 * i], row[2 * i + 1] = math.sin(angle), math.cos(angle)
    return row


def rotated(vector: Array, position: int, theta: float) -> Array:
    """Each pair (i, i + half) turned by position / theta^(i / half), as complex numbers."""
    half = len(vector) // 2
    angles = position / theta ** (np.arange(half) / half)
    turned = (vector[:half] + 1j * vector[half:]) * np.exp(1j * angles)
    return np.concatenate((turned.real, turned.imag))


def attention(config: DecoderConfig, layer: Mapping[str, Array], x: Array) -> Array:
    """softmax(q K^T / sqrt(d_k)) V over the keys up to each query, in every head; concatenated; Wo."""
    size, group = config.head_dim, config.num_heads // config.num_kv_heads
    q, k, v = (linear(layer, f"attention.{name}", x) for name in ("wq", "wk", "wv"))
    out = np.zeros((len(x), config.num_heads * size))
    for head in range(config.num_heads):
        mine = slice(head * size, (head + 1) * size)
        shared = slice(head // group * size, (head // group + 1) * size)
        queries, keys = q[:, mine].copy(), k[:, shared].copy()
        if config.positions == "rotary":
            for p in range(len(x)):
                queries[p] = rotated(queries[p], p, config.rope_theta)
                keys[p] = rotated(keys[p], p, config.rope_theta)
        for p in range(len(x)):
            scores = keys[: p + 1] @ queries[p] / math.sqrt(size)
            weights = np.exp(scores - scores.max())
            out[p, mine] = weights / weights.sum() @ v[: p + 1, shared]
    return linear(layer, "attention.wo", out)


def feed_forward(config: DecoderConfig, layer: Mapping[str, Array], x: Array) -> Array:
    """W2 act(W1 x), or gated."""
    inner = activation(config.activation, linear(layer, "feed_forward.w1", x))
    if config.is_gated:
        inner = inner * linear(layer, "feed_forward.w3", x)
    return linear(layer, "feed_forward.w2", inner)


def activation(name: str, x: Array) -> Array:
    """ReLU, GELU by its integral or by its tanh form, SiLU."""
    if name == "relu":
        return np.maximum(x, 0)
    if name == "gelu":
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    if name == "gelu_tanh":
        return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x / (1 + np.exp(-x))


def norm(config: DecoderConfig, weights: Mapping[str, Array], name: str, x: Array) -> Array:
    """Layer norm, or RMS norm."""
    if config.norm == "rms_norm":
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * weights[f"{name}.weight"]
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + config.norm_eps) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(weights: Mapping[str, Array], name: str, x: Array) -> Array:
    """W x + b, with b where there is one."""
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)
