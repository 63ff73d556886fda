"""`Attend` for serving with the native kernels, and the choice between it and plain torch.

Lays out a step for attention.h: whose rows there are, and in which blocks their keys lie. Knows no layer's
numbers.
"""

from __future__ import annotations

import ctypes
from array import array
from itertools import accumulate, chain

import numpy as np
import torch
from torch import Tensor

from model.attention import Attend, PagedAttention
from model.batch import ForwardBatch
from model.config import DecoderConfig
from model.kernels.library import Kernels
from model.kv_cache import KVCache
from model.pairs import PairLayout

NO_WINDOW = 2**62  # more than there are positions


class _Step(ctypes.Structure):
    """`Step` in paged.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in (
            "num_sequences", "num_blocks", "num_heads", "num_kv_heads", "head_dim", "size",
        )),
        *((name, ctypes.c_void_p) for name in (
            "starts", "first_rows", "first_blocks", "tables", "keys", "values", "slopes",
        )),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("is_alibi_rounded", ctypes.c_int32),
    )  # fmt: skip


class NativeAttention:
    """`Attend` for one step: as `PagedAttention`, but each row's sums run over the keys that it sees alone.

    Lays out a block's keys and values in its own way: what one of the two wrote, the other cannot read.
    """

    def __init__(self, batch: ForwardBatch, cache: KVCache, config: DecoderConfig, kernels: Kernels) -> None:
        items = batch.items
        self.kernels = kernels
        self.windows = config.layer_windows
        self.cache = cache
        starts = array("q", [item.start for item in items])
        first_rows = array("q", accumulate((len(item.token_ids) for item in items), initial=0))
        first_blocks = array("q", accumulate((len(item.block_table) for item in items), initial=0))
        tables = np.fromiter(chain.from_iterable(item.block_table for item in items), np.int32)
        self._pointed_at = (starts, first_rows, first_blocks, tables)
        self._slopes = torch.tensor(config.alibi_slopes) if config.alibi_slopes else None
        _, num_kv_heads, num_blocks, _, size = cache.keys.shape
        self._step = _Step(
            num_sequences=len(items),
            num_blocks=num_blocks,
            num_heads=config.num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=config.head_dim,
            size=size,
            starts=starts.buffer_info()[0],
            first_rows=first_rows.buffer_info()[0],
            first_blocks=first_blocks.buffer_info()[0],
            tables=tables.ctypes.data,
            keys=cache.keys.data_ptr(),
            values=cache.values.data_ptr(),
            slopes=None if self._slopes is None else self._slopes.data_ptr(),
            scale=config.score_scale,
            softcap=config.attention_softcap or 0.0,
            is_alibi_rounded=config.is_alibi_rounded,
        )

    def become(self, other: NativeAttention) -> None:
        """Do what `other` would, from now on, in calls that were recorded, too."""
        ctypes.memmove(ctypes.addressof(self._step), ctypes.addressof(other._step), ctypes.sizeof(_Step))
        self._pointed_at, self._slopes = other._pointed_at, other._slopes

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> Tensor:
        """Writes k and v to the cache, then looks up each row of q. All are of the cache's dtype."""
        return self.kernels.attend(
            q.contiguous(),
            k.contiguous(),
            v.contiguous(),
            None if sinks is None else sinks.float(),
            ctypes.addressof(self._step),
            layer,
            self.windows[layer] or NO_WINDOW,
        )


def make_attend(
    batch: ForwardBatch, cache: KVCache, config: DecoderConfig, kernels: Kernels | None, max_pairs: int
) -> Attend:
    """What a step attends with; `max_pairs` is for plain torch."""
    if kernels is None:
        layout = PairLayout.build(batch.items, max_pairs, batch.positions.device, config.layer_windows)
        return PagedAttention(layout, cache, config)
    return NativeAttention(batch, cache, config, kernels)
