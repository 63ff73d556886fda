"""Normalization, and Add & Norm: how a sub-layer is joined to the stream that passes it.

Knows nothing of what the sub-layer computes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import DecoderConfig
from model.kernels.library import Kernels


class LayerNorm(nn.Module):
    """`(x - mean) / sqrt(variance + eps) * weight + bias` over the last dimension (Ba et al. 2016)."""

    def __init__(self, size: int, eps: float, has_bias: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size)) if has_bias else None
        self.kernels: Kernels | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., size] -> the same shape and dtype."""
        if self.kernels is not None:
            return self.kernels.layer_norm(x, self.weight, self.bias, self.eps)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x**2) + eps) * (offset + weight)` over the last dimension (Zhang & Sennrich 2019)."""

    def __init__(self, size: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.eps = eps
        self.offset = offset
        self.weight = nn.Parameter(torch.empty(size))
        self.kernels: Kernels | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., size] -> the same shape and dtype; the mean is taken in float32."""
        if self.kernels is not None:
            return self.kernels.rms_norm(x, self.weight, self.eps, self.offset)
        wide = x.float()
        # Not rsqrt: its bits depend on the row's place, those of a root and a division do not.
        root = torch.sqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        if self.offset:  # in float32: 1 + weight would lose the weight's last digits in bfloat16
            return (wide / root * (self.offset + self.weight.float())).to(x.dtype)
        return (wide / root).to(x.dtype) * self.weight


def make_norm(config: DecoderConfig, size: int | None = None) -> LayerNorm | RMSNorm:
    """The norm that this decoder uses everywhere, over `size`: by default `hidden_size`."""
    size = size or config.hidden_size
    if config.norm == "rms_norm":
        return RMSNorm(size, config.norm_eps, config.norm_offset)
    return LayerNorm(size, config.norm_eps, config.has_norm_bias)


class AllHeadsNorm(nn.Module):
    """The norm over all heads of a row at once (OLMo 2)."""

    def __init__(self, config: DecoderConfig, num_heads: int) -> None:
        super().__init__()
        self.norm = make_norm(config, num_heads * config.head_dim)

    def forward(self, heads: Tensor) -> Tensor:
        """heads: [num_tokens, num_heads, head_dim] -> the same shape."""
        normed: Tensor = self.norm(heads.flatten(1))
        return normed.view(heads.shape)


class EachHeadNorm(nn.Module):
    """A layer norm without bias over each head, with weights of its own (Command R+)."""

    def __init__(self, config: DecoderConfig, num_heads: int) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.norms = nn.ModuleList(
            LayerNorm(config.head_dim, config.norm_eps, has_bias=False) for _ in range(num_heads)
        )

    def forward(self, heads: Tensor) -> Tensor:
        """heads: [num_tokens, num_heads, head_dim] -> the same shape."""
        weights = torch.stack([norm.get_parameter("weight") for norm in self.norms])
        return F.layer_norm(heads, heads.shape[-1:], eps=self.eps) * weights


def make_head_norm(config: DecoderConfig, num_heads: int) -> nn.Module:
    """What queries or keys pass before they are turned: nothing, or a norm."""
    if config.head_norm is None:
        return nn.Identity()
    if config.head_norm == "head":
        return make_norm(config, config.head_dim)
    return (AllHeadsNorm if config.head_norm == "all_heads" else EachHeadNorm)(config, num_heads)


class Add(nn.Module):
    """The skip connection: what a sub-layer made joins the stream, times a factor where a family has one."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.scale = config.residual_scale
        self.kernels: Kernels | None = None

    def forward(self, x: Tensor, made: Tensor) -> Tensor:
        """x, made: [num_tokens, hidden_size] -> the same shape."""
        if self.kernels is not None:
            return self.kernels.add(x, made, self.scale)
        return x + (made if self.scale == 1.0 else made * self.scale)


def make_input_norm(config: DecoderConfig) -> nn.Module:
    """The norm before a sub-layer; with post-norm the one after the skip connection."""
    return nn.Identity() if config.norm_placement == "output" else make_norm(config)


def make_output_norm(config: DecoderConfig) -> nn.Module:
    """What a sub-layer's output passes before it is added to the stream: nothing, or a norm."""
    return make_norm(config) if config.norm_placement in ("output", "sandwich") else nn.Identity()


Sublayer = Callable[[Tensor], Tensor]


def add_and_norm_post(
    x: Tensor, sublayer: Sublayer, norm: nn.Module, output_norm: nn.Module, add: Add
) -> Tensor:
    """The document's Add & Norm: the skip connection, then the norm."""
    normed: Tensor = norm(add(x, output_norm(sublayer(x))))
    return normed


def add_and_norm_pre(
    x: Tensor, sublayer: Sublayer, norm: nn.Module, output_norm: nn.Module, add: Add
) -> Tensor:
    """Pre-norm (Xiong et al. 2020): the sub-layer sees the normed stream; the stream itself goes on."""
    joined: Tensor = add(x, output_norm(sublayer(norm(x))))
    return joined
