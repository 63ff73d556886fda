"""Compiles the native kernels: each path with its instruction set's flags, all in one library.

Decides which paths there are. Which of them a machine has is asked when the library is opened. Uses the
standard library alone: it runs while the package is built. `python -m model.kernels.build` compiles anew.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
LIBRARY = HERE / "native.so"

_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni")
_AVX512_BF16 = (*_AVX512, "-mavx512bf16")
_AMX = (*_AVX512_BF16, "-mamx-tile", "-mamx-bf16", "-mamx-int8")
# The instruction sets are named, not taken from the machine: one library runs everywhere, and virtual
# machines do not always say what they are.
X86_PATHS = {"avx2": _AVX2, "avx512": _AVX512, "avx512_bf16": _AVX512_BF16, "amx": _AMX}

# Fused operations are written out where they are wanted: elsewhere they would depend on the compiler.
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden")


def compile_library(
    library: Path = LIBRARY, compiler: str = "g++", flags: tuple[str, ...] = (), main: Path | None = None
) -> Path:
    """Compile to `library`, with more flags if given; with the source `main`, to a program of both.

    Raises `OSError` with what the compiler said.
    """
    command = [compiler, *FLAGS, *flags]
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    with tempfile.TemporaryDirectory() as folder:
        objects = [Path(folder, "library.o")]
        jobs = [([str(HERE / "library.cpp")], objects[0])]
        for path, options in {"plain": (), **(X86_PATHS if is_x86 else {})}.items():
            objects.append(Path(folder, f"{path}.o"))
            jobs.append(([*options, "-fopenmp", f"-DPATH={path}", str(HERE / "path.cpp")], objects[-1]))
        running = [
            subprocess.Popen(
                [*command, "-c", *arguments, "-o", str(target)], stderr=subprocess.PIPE, text=True
            )
            for arguments, target in jobs
        ]
        for process in running:
            _, said = process.communicate()
            if process.returncode:
                raise OSError(f"{' '.join(process.args)}: {said}")  # type: ignore[arg-type]
        made = library.with_suffix(f".{os.getpid()}")
        command += ["-shared" if main is None else str(main), "-fopenmp", *map(str, objects), "-o", str(made)]
        linked = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if linked.returncode:
            raise OSError(f"{' '.join(command)}: {linked.stderr}")
        made.replace(library)  # whole, or not at all: a server may be opening it
    return library


if __name__ == "__main__":
    try:
        if len(sys.argv) > 2:  # PROGRAM SOURCE [FLAG ...]
            program, main = map(Path, sys.argv[1:3])
            print(compile_library(program, flags=tuple(sys.argv[3:]), main=main))
        else:
            print(compile_library())
    except OSError as error:
        sys.exit(str(error))
