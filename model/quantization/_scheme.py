"""What a file of this package says of checkpoints in its format, and what several of them need.

Knows nothing of models' families: a layer is what its stored name says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import torch
from torch import Tensor

from model.quantization.linear import QuantizedLinear

Packed = dict[str, Tensor]  # a module's tensors by name, or the `weight` alone if it is decoded at load

NumInputs = Callable[[int], int]


@dataclass(frozen=True, slots=True)
class Scheme:
    """A format of stored weights."""

    name: str
    module: type[QuantizedLinear] | None  # what holds the weights; None: they are decoded at load
    # The endings of a layer's tensors; the first is one that only quantized layers have.
    leaves: tuple[str, ...]
    # The tensors of one layer, by ending, and how many inputs it has with so many weights, where no shape
    # tells that -> what is held. Works without memory, too.
    # Raises `ValueError` with what does not fit.
    decode: Callable[[Mapping[str, Tensor], NumInputs], Packed]
    joint: str = "."  # between a layer's name and its tensors' endings
    weight: str = ".weight"  # what follows a layer's name where it is not quantized


T = TypeVar("T", bound=msgspec.Struct)


def read_fields(config: Mapping[str, Any], kind: type[T], harmless: str) -> T:
    """A `quantization_config` as its format's fields; those in `harmless` change no result.

    Raises `ValueError` naming the field that is unknown, or of a value that is not supported.
    """
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    for name, value in config.items():
        if name not in known and name not in harmless.split() and value not in (None, False, [], {}):
            raise ValueError(f"{name} is {str(value)[:100]}, which is not supported")
    return msgspec.convert({name: config[name] for name in known if config.get(name) is not None}, kind)


Dtypes = torch.dtype | tuple[torch.dtype, ...]


def expect(parts: Mapping[str, Tensor], **dtypes: Dtypes) -> list[Tensor]:
    """The tensors with these endings. Raises `ValueError` if one is missing or of another dtype."""
    found = []
    for name, allowed in dtypes.items():
        kinds = allowed if isinstance(allowed, tuple) else (allowed,)
        if name not in parts:
            raise ValueError(f"belongs to a layer without {name!r}")
        if parts[name].dtype not in kinds:
            names = " or ".join(str(kind).removeprefix("torch.") for kind in kinds)
            raise ValueError(
                f"belongs to a layer whose {name!r} is {str(parts[name].dtype)[6:]}, must be {names}"
            )
        found.append(parts[name])
    return found


FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def unpack_int32(words: Tensor, bits: int) -> Tensor:
    """Integers of `bits` bits, the lowest first, out of the words of dimension 0 as one stream of bits.

    words: [n, ...], int32 -> [32 n // bits, ...], uint8. Raises `ValueError` if they are no whole number.
    """
    if len(words) * 32 % bits or (32 % bits and len(words) % bits):
        raise ValueError(f"has {len(words)} words of 32 bits, which hold no whole number of {bits} bits each")
    words_per_turn = bits if 32 % bits else 1  # after so many the integers begin at bit 0 again
    turns = words.unflatten(0, (-1, words_per_turn))
    values = []
    for first in range(0, 32 * words_per_turn, bits):
        word, shift = divmod(first, 32)
        value = turns[:, word] >> shift
        if shift + bits > 32:
            value = (value & ((1 << (32 - shift)) - 1)) | (turns[:, word + 1] << (32 - shift))
        values.append((value & ((1 << bits) - 1)).to(torch.uint8))
    return torch.stack(values, 1).flatten(0, 1)


def signed(values: Tensor, middle: int) -> Tensor:
    """Unsigned integers of up to 8 bits, less `middle`: int8."""
    return (values.to(torch.int16) - middle).to(torch.int8)


def order_of(groups: Tensor, in_features: int, num_groups: int) -> Tensor:
    """The inputs, group by group. groups: [in_features]. Raises `ValueError` unless all have one size."""
    if groups.shape != (in_features,):
        raise ValueError(
            f"belongs to a layer with groups for {list(groups.shape)} inputs, expected {in_features}"
        )
    if not groups.is_meta:
        sizes = torch.bincount(groups.clamp(0, num_groups), minlength=num_groups)
        if not torch.equal(sizes, sizes.new_full((num_groups,), in_features // num_groups)):
            raise ValueError("belongs to a layer whose groups have different sizes")
    return torch.argsort(groups, stable=True)
