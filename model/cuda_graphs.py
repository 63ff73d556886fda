"""Decode steps as CUDA graphs: all that a GPU does for a step, taken down once for each shape of it.

A small step's kernels are done sooner than Python can ask for them. A graph asks for all at once; but it
computes with the same tensors each time, of the same shapes. So a step that gives each sequence its next
token is filled up to one of a few shapes: with its last sequence, again, and with key tiles that nobody
sees, which change no bit (see pairs.py). What differs from step to step is copied to where a graph reads it.

Decides which steps are done so. Knows nothing of what layers compute.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model.attention import PagedAttention
from model.batch import ForwardBatch
from model.config import DecoderConfig
from model.decoder import Decoder
from model.interface import StepItem
from model.kv_cache import KEY_TILE, KVCache
from model.pairs import PairLayout

# Powers of two alone make the sequences up to twice as many, and the key tiles. What comes to more has
# sequences of so different lengths that it is better done as it is.
MOST_PADDING = 4

logger = logging.getLogger(__name__)


class DecodeShape(NamedTuple):
    """The shape of a step in which each sequence has one row."""

    num_rows: int
    num_key_tiles: int  # of each row

    @property
    def num_pairs(self) -> int:
        """Of a row and a key tile."""
        return self.num_rows * self.num_key_tiles


def decode_shapes(config: DecoderConfig, max_rows: int, max_pairs: int) -> list[DecodeShape]:
    """Those that have graphs, the largest first."""
    if config.experts is not None:
        return []  # how many rows an expert gets is known only when it is computed
    shapes = [
        DecodeShape(num_rows, num_key_tiles)
        for num_rows in _powers_up_to(max_rows)
        for num_key_tiles in _powers_up_to(-(-config.max_positions // KEY_TILE))
    ]
    return sorted((shape for shape in shapes if shape.num_pairs <= max_pairs), key=lambda s: -s.num_pairs)


def shape_of(items: Sequence[StepItem], shapes: Sequence[DecodeShape]) -> DecodeShape | None:
    """The smallest into which this step goes, if it is one, and would not become far larger."""
    if any(len(item.token_ids) > 1 for item in items):
        return None
    key_tiles = [item.start // KEY_TILE + 1 for item in items]
    fitting = [s for s in shapes if s.num_rows >= len(items) and s.num_key_tiles >= max(key_tiles)]
    best = min(fitting, key=lambda shape: shape.num_pairs, default=None)
    return best if best is not None and best.num_pairs <= MOST_PADDING * sum(key_tiles) else None


class DecodeStep:
    """Steps of one shape, in tensors of their own."""

    def __init__(self, decoder: Decoder, cache: KVCache, shape: DecodeShape) -> None:
        self._decoder = decoder
        self._shape = shape
        self._device = cache.keys.device
        self._batch, layout = self._laid_out([StepItem(token_ids=[0], start=0, block_table=[0])])
        self._attend = PagedAttention(layout, cache, decoder.config)

    def load(self, items: Sequence[StepItem]) -> None:
        """What `compute` is to compute from now on: one item or more, at most as many as there are rows."""
        batch, layout = self._laid_out(items)
        for held, new in zip(
            (self._batch.token_ids, self._batch.positions, *self._attend.layout.tensors()),
            (batch.token_ids, batch.positions, *layout.tensors()),
            strict=True,
        ):
            held.copy_(new)

    def compute(self) -> Tensor:
        """[num_rows, hidden_size]. Every operation has its shape whatever the tensors hold."""
        self._attend.mask()
        hidden = self._decoder.hidden(self._batch.token_ids, self._batch.positions, self._attend)
        self._attend.masks.clear()  # whose memory other graphs may use
        return hidden

    def _laid_out(self, items: Sequence[StepItem]) -> tuple[ForwardBatch, PairLayout]:
        num_rows, num_key_tiles = self._shape
        # The last row again writes the same keys and values to the same place.
        filled = [*items, *[items[-1]] * (num_rows - len(items))]
        windows = self._decoder.config.layer_windows
        layout = PairLayout.build(filled, self._shape.num_pairs, self._device, windows, num_key_tiles)
        return ForwardBatch.build(filled, self._device), layout


class DecodeGraphs:
    """A graph for each shape."""

    @classmethod
    def capture(
        cls, decoder: Decoder, cache: KVCache, max_rows: int, max_pairs: int, on_layer: Callable[[], None]
    ) -> DecodeGraphs | None:
        """None off a GPU, for a decoder that has no shapes, and, with a warning, where it cannot be done."""
        shapes = decode_shapes(decoder.config, max_rows, max_pairs)
        if cache.keys.device.type != "cuda" or not shapes:
            return None
        try:
            return cls(decoder, cache, shapes, on_layer)
        except RuntimeError as error:
            logger.warning("decode steps run without CUDA graphs: %s", " ".join(str(error).split()))
            return None

    @torch.inference_mode()
    def __init__(
        self, decoder: Decoder, cache: KVCache, shapes: list[DecodeShape], on_layer: Callable[[], None]
    ) -> None:
        """Raises `RuntimeError` if a step cannot be captured, or does not give the same bits then."""
        self._on_layer = on_layer
        self._shapes = shapes
        held_bytes = torch.cuda.memory_reserved()
        self._graphs: dict[DecodeShape, tuple[DecodeStep, torch.cuda.CUDAGraph, Tensor]] = {}
        pool = torch.cuda.graph_pool_handle()  # of all: one is done with before the next begins
        for shape in shapes:
            on_layer()
            step = DecodeStep(decoder, cache, shape)
            expected = step.compute()  # libraries prepare themselves for the shape, which cannot be captured
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                hidden = step.compute()
            graph.replay()
            if not torch.equal(hidden, expected):
                raise RuntimeError(f"a graph of {shape} gives other bits than its kernels one by one")
            self._graphs[shape] = step, graph, hidden
        self.num_bytes = max(0, torch.cuda.memory_reserved() - held_bytes)
        cache.keys.fill_(0)  # what was tried out is not left to anybody
        cache.values.fill_(0)

    def __call__(self, items: Sequence[StepItem]) -> Tensor | None:
        """[len(items), hidden_size], until the next call; None if the step has no graph."""
        shape = shape_of(items, self._shapes)
        if shape is None:
            return None
        step, graph, hidden = self._graphs[shape]
        step.load(items)
        self._on_layer()
        graph.replay()
        return hidden[: len(items)]


def _powers_up_to(most: int) -> list[int]:
    """Powers of two below `most`, and that itself."""
    return [*(2**n for n in range(most.bit_length()) if 2**n < most), most]
