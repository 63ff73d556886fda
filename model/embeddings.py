"""How token ids and positions enter the decoder: token embeddings and positional encodings.

Each positional encoding acts at one place, and leaves the others alone: it is *added* to the embeddings
(the document's way), or it *rotates* queries and keys. ALiBi acts on the scores: see attention.py.
Knows nothing of attention itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.config import DecoderConfig, Rotation
from model.kernels.library import Kernels
from model.linear import Linear
from model.norms import make_norm
from model.quantization.linear import QuantizedLinear

# Turns queries or keys, [num_tokens, any_heads, head_dim], by the position of each row.
Rotate = Callable[[Tensor], Tensor]


class TokenEmbedding(nn.Module):
    """One learned vector for each id of the vocabulary, times `embedding_scale`.

    Where a family has it, a projection to `hidden_size` follows, or a norm.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.scale = config.embedding_scale
        self.table: QuantizedLinear | None = None  # in place of `weight`, where the tied output is quantized
        self.table_dtype = torch.float32  # to which its rows are decoded
        size = config.embedding_size or config.hidden_size
        self.weight = nn.Parameter(torch.empty(config.vocab_size, size))
        is_narrow = config.embedding_size is not None
        self.projection = Linear(size, config.hidden_size, False) if is_narrow else nn.Identity()
        self.norm = make_norm(config) if config.has_embedding_norm else nn.Identity()

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids: [num_tokens] -> [num_tokens, hidden_size]."""
        if self.table is None:
            x = torch.embedding(self.weight, token_ids)
        else:
            x = self.table.decoded(token_ids).to(self.table_dtype)
        if self.scale != 1.0:
            # The factor in x's dtype: Gemma was trained with sqrt(3072) as bfloat16 has it, 55.5.
            x = x * torch.tensor(self.scale, dtype=x.dtype).item()
        out: Tensor = self.norm(self.projection(x))
        return out


class PositionalEncoding(nn.Module):
    """The two places at which positions can enter; by default neither changes anything."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.num_layers = config.num_layers

    def add(self, x: Tensor, positions: Tensor) -> Tensor:
        """x: [num_tokens, hidden_size], positions: [num_tokens] -> x with its positions added."""
        return x

    def rotations(self, positions: Tensor) -> list[Rotate]:
        """How each layer turns its queries and keys. positions: [num_tokens]."""
        return [_unturned] * self.num_layers


class SinusoidalPositions(PositionalEncoding):
    """P[p, 2i] = sin(p / 10000^(2i/width)), P[p, 2i+1] = cos(the same), added (Vaswani et al. 2017, 3.5)."""

    table: Tensor  # [max_positions, hidden_size], float32

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        # Computed on the CPU in float64 wherever the weights live: a checkpoint does not hold it.
        exponents = torch.arange(0, config.hidden_size, 2, dtype=torch.float64, device="cpu")
        angles = _angles(config.max_positions, 10_000.0 ** -(exponents / config.hidden_size))
        table = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
        self.register_buffer("table", table.float(), persistent=False)

    def add(self, x: Tensor, positions: Tensor) -> Tensor:
        """Adds in x's dtype."""
        return x + self.table[positions].to(x.dtype)


class LearnedPositions(PositionalEncoding):
    """One learned vector for each position, added."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.weight = nn.Parameter(torch.empty(config.max_positions, config.hidden_size))

    def add(self, x: Tensor, positions: Tensor) -> Tensor:
        """Adds in x's dtype."""
        return x + torch.embedding(self.weight, positions)


class RotaryPositions(PositionalEncoding):
    """Turns pairs of elements by p * frequency (Su et al. 2021); layers may differ in their frequencies."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        kinds = list(dict.fromkeys(filter(None, config.rotations)))
        self.tables = nn.ModuleList(RotaryTable(kind, config.max_positions) for kind in kinds)
        self.table_of_layer = [kinds.index(kind) if kind else None for kind in config.rotations]

    def rotations(self, positions: Tensor) -> list[Rotate]:
        """The angles are looked up once for a step, not once for a layer."""
        turns: list[Rotate] = [table(positions) for table in self.tables]
        return [_unturned if table is None else turns[table] for table in self.table_of_layer]


class RotaryTable(nn.Module):
    """The cosines and sines of one `Rotation`."""

    cos: Tensor  # [max_positions, number of pairs], float32
    sin: Tensor

    def __init__(self, rotation: Rotation, max_positions: int) -> None:
        super().__init__()
        self.is_interleaved = rotation.is_interleaved
        self.kernels: Kernels | None = None
        frequencies = torch.tensor(rotation.frequencies, dtype=torch.float64, device="cpu")
        angles = _angles(max_positions, frequencies)
        self.register_buffer("cos", (angles.cos() * rotation.amplitude).float(), persistent=False)
        self.register_buffer("sin", (angles.sin() * rotation.amplitude).float(), persistent=False)

    def forward(self, positions: Tensor) -> Rotate:
        """How to turn rows at these positions. The turning is computed in float32, and keeps the dtype."""
        if self.kernels is not None:
            kernels, tables = self.kernels, (self.cos.float(), self.sin.float())
            return lambda heads: kernels.rotate(heads, *tables, positions, self.is_interleaved)
        # [num_tokens, 1, num_pairs]
        cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        size = 2 * cos.shape[-1]

        def rotate(heads: Tensor) -> Tensor:
            turned, rest = heads[..., :size].float(), heads[..., size:]
            if self.is_interleaved:
                first, second = turned[..., 0::2], turned[..., 1::2]
            else:
                first, second = turned.chunk(2, dim=-1)
            pair = (first * cos - second * sin, second * cos + first * sin)
            turned = torch.stack(pair, -1).flatten(-2) if self.is_interleaved else torch.cat(pair, -1)
            return torch.cat((turned.to(heads.dtype), rest), -1) if rest.shape[-1] else turned.to(heads.dtype)

        return rotate


POSITIONS: dict[str, type[PositionalEncoding]] = {
    "sinusoidal": SinusoidalPositions,
    "learned": LearnedPositions,
    "rotary": RotaryPositions,
    "alibi": PositionalEncoding,
}


def _unturned(heads: Tensor) -> Tensor:
    return heads


def _angles(max_positions: int, frequencies: Tensor) -> Tensor:
    """p * frequency for each position p: [max_positions, len(frequencies)], float64."""
    positions = torch.arange(max_positions, dtype=torch.float64, device="cpu")
    return torch.outer(positions, frequencies)
