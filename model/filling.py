"""Stored tensors -> a decoder's parameters: where each is read to, and the format and place that it gets.

Knows nothing of files and of what a valid folder is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.checkpoint import StoredTensor
from model.counting import held_dtype, parameter_owners
from model.kernels.library import Kernels
from model.parameters import Parameters, Source, without_memory


class Filling:
    """Of one decoder, with all tensors of its checkpoint in turn."""

    def __init__(
        self, source: Source, dtype: torch.dtype, device: torch.device, kernels: Kernels | None
    ) -> None:
        """dtype: of the parameters, but for packed ones. kernels: which quantize, if they can."""
        self._source = source
        self._dtype = dtype
        self._device = device
        self._owners = parameter_owners(source.decoder)
        self._parameters = Parameters(source, kernels)
        tensors = source.checkpoint.tensors
        self._staying = {stored.name for stored in tensors if self._may_stay(stored)}
        longest = max((stored.num_bytes for stored in tensors if stored.name not in self._staying), default=0)
        self._place = torch.empty(longest + 1, dtype=torch.uint8)  # the 1: `_own` finds none alone there

    def memory_of(self, stored: StoredTensor) -> Tensor:
        """Where to read it to: memory of its own if it may stay there, or else one place for all.

        Fresh memory is zeroed by the system first, which takes longer than reading from its cache.
        -> [num_bytes], uint8
        """
        if stored.name in self._staying:
            return torch.empty(stored.num_bytes, dtype=torch.uint8)
        return self._place[: stored.num_bytes]

    def fill(self, stored: StoredTensor, tensor: Tensor) -> None:
        """Give what it holds to the parameters that it is for. Raises `LoadError`."""
        for name, part in self._parameters.of(stored, tensor):
            own = _own(part, self._held_dtype(name), self._device)
            if not _is_finite(own):
                raise stored.error("holds NaN or infinity")
            parameter = nn.Parameter(own, requires_grad=False)
            for module, attribute in self._owners[name]:
                setattr(module, attribute, parameter)

    def _held_dtype(self, name: str) -> torch.dtype:
        return held_dtype(*self._owners[name][0], self._dtype)

    def _may_stay(self, stored: StoredTensor) -> bool:
        """Whether it is a parameter as it is, or waits until its packed layer is whole."""
        if self._source.is_packed(stored):
            return True
        if self._device.type != "cpu":
            return False
        tensor = without_memory(stored)
        return any(
            part is tensor and self._held_dtype(name) == stored.dtype
            for name, part in self._parameters.of(stored, tensor)
        )


def _is_finite(tensor: Tensor) -> bool:
    """Whether there is neither NaN nor infinity. A sum of any is one; of huge numbers it may be."""
    if not tensor.is_floating_point():
        return True
    return math.isfinite(tensor.sum()) or all(math.isfinite(bound) for bound in torch.aminmax(tensor))


def _own(part: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The part in its format, on its device and in memory of its own: where it is, if it is alone there."""
    is_alone = part.is_contiguous() and part.untyped_storage().nbytes() == part.nbytes
    if is_alone and part.dtype == dtype and part.device == device:
        return part
    return torch.empty(part.shape, dtype=dtype, device=device).copy_(part)
