"""The native kernels, as functions of tensors. Chooses the path: the best that the machine has.

Every kernel gives a row the same bits however many rows there are, and on any number of threads; two paths
may differ. Knows nothing of the decoder: its modules take what they need of a `Kernels`.
"""

from __future__ import annotations

import ctypes
import logging
import struct
from typing import Any, Protocol

import torch
from torch import Tensor

from model.kernels.build import LIBRARY, X86_PATHS

PATHS = (*reversed(X86_PATHS), "plain")  # the fastest first
NO_PATH = "torch"  # the name of doing without

DTYPES = (torch.float32, torch.bfloat16)

logger = logging.getLogger(__name__)

# See path.cpp.
_NAMES = (
    "linear", "linear_int8", "linear_int4", "linear_packed", "quantize_int8", "quantize_int4", "activate",
    "add", "layer_norm", "rms_norm", "rotate", "attend",
)  # fmt: skip
_SCALES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as in vector.h
# Take more than one dtype, on purpose.
_MIXED = frozenset(
    {"linear_int8", "linear_int4", "linear_packed", "quantize_int8", "quantize_int4", "rotate", "attend"}
)
_LONG_VECTORS = frozenset({"avx512", "avx512_bf16", "amx"})  # paths of 16 lanes
_ACTIVATIONS = {"relu": 0, "gelu": 1, "gelu_tanh": 2, "silu": 3, "quick_gelu": 4}  # as in functions.h


class Recorder(Protocol):
    """Takes down what kernels are asked for, which then compute nothing. See recording.py."""

    def empty(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Memory for a result, of the dtype of `like`."""
        ...

    def add(self, function: int, rows: int, words: list[int], tensors: list[Tensor]) -> None:
        """A call: the address of a kernel, and its arguments; the tensors among them."""
        ...


class Kernels:
    """The kernels of one path. Tensors are float32 or bfloat16, all of a call's alike unless it says more."""

    def __init__(self, path: str) -> None:
        """Raises `OSError` if it was not compiled, and `ValueError` if this machine cannot run it."""
        library = ctypes.CDLL(str(LIBRARY))  # after torch, whose OpenMP it shares
        if not library.verbatim_supports(path.encode()):
            raise ValueError(f"this machine has not what the kernels of path {path!r} need")
        self.path = path
        self.recorder: Recorder | None = None
        # The calls that a recorder took down: their address, how many there are, the step's rows.
        self.run = _function(library, "verbatim_run", ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
        self._functions = {
            (name, dtype): _function(
                library,
                f"{path}_{name}_{str(dtype).removeprefix('torch.')}",
                ctypes.c_int64,  # rows
                ctypes.c_void_p,  # the other arguments
            )
            for name in _NAMES
            for dtype in DTYPES
        }
        self._functions["sha256", torch.uint8] = _function(
            library, f"{path}_sha256_uint8", ctypes.c_int64, ctypes.c_void_p
        )

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`x @ weight.T + bias`, summed in float32.

        x: [num_rows, in], weight: [out, in], bias: [out] -> [num_rows, out].
        """
        out = self._empty(x, x.shape[0], weight.shape[0])
        self._call("linear", x.shape[0], x, weight, bias, out, x.shape[1], weight.shape[0])
        return out

    def linear_int8(self, x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
        """`x @ (scales * codes).T + bias`, the rows of x rounded to int8: the bits of `Int8RowsLinear`.

        x: [num_rows, in], codes: [out, in], int8, scales: [out, 1], float32, bias: [out] -> [num_rows, out].
        """
        out = self._empty(x, x.shape[0], codes.shape[0])
        self._call("linear_int8", x.shape[0], x, codes, scales, bias, out, x.shape[1], codes.shape[0])
        return out

    def linear_int4(
        self, x: Tensor, codes: Tensor, grids: Tensor, scales: Tensor, bias: Tensor | None
    ) -> Tensor:
        """The same of a group's 16 integers: the bits of `Int4RowsLinear`, and of `linear_int8` with them.

        x: [num_rows, in], codes: [out, num_groups * 16], two in a byte; grids: [out, num_groups], uint8;
        scales: [out, 1], float32, bias: [out] -> [num_rows, out].
        """
        out = self._empty(x, x.shape[0], codes.shape[0])
        numbers = (x.shape[1], codes.shape[0])
        self._call("linear_int4", x.shape[0], x, codes, grids, scales, bias, out, *numbers)
        return out

    def linear_packed(
        self,
        x: Tensor,
        codes: Tensor,
        scales: Tensor,
        zeros: Tensor | None,
        table: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        """`x @ weight.T + bias`, with a `QuantizedLinear`'s weight: the bits of `linear` with it decoded.

        x: [num_rows, in], bias: [out]; the others as there, of 4 bits if the codes are unsigned, of 8 if not;
        a group is whole bytes -> [num_rows, out].
        """
        out = self._empty(x, x.shape[0], codes.shape[0])
        bits = 8 if codes.dtype == torch.int8 else 4
        num_groups = scales.shape[1]
        size = codes.shape[1] // num_groups * (8 // bits)
        tensors = (codes, scales, zeros, table, bias, out)
        numbers = (bits, _SCALES[scales.dtype], num_groups, size, x.shape[1], codes.shape[0])
        self._call("linear_packed", x.shape[0], x, *tensors, *numbers)
        return out

    def can_read(self, weight: Tensor) -> bool:
        """Whether `quantize_int8` and `quantize_int4` take it: torch has to read any other."""
        return weight.device.type == "cpu" and weight.dtype in DTYPES and weight.is_contiguous()

    def quantize_int8(self, weight: Tensor, codes: Tensor, scales: Tensor) -> None:
        """Fill codes, [out, in], int8, and scales, [out, 1]: the bits of int8.py. weight: [out, in]."""
        self._call("quantize_int8", len(weight), weight, codes, scales, weight.shape[1])

    def quantize_int4(self, weight: Tensor, codes: Tensor, grids: Tensor, scales: Tensor) -> None:
        """Fill what `Int4RowsLinear` holds: the bits of int4.py. weight: [out, in]."""
        self._call("quantize_int4", len(weight), weight, codes, grids, scales, weight.shape[1])

    @property
    def hashes_fast(self) -> bool:
        """Whether `sha256` is faster than hashlib's, which has the processor's own instructions for it."""
        return self.path in _LONG_VECTORS

    def sha256(self, messages: Tensor) -> bytes:
        """The SHA-256 of each message, one after the other. messages: [count, size], uint8.

        size is a multiple of 64, or a `ValueError`.
        """
        count, size = messages.shape
        if size % 64:
            raise ValueError(f"sha256: messages have {size} bytes, must be a multiple of 64")
        digests = messages.new_empty(count, 32)
        self._call("sha256", count, messages, digests, size)
        return digests.numpy().tobytes()

    def activate(self, name: str, x: Tensor, factor: Tensor | None) -> Tensor:
        """The activation of each number, times `factor`; computed in float32. x, factor: [num_rows, size]."""
        out = self._empty(x, *x.shape)
        self._call("activate", x.shape[0], x, factor, out, _ACTIVATIONS[name], x.shape[1])
        return out

    def add(self, x: Tensor, y: Tensor, scale: float) -> Tensor:
        """`x + scale * y`, each rounded. x, y: [num_rows, size] -> the same shape."""
        out = self._empty(x, *x.shape)
        self._call("add", x.shape[0], x, y, out, float(scale), x.shape[1])
        return out

    def layer_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        """Over the last dimension, computed in float32. x: [..., size], weight, bias: [size] -> like x."""
        out = self._empty(x, *x.shape)
        self._call("layer_norm", _num_rows(x), x, weight, bias, out, eps, x.shape[-1])
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        """Over the last dimension, computed in float32. x: [..., size], weight: [size] -> like x."""
        out = self._empty(x, *x.shape)
        self._call("rms_norm", _num_rows(x), x, weight, out, eps, float(offset), x.shape[-1])
        return out

    def rotate(
        self, heads: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, is_interleaved: bool
    ) -> Tensor:
        """The first numbers of each head turned by pairs, in float32.

        heads: [num_tokens, num_heads, head_dim]; cos, sin: [any position, num_pairs], float32; positions:
        [num_tokens], int64 -> like heads.
        """
        out = self._empty(heads, *heads.shape)
        num_tokens, num_heads, head_dim = heads.shape
        numbers = (is_interleaved, num_heads, head_dim, cos.shape[1])
        self._call("rotate", num_tokens, heads, cos, sin, positions, out, *numbers)
        return out

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, step: int, layer: int, window: int
    ) -> Tensor:
        """Write k and v to the cache, then look up each row of q among the keys of its sequence.

        q: [num_tokens, num_heads, head_dim]; k, v: [num_tokens, num_kv_heads, head_dim]; sinks: [num_heads],
        float32; step: the address of a `Step` (see attention.py) -> like q.
        """
        out = self._empty(q, *q.shape)
        self._call("attend", q.shape[0], q, k, v, sinks, out, step, layer, window)
        return out

    def _empty(self, like: Tensor, *shape: int) -> Tensor:
        return like.new_empty(shape) if self.recorder is None else self.recorder.empty(like, shape)

    def _call(self, name: str, rows: int, x: Tensor, *arguments: Tensor | float | None) -> None:
        """Call a kernel for x's dtype. Raises `TypeError` for a tensor that it would misread."""
        words: list[int] = []
        for each in (x, *arguments):
            if isinstance(each, Tensor):
                if not each.is_contiguous():
                    raise TypeError(f"{name}: a tensor is not contiguous")
                if each.dtype is not x.dtype and name not in _MIXED:
                    raise TypeError(f"{name}: dtypes are {x.dtype} and {each.dtype}, must be one")
                words.append(each.data_ptr())
            elif isinstance(each, float):
                words.append(int.from_bytes(struct.pack("<f", each), "little"))
            else:
                words.append(each or 0)
        function = self._functions[name, x.dtype]
        if self.recorder is None:
            function(rows, (ctypes.c_int64 * len(words))(*words))
        else:
            tensors = [each for each in (x, *arguments) if isinstance(each, Tensor)]
            self.recorder.add(ctypes.cast(function, ctypes.c_void_p).value or 0, rows, words, tensors)


def _num_rows(x: Tensor) -> int:
    """Those over the last dimension."""
    return x.numel() // x.shape[-1]


def available_paths() -> list[str]:
    """The paths that this machine can run, the fastest first; none where nothing was compiled."""
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError:
        return []
    return [path for path in PATHS if library.verbatim_supports(path.encode())]


def open_library(wish: str) -> Kernels | None:
    """The kernels of the path called `wish`, of the fastest if that is `auto`; None for plain torch.

    Raises `ValueError` if there is no such path here, or if it computes wrongly.
    """
    paths = available_paths()
    if wish == NO_PATH or (wish == "auto" and not paths):
        return None
    if wish != "auto" and wish not in paths:
        raise ValueError(f"kernels is {wish!r}, must be auto or one of {', '.join([*paths, NO_PATH])} here")
    for path in paths if wish == "auto" else [wish]:
        kernels = Kernels(path)
        if _is_right(kernels):
            return kernels
        if wish != "auto":
            raise ValueError(f"kernels is {wish!r}, which computes wrongly on this machine")
        logger.error("the kernels of path %r compute wrongly on this machine, and are not used", path)
    return None


def _is_right(kernels: Kernels) -> bool:
    """Whether small products are exact: of integers, so that they are in any order; and in int8, too."""
    generator = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        x, weight = (
            torch.randint(-8, 9, (rows, 75), generator=generator, dtype=torch.float64) for rows in (7, 37)
        )
        found = kernels.linear(x.to(dtype), weight.to(dtype), None)
        if not torch.equal(found, (x @ weight.t()).to(dtype)):
            return False
        x[:, 0] = 127.5  # by which rows are rounded in steps of 1, and this to 127
        found = kernels.linear_int8(x.to(dtype), weight.to(torch.int8), torch.ones(len(weight), 1), None)
        if not torch.equal(found, (x.clamp(max=127) @ weight.t()).to(dtype)):
            return False
    return True


def _function(library: ctypes.CDLL, name: str, *arguments: type) -> Any:
    function = getattr(library, name)
    function.argtypes = arguments
    function.errcheck = _checked
    return function


def _checked(result: int, function: object, arguments: tuple[object, ...]) -> int:
    if result:
        raise MemoryError("there is no memory for a kernel's rows")
    return result
