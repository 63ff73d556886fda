"""The kernels of a path, by its name."""

from __future__ import annotations

import pytest

from model.kernels.library import Kernels


@pytest.fixture
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return Kernels(request.param)
