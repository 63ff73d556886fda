"""The KV cache's tensors: keys and values of every layer, addressed by block.

Which block belongs to whom is the engine's business (server/engine/block_manager.py), not this file's.

A block holds the keys of `BLOCK_SIZE` consecutive positions of one sequence. A key tile, the unit of
attention, is `KEY_TILE / BLOCK_SIZE` consecutive entries of a block table:

    position    0        16       32       48       64       80
    block table |   7    |   2    |   9    |   4    |   1    | ...
    key tile    |------------- 0 ------------------|------ 1 ...

That is plain torch's; the native kernels use the same memory, but order what is in a block in their own way
(model/kernels/paged.h).
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import DecoderConfig
from model.linear import VECTOR, padded

BLOCK_SIZE = 16  # positions in a block: the grain of memory and of prefix reuse
KEY_TILE = 64  # positions in a key tile: the grain of attention's sums; a multiple of BLOCK_SIZE


class KVCache:
    """Keys and values, [num_layers, num_kv_heads, num_blocks, BLOCK_SIZE, head_dim] each, zeroed at start.

    Zeros are written, not only promised by the system: no page of the cache can be missing later.

    head_dim is padded with zeros to whole vectors (see linear.py); those that models have need none.
    """

    def __init__(
        self, config: DecoderConfig, num_blocks: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (
            config.num_layers,
            config.num_kv_heads,
            num_blocks,
            BLOCK_SIZE,
            padded_size(config.head_dim),
        )
        self.keys = torch.empty(shape, dtype=dtype, device=device).fill_(0)
        self.values = torch.empty(shape, dtype=dtype, device=device).fill_(0)

    @staticmethod
    def bytes_per_token(config: DecoderConfig, dtype: torch.dtype) -> int:
        """Bytes that one position takes, over all layers."""
        return 2 * config.num_layers * config.num_kv_heads * padded_size(config.head_dim) * dtype.itemsize

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Put rows k, v: [num_tokens, num_kv_heads, head_dim] at slots, block id * BLOCK_SIZE + offset."""
        self.keys[layer].flatten(1, 2).index_copy_(1, slots, padded(k).transpose(0, 1))
        self.values[layer].flatten(1, 2).index_copy_(1, slots, padded(v).transpose(0, 1))

    def read_tiles(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of key tiles, as float32.

        blocks: [num_tiles * KEY_TILE / BLOCK_SIZE]
        -> two of [num_kv_heads, num_tiles, KEY_TILE, head_dim, padded].
        """
        keys, values = (
            torch.unflatten(cache[layer].index_select(1, blocks).flatten(1, 2), 1, (-1, KEY_TILE)).float()
            for cache in (self.keys, self.values)
        )
        return keys, values


def padded_size(head_dim: int) -> int:
    """What a head takes in the cache."""
    return -(-head_dim // VECTOR) * VECTOR
