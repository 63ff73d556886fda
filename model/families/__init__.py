"""The families of models: each file turns one `model_type`'s folder into ours. This one finds them."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, cast

from torch import Tensor

from model.config import DecoderConfig


class Family(Protocol):
    """What each file of this package defines."""

    def decoder_config(self, config: Mapping[str, Any]) -> DecoderConfig:
        """Translate a config.json. Raises `ValueError` naming the field that cannot be honoured."""
        ...

    def parameters(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Translate one tensor of a checkpoint into the decoder's parameters: (name, tensor) pairs."""
        ...


def known_families() -> list[str]:
    """Every `model_type` that has a file here."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def family_of(model_type: object) -> Family:
    """The family of a config.json's `model_type`. Raises `ValueError` naming the nearest known one."""
    known = known_families()
    if not isinstance(model_type, str) or model_type not in known:
        near = difflib.get_close_matches(str(model_type), known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"model_type {str(model_type)[:100]!r} is not known; known: {', '.join(known)}{hint}"
        )
    return cast(Family, importlib.import_module(f"{__name__}.{model_type}"))
