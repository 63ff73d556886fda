"""The position-wise feed-forward network: the same two (or three) matrices at every position.

Knows nothing of other positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.config import DecoderConfig
from model.kernels.library import Kernels
from model.linear import Linear

# Written out of operations whose bits do not depend on an element's place: the library's own GELU, SiLU
# and sigmoid compute the last few elements of a stretch, past its whole vectors, by another formula.


def gelu(x: Tensor) -> Tensor:
    """x Phi(x), by the integral of the normal density (Hendrycks & Gimpel 2016)."""
    return 0.5 * x * (1.0 + torch.erf(x * math.sqrt(0.5)))


def gelu_tanh(x: Tensor) -> Tensor:
    """The same, by its approximation with tanh."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))))


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x) (Elfwing et al. 2017)."""
    return x / (1.0 + torch.exp(-x))


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), a coarse GELU (Hendrycks & Gimpel 2016)."""
    return x / (1.0 + torch.exp(-1.702 * x))


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + torch.exp(-x))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": silu,
    "quick_gelu": quick_gelu,
}


class FeedForward(nn.Module):
    """`W2 act(W1 x)`; gated (Shazeer 2020): `W2 (act(W1 x) * W3 x)`."""

    def __init__(self, config: DecoderConfig, inner_size: int | None = None) -> None:
        super().__init__()
        inner, outer = inner_size or config.feed_forward_size, config.hidden_size
        has_bias = config.has_feed_forward_bias
        self.activation = config.activation
        self.limit = config.gate_limit
        self.w1 = Linear(outer, inner, has_bias)
        self.w2 = Linear(inner, outer, has_bias)
        self.w3 = Linear(outer, inner, has_bias) if config.is_gated else None
        self.kernels: Kernels | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x: [num_tokens, hidden_size] -> the same shape."""
        inner = self.w1(x)  # [num_tokens, feed_forward_size]
        factor = None if self.w3 is None else self.w3(x)
        if self.limit is not None:  # gpt-oss
            inner = inner.clamp(max=self.limit)
            factor = None if factor is None else factor.clamp(-self.limit, self.limit) + 1.0
        out: Tensor = self.w2(self._activated(inner, factor))
        return out

    def _activated(self, inner: Tensor, factor: Tensor | None) -> Tensor:
        if self.kernels is not None:
            return self.kernels.activate(self.activation, inner, factor)
        inner = ACTIVATIONS[self.activation](inner.float()).to(inner.dtype)
        return inner if factor is None else inner * factor
