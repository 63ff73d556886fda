"""From a checkpoint's tensors to the decoder's parameters: gathered, decoded, renamed, quantized.

Decides which linear layers hold quantized weights, and gives the decoder the modules for them. A family sees
a layer's weight whatever its format: codes and scales have a row for each output, as the weight has, so
that what splits a fused weight splits them, too. Everything here works on tensors without memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import NoReturn

import torch
from torch import Tensor, nn

from model.checkpoint import Checkpoint, StoredTensor
from model.decoder import Decoder
from model.families import Family
from model.folder import LoadError
from model.kernels.library import Kernels
from model.linear import Linear
from model.quantization import AT_LOAD, QuantizedLinear, Scheme, int8
from model.quantization.linear import SHARED

# Small, and their errors choose other experts: they stay as they are.
_KEPT = ("router", "shared_gate")


class Source:
    """A checkpoint, the decoder that it is for, and how the one becomes the other."""

    def __init__(
        self, family: Family, decoder: Decoder, checkpoint: Checkpoint, scheme: Scheme | None, quantize: str
    ) -> None:
        """scheme: how linear layers are stored, if not plainly. quantize: what becomes of plain ones.

        Raises `LoadError` if no tensor is stored by the scheme.
        """
        self.family = family
        self.decoder = decoder
        self.checkpoint = checkpoint
        self.scheme = scheme
        self.quantize = quantize
        self.shapes = {  # of each linear layer's weight
            path: module.weight.shape
            for path, module in decoder.named_modules()
            if isinstance(module, Linear)
        }
        self.places: dict[str, tuple[str, str]] = {}  # of a packed layer's tensors: (layer, ending)
        if scheme is not None:
            names = {stored.name for stored in checkpoint.tensors}
            mark = scheme.joint + scheme.leaves[0]
            layers = [name.removesuffix(mark) for name in names if name.endswith(mark)]
            if not layers:
                raise LoadError(
                    f"{checkpoint.name}: no tensor is called '*{mark}', as {scheme.name} has them"
                )
            self.places = {
                layer + scheme.joint + leaf: (layer, leaf)
                for layer in layers
                for leaf in scheme.leaves
                if layer + scheme.joint + leaf in names
            }

    def is_packed(self, stored: StoredTensor) -> bool:
        """Whether it is one of a packed layer's."""
        return stored.name in self.places


class Parameters:
    """What each stored tensor gives, in one reading of them all. Holds a packed layer's until it is whole."""

    def __init__(self, source: Source, kernels: Kernels | None = None) -> None:
        self._source = source
        self._kernels = kernels  # which quantize
        self._decoder = source.decoder
        self._at_load = AT_LOAD.get(source.quantize)
        self._num_leaves = Counter(layer for layer, _ in source.places.values())
        self._gathered: dict[str, dict[str, Tensor]] = {}

    def of(self, stored: StoredTensor, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The parameters that are complete with this tensor: (name, tensor) pairs."""
        if not self._source.is_packed(stored):
            for name, part in self._translated(stored, stored.name, tensor):
                yield from self._quantized(name, part)
            return
        layer, leaf = self._source.places[stored.name]
        parts = self._gathered.setdefault(layer, {})
        parts[leaf] = tensor
        if len(parts) == self._num_leaves[layer]:
            del self._gathered[layer]
            yield from self._decoded(stored, layer, parts)

    def install(self) -> None:
        """Give the decoder a module without memory in the place of each linear layer that is quantized."""
        scheme = self._source.scheme
        modules: dict[str, dict[str, Tensor]] = {}
        stored_of: dict[str, StoredTensor] = {}
        biased = set()
        for stored in self._source.checkpoint.tensors:
            if self._source.is_packed(stored):
                for name, part in self.of(stored, without_memory(stored)):
                    path, _, component = name.rpartition(".")
                    modules.setdefault(path, {})[component] = part
                    stored_of[path] = stored
            elif scheme is not None and stored.name.endswith(".bias"):
                for name, _ in self._translated(stored, stored.name, without_memory(stored)):
                    biased.add(name.removesuffix(".bias"))  # some writers add one that the model has not
        for path, linear in self._linears():
            packed = modules.get(path, {})
            if "codes" in packed and scheme is not None and scheme.module is not None:
                kind, has_bias = scheme.module, linear.bias is not None or path in biased
                shape = [len(packed["codes"]), packed["codes"].shape[1] * kind.CODES_PER_BYTE]
                if shape != list(linear.weight.shape):
                    _refuse(stored_of[path], f"gives {path!r} {shape}, expected {list(linear.weight.shape)}")
            elif self._at_load is not None and self._is_quantizable(path, linear):
                kind, packed, has_bias = (
                    self._at_load[0],
                    self._at_load[1](linear.weight, None),
                    linear.bias is not None,
                )
            else:
                continue
            try:
                self._decoder.set_submodule(path, kind(linear.weight.shape[1], packed, has_bias))
            except ValueError as error:
                _refuse(stored_of[path], str(error))
        if self._at_load is not None and self._decoder.config.is_output_tied:
            self._install_table()

    def _install_table(self) -> None:
        """A tied table: int8 even where layers have fewer bits: a row is all that stands for a token."""
        embedding, output = self._decoder.embedding, self._decoder.output
        table = int8.Int8RowsLinear(
            output.weight.shape[1], int8.quantize(output.weight), output.bias is not None
        )
        del embedding.weight
        embedding.table = table
        self._decoder.set_submodule("output", table)

    def _linears(self) -> list[tuple[str, Linear]]:
        return [(path, module) for path, module in self._decoder.named_modules() if type(module) is Linear]

    def _is_quantizable(self, path: str, linear: Linear) -> bool:
        """The tied output is one table with the embedding."""
        is_tied = linear is self._decoder.output and self._decoder.config.is_output_tied
        return not is_tied and path.rpartition(".")[2] not in _KEPT

    def _quantized(self, name: str, part: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The parameter as it is, or what stands for it if its layer is quantized at load."""
        path, _, component = name.rpartition(".")
        module, quantize = self._module(path), self._at_load and self._at_load[1]
        if module is self._decoder.embedding and self._decoder.embedding.table is not None:
            path, module, quantize = f"{path}.table", self._decoder.embedding.table, int8.quantize
        elif module is self._decoder.embedding.table and component == "bias":
            name = "embedding.table.bias"
        # One of another shape goes as it is: whoever puts it in its place will say which is expected.
        if (
            quantize is not None
            and component == "weight"
            and isinstance(module, QuantizedLinear)
            and part.shape == (module.out_features, module.in_features)
        ):
            for own, tensor in quantize(part, self._kernels).items():
                yield f"{path}.{own}", tensor
        else:
            yield name, part

    def _decoded(
        self, stored: StoredTensor, layer: str, parts: dict[str, Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        """What all of a quantized layer's tensors give."""
        scheme = self._source.scheme
        assert scheme is not None
        weight = layer + scheme.weight
        try:
            packed = scheme.decode(parts, partial(self._num_inputs, weight))
        except (ValueError, RuntimeError, IndexError) as error:
            _refuse(stored, " ".join(str(error).split())[:300])
        modules = []
        for component, tensor in packed.items():
            if component in SHARED:
                continue
            for name, part in self._translated(stored, weight, tensor):
                if component == "weight":
                    yield from self._quantized(name, part)
                else:
                    modules.append(name.removesuffix(".weight"))
                    yield f"{modules[-1]}.{component}", part
        for component in SHARED & packed.keys():
            for module in dict.fromkeys(modules):
                yield f"{module}.{component}", packed[component]

    def _num_inputs(self, weight: str, num_weights: int) -> int:
        """Those of a stored layer with so many weights: it must fill the decoder's layers that it is for."""
        shapes = self._source.shapes
        for num_inputs in sorted({shape[1] for shape in shapes.values()}):
            if num_weights % num_inputs:
                continue
            tried = torch.empty(num_weights // num_inputs, num_inputs, device="meta")
            try:
                parts = list(self._source.family.parameters(weight, tried, self._decoder.config))
            except (RuntimeError, TypeError, IndexError):
                continue  # of another number of inputs
            if all(shapes.get(name.removesuffix(".weight")) == part.shape for name, part in parts):
                return num_inputs
        raise ValueError(f"belongs to a layer of {num_weights} weights, as this model has none")

    def _module(self, path: str) -> nn.Module | None:
        try:
            return self._decoder.get_submodule(path)
        except AttributeError:
            return None

    def _translated(self, stored: StoredTensor, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """What the family makes of a tensor, whatever its shape makes the family do."""
        try:
            yield from self._source.family.parameters(name, tensor, self._decoder.config)
        except (RuntimeError, TypeError, IndexError) as error:
            reason = " ".join(str(error).split())[:100]
            raise stored.error(f"has shape {list(stored.shape)}, which does not fit: {reason}") from error


def without_memory(stored: StoredTensor) -> Tensor:
    """A tensor of this shape and dtype."""
    return torch.empty(stored.shape, dtype=stored.dtype, device="meta")


def _refuse(stored: StoredTensor, what: str) -> NoReturn:
    raise stored.error(what)
