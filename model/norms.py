"""Normalization, and Add & Norm: how a sub-layer is joined to the stream that passes it.

Knows nothing of what the sub-layer computes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import DecoderConfig


class LayerNorm(nn.Module):
    """`(x - mean) / sqrt(variance + eps) * weight + bias` over the last dimension (Ba et al. 2016)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        """x: [num_tokens, size] -> the same shape and dtype."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x**2) + eps) * weight` over the last dimension (Zhang & Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        """x: [num_tokens, size] -> the same shape and dtype; the mean is taken in float32."""
        wide = x.float()
        # Not rsqrt: its bits depend on the row's place, those of a root and a division do not.
        root = torch.sqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide / root).to(x.dtype) * self.weight


NORMS: dict[str, type[LayerNorm] | type[RMSNorm]] = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}


def make_norm(config: DecoderConfig) -> LayerNorm | RMSNorm:
    """The norm that this decoder uses everywhere, over `hidden_size`."""
    return NORMS[config.norm](config.hidden_size, config.norm_eps)


def add_and_norm_post(x: Tensor, sublayer: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
    """The document's Add & Norm: the skip connection, then the norm."""
    normed: Tensor = norm(x + sublayer(x))
    return normed


def add_and_norm_pre(x: Tensor, sublayer: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
    """Pre-norm (Xiong et al. 2020): the sub-layer sees the normed stream; the stream itself goes on."""
    return x + sublayer(norm(x))


ADD_AND_NORM = {"post": add_and_norm_post, "pre": add_and_norm_pre}
