"""The paths of native kernels that this machine can run, for tests to go through."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.kernels.library import NO_PATH, available_paths

AVAILABLE = available_paths()
PATHS = pytest.mark.parametrize(
    "path", [pytest.param(NO_PATH), *(pytest.param(path) for path in AVAILABLE)]
)  # plain torch among them
# Plain torch, and the fastest path: what a machine serves without and with a compiler.
ON_AND_OFF = pytest.mark.parametrize("path", [NO_PATH, *AVAILABLE[:1]])
EACH = pytest.mark.parametrize(
    "kernels",
    [pytest.param(path, id=path) for path in AVAILABLE]
    or [pytest.param("", marks=pytest.mark.skip("no native kernels: there was no compiler"))],
    indirect=True,
)
DTYPES = (torch.float32, torch.bfloat16)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one dtype are alike to the last bit, NaN included."""
    kind = torch.int32 if a.dtype == torch.float32 else torch.int16
    return a.dtype == b.dtype and torch.equal(a.view(kind), b.view(kind))
