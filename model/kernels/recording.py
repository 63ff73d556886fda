"""A decoder's layers as a list of kernel calls, taken down once and made again for every small step.

Between two kernels of a small step, Python takes longer than many of the kernels. But a layer makes the same
calls each time, on the same weights, for more or fewer rows: so they are kept as data, with memory of their
own for what passes from one to the next. (On a GPU a CUDA graph is the same: model/cuda_graphs.py.)

Knows nothing of what layers compute. That they did nothing but call kernels shows in their tensors: each is
a weight, or what another kernel gave.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from model.attention import Attend
from model.batch import ForwardBatch
from model.config import DecoderConfig
from model.decoder import Decoder
from model.kernels.attention import NativeAttention
from model.kernels.library import Kernels
from model.kv_cache import KVCache

MAX_ROWS = 64  # of a step: in larger ones, Python's part is small, and the memory kept would not be


class _NotRecordable(Exception):
    """A layer does something beside calling kernels."""


class _Call(ctypes.Structure):
    """`Call` in library.cpp."""

    _fields_ = (("kernel", ctypes.c_void_p), ("words", ctypes.c_void_p), ("rows", ctypes.c_int64))


class RecordedLayers:
    """All layers of a decoder, for steps of up to `MAX_ROWS` rows."""

    @classmethod
    def record(
        cls, decoder: Decoder, cache: KVCache, on_layer: Callable[[], None] = lambda: None
    ) -> RecordedLayers | None:
        """None if the decoder has no kernels, or does not leave everything to them."""
        if decoder.kernels is None:
            return None
        recorder = _LayerRecorder((*decoder.parameters(), *decoder.buffers()))
        decoder.kernels.recorder = recorder
        try:
            return cls(decoder, cache, recorder, on_layer)
        except _NotRecordable:
            return None
        finally:
            decoder.kernels.recorder = None

    def __init__(
        self, decoder: Decoder, cache: KVCache, recorder: _LayerRecorder, on_layer: Callable[[], None]
    ) -> None:
        """Called while the decoder's kernels have this recorder. Raises `_NotRecordable`."""
        assert decoder.kernels is not None
        self._kernels: Kernels = decoder.kernels
        self._on_layer = on_layer
        self._recorder = recorder  # whose memory the calls point to
        self._attend = NativeAttention(
            ForwardBatch.build([], cache.keys.device), cache, decoder.config, self._kernels
        )
        # Any parameter's dtype would do but a quantized weight's.
        self._x = x = recorder.empty(cache.keys, (MAX_ROWS, decoder.config.hidden_size))
        self._positions = recorder.empty(torch.empty(0, dtype=torch.int64), (MAX_ROWS,))
        recorder.take()
        self._layers = []
        for layer, rotate in zip(decoder.layers, decoder.positions.rotations(self._positions), strict=True):
            x = layer(x, rotate, self._attend)
            recorder.check([x])
            self._layers.append(recorder.take())
        self._out = x

    @property
    def num_bytes(self) -> int:
        """What is kept between kernels."""
        return sum(buffer.nbytes for buffer in self._recorder.buffers.values())

    def __call__(self, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """What the layers make of x, until the next call. x: [num_tokens, hidden_size] -> the same shape."""
        assert isinstance(attend, NativeAttention)
        num_rows = len(x)
        self._x[:num_rows] = x
        self._positions[:num_rows] = positions
        self._attend.become(attend)
        for calls in self._layers:
            self._on_layer()
            self._kernels.run(calls, len(calls), num_rows)
        return self._out[:num_rows]


def recorded_bytes(config: DecoderConfig, dtype: torch.dtype) -> int:
    """What is kept between kernels, at most."""
    heads = (config.num_heads + config.num_kv_heads) * config.head_dim
    # Of two layers: norms, products, sums; heads as projected, normed, turned, joined; both halves of the
    # feed-forward network, and what comes of them.
    row = 2 * (8 * config.hidden_size + 4 * heads + 3 * config.feed_forward_size)
    entering = config.hidden_size * dtype.itemsize + torch.int64.itemsize
    return MAX_ROWS * (row * dtype.itemsize + entering)


class _LayerRecorder:
    """A `Recorder` that takes down one layer after another."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        """known: what layers may read, beside what kernels give."""
        self._addresses = {tensor.data_ptr() for tensor in known}
        self.buffers: dict[object, Tensor] = {}
        self._words: list[object] = []
        self._calls: list[_Call] = []
        self._layer = 0
        self._place = 0  # among the layer's results

    def empty(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Zeros. A layer reads what it made and the last layer's result: the memory of two serves all."""
        key = (self._layer % 2, self._place, shape, like.dtype)
        self._place += 1
        if key not in self.buffers:
            self.buffers[key] = like.new_zeros(shape)
            self._addresses.add(self.buffers[key].data_ptr())
        return self.buffers[key]

    def add(self, function: int, rows: int, words: list[int], tensors: list[Tensor]) -> None:
        """Raises `_NotRecordable` if a tensor is neither known nor a kernel's result."""
        self.check(tensors)
        if rows % MAX_ROWS:
            raise _NotRecordable
        kept = (ctypes.c_int64 * len(words))(*words)
        self._words.append(kept)
        self._calls.append(_Call(function, ctypes.addressof(kept), rows // MAX_ROWS))

    def check(self, tensors: Iterable[Tensor]) -> None:
        """Raises `_NotRecordable` if one is neither known nor a kernel's result."""
        if any(tensor.data_ptr() not in self._addresses for tensor in tensors):
            raise _NotRecordable

    def take(self) -> ctypes.Array[_Call]:
        """The calls of the layer that ends here."""
        calls = (_Call * len(self._calls))(*self._calls)
        self._calls.clear()
        self._layer += 1
        self._place = 0
        return calls
