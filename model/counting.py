"""A decoder's parameters: who holds each of them, how many numbers they stand for, what they take of memory.

Decides nothing of how they are stored or loaded.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from model.decoder import Decoder
from model.quantization import QuantizedLinear


def parameter_owners(decoder: Decoder) -> dict[str, list[tuple[nn.Module, str]]]:
    """For each parameter, by its first name, every (module, attribute) that holds it: two if tied."""
    names: dict[int, str] = {}
    owners: dict[str, list[tuple[nn.Module, str]]] = {}
    for prefix, module in decoder.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = names.setdefault(id(parameter), f"{prefix}.{attribute}" if prefix else attribute)
            owners.setdefault(name, []).append((module, attribute))
    return owners


def held_dtype(module: nn.Module, attribute: str, dtype: torch.dtype) -> torch.dtype:
    """A packed tensor's own, or else the model's."""
    is_packed = isinstance(module, QuantizedLinear) and attribute != "bias"
    return module.get_parameter(attribute).dtype if is_packed else dtype


def parameter_counts(decoder: Decoder) -> Iterator[tuple[str, int]]:
    """How many numbers each parameter stands for, shared ones once; none for a packed weight's scales."""
    for name, ((module, attribute), *_) in parameter_owners(decoder).items():
        if not isinstance(module, QuantizedLinear) or attribute == "bias":
            yield name, module.get_parameter(attribute).numel()
        elif attribute == "codes":
            yield name, module.in_features * module.out_features


def count_parameters(decoder: Decoder) -> int:
    """Parameters, shared ones once."""
    return sum(count for _, count in parameter_counts(decoder))


def count_weight_bytes(decoder: Decoder, dtype: torch.dtype) -> int:
    """What the parameters take once they are loaded, shared ones once."""
    return sum(
        getattr(module, attribute).numel() * held_dtype(module, attribute, dtype).itemsize
        for (module, attribute), *_ in parameter_owners(decoder).values()
    )
