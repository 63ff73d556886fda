"""How token ids and positions enter the decoder: token embeddings and positional encodings.

Each positional encoding acts at one of two places, and leaves the other alone: it is *added* to the
embeddings (the document's way), or it *rotates* queries and keys. Knows nothing of attention itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import DecoderConfig


class TokenEmbedding(nn.Module):
    """One learned vector for each id of the vocabulary, times `scale`."""

    def __init__(self, vocab_size: int, hidden_size: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids: [num_tokens] -> [num_tokens, hidden_size]."""
        x = torch.embedding(self.weight, token_ids)
        return x if self.scale == 1.0 else x * self.scale


class PositionalEncoding(nn.Module):
    """The two places at which positions can enter; by default neither changes anything."""

    def add(self, x: Tensor, positions: Tensor) -> Tensor:
        """x: [num_tokens, hidden_size], positions: [num_tokens] -> x with its positions added."""
        return x

    def rotate(self, heads: Tensor, positions: Tensor) -> Tensor:
        """heads: [num_tokens, any_heads, head_dim], queries or keys -> the same, turned by position."""
        return heads


class SinusoidalPositions(PositionalEncoding):
    """P[p, 2i] = sin(p / 10000^(2i/width)), P[p, 2i+1] = cos(the same), added (Vaswani et al. 2017, 3.5)."""

    table: Tensor  # [max_positions, hidden_size], float32

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        # Computed on the CPU in float64 wherever the weights live: a checkpoint does not hold it.
        angles = _angles(config.max_positions, config.hidden_size, 10_000.0)
        table = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
        self.register_buffer("table", table.float(), persistent=False)

    def add(self, x: Tensor, positions: Tensor) -> Tensor:
        """Adds in x's dtype."""
        return x + self.table[positions].to(x.dtype)


class LearnedPositions(PositionalEncoding):
    """One learned vector for each position, added."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.max_positions, config.hidden_size))

    def add(self, x: Tensor, positions: Tensor) -> Tensor:
        """Adds in x's dtype."""
        return x + torch.embedding(self.weight, positions)


class RotaryPositions(PositionalEncoding):
    """Turns the pair (i, i + head_dim/2) by p / theta^(2i/head_dim) (Su et al. 2021; halves: GPT-NeoX)."""

    cos: Tensor  # [max_positions, head_dim / 2], float32
    sin: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        angles = _angles(config.max_positions, config.head_dim, config.rope_theta)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def rotate(self, heads: Tensor, positions: Tensor) -> Tensor:
        """Computes in float32 and returns heads' dtype."""
        cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        first, second = heads.float().chunk(2, dim=-1)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        return turned.to(heads.dtype)


POSITIONS: dict[str, type[SinusoidalPositions] | type[LearnedPositions] | type[RotaryPositions]] = {
    "sinusoidal": SinusoidalPositions,
    "learned": LearnedPositions,
    "rotary": RotaryPositions,
}


def _angles(max_positions: int, width: int, base: float) -> Tensor:
    """p / base^(2i/width) for each position p and i < width/2: [max_positions, width / 2], float64."""
    exponents = torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width
    positions = torch.arange(max_positions, dtype=torch.float64, device="cpu")
    return torch.outer(positions, base**-exponents)
