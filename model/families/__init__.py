"""The families of models: each file turns one `model_type`'s folder into ours. This one finds them.

Files whose names begin with an underscore hold what several families share.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, cast

from torch import Tensor

from model.config import DecoderConfig
from model.families._fields import ConfigJson

# Names that no file of Python can have.
_FILES = {"openai-gpt": "openai_gpt"}


class Family(Protocol):
    """What each file of this package defines."""

    FIELDS: type[ConfigJson]  # what of a config.json is honoured
    FIXED: Mapping[str, object]  # what of it must be absent, or as here, beside what holds for all

    def decoder_config(self, config: Mapping[str, Any]) -> DecoderConfig:
        """Translate a config.json. Raises `ValueError` naming the field that cannot be honoured."""
        ...

    def parameters(self, name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
        """Translate one tensor of a checkpoint into the decoder's parameters: (name, tensor) pairs.

        A tensor that has no place comes out under a name that no parameter has; one that is not needed
        does not come out.
        """
        ...


def known_families() -> list[str]:
    """Every `model_type` that has a file here."""
    files = {module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")}
    return sorted(files - set(_FILES.values()) | set(_FILES))


def family_of(model_type: object) -> Family:
    """The family of a config.json's `model_type`. Raises `ValueError` naming the nearest known one."""
    known = known_families()
    if not isinstance(model_type, str) or model_type not in known:
        near = difflib.get_close_matches(str(model_type), known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"model_type {str(model_type)[:100]!r} is not known; known: {', '.join(known)}{hint}"
        )
    return cast(Family, importlib.import_module(f"{__name__}.{_FILES.get(model_type, model_type)}"))
