"""The native kernels, as functions of tensors. Chooses the path: the best that the machine has.

Every kernel gives a row the same bits however many rows there are, and on any number of threads; two paths
may differ. Knows nothing of the decoder: its modules take what they need of a `Kernels`.
"""

from __future__ import annotations

import ctypes
import logging

import torch
from torch import Tensor

from model.kernels.build import LIBRARY, X86_PATHS

PATHS = (*reversed(X86_PATHS), "plain")  # the fastest first
NO_PATH = "torch"  # the name of doing without

DTYPES = {torch.float32: 0, torch.bfloat16: 1}  # as in vector.h

logger = logging.getLogger(__name__)

_POINTER, _INT32, _INT64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


class Kernels:
    """The kernels of one path."""

    def __init__(self, path: str) -> None:
        """Raises `OSError` if it was not compiled, and `ValueError` if this machine cannot run it."""
        library = ctypes.CDLL(str(LIBRARY))  # after torch, whose OpenMP it shares
        if not library.verbatim_supports(path.encode()):
            raise ValueError(f"this machine has not what the kernels of path {path!r} need")
        self.path = path
        self._linear = _function(library, path, "linear", [*[_POINTER] * 4, _INT32, *[_INT64] * 3])

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`x @ weight.T + bias`, summed in float32.

        x: [num_rows, in], weight: [out, in], contiguous, bias: [out], all float32 or bfloat16
        -> [num_rows, out].
        """
        x = x.contiguous()
        out = x.new_empty(x.shape[0], weight.shape[0])
        self._linear(
            x.data_ptr(),
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            DTYPES[x.dtype],
            *x.shape,
            weight.shape[0],
        )
        return out


def available_paths() -> list[str]:
    """The paths that this machine can run, the fastest first; none where nothing was compiled."""
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError:
        return []
    return [path for path in PATHS if library.verbatim_supports(path.encode())]


def open_library(wish: str) -> Kernels | None:
    """The kernels of the path called `wish`, of the fastest if that is `auto`; None for plain torch.

    Raises `ValueError` if there is no such path here.
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
        logger.error("the kernels of path %r compute wrongly on this machine, and are not used", path)
    return None


def _is_right(kernels: Kernels) -> bool:
    """Whether a small product is exact: of integers, so that it is in any order."""
    generator = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        x, weight = (
            torch.randint(-8, 9, (rows, 75), generator=generator, dtype=torch.float64) for rows in (7, 37)
        )
        found = kernels.linear(x.to(dtype), weight.to(dtype), None)
        if not torch.equal(found, (x @ weight.t()).to(dtype)):
            return False
    return True


def _function(library: ctypes.CDLL, path: str, name: str, types: list[type]) -> ctypes._NamedFuncPointer:
    function = getattr(library, f"{path}_{name}")
    function.argtypes = types
    function.restype = _INT32
    function.errcheck = _checked
    return function


def _checked(result: int, function: object, arguments: tuple[object, ...]) -> int:
    if result:
        raise MemoryError("no memory for a kernel's rows")
    return result
