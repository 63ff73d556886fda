"""How the package is built: with the native kernels where there is a compiler, and without them elsewhere."""

from __future__ import annotations

import os
import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelsHook(BuildHookInterface[Any]):
    """Compiles model/kernels/ into the wheel, or in place for an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it gathers files."""
        compile_library = runpy.run_path(str(Path(self.root, "model/kernels/build.py")))["compile_library"]
        try:
            library = compile_library(compiler=os.environ.get("CXX", "g++"))
        except OSError as error:
            self.app.display_warning(f"without native kernels, which are several times as fast: {error}")
            return
        build_data["artifacts"].append(f"/{library.relative_to(self.root)}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
