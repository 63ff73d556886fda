"""What the machine has: cores, caches, free memory; what of it this process holds. Decides nothing by it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import psutil
import torch

# Where a control group's memory is told: the folder, its limit, what it holds, and the part of that in
# memory.stat which is pages of files that the system drops when it needs room.
_CGROUP_V2 = ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
_CGROUP_V1 = (
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file",
)
_OF_CACHE = ("level", "shared_cpu_list", "size")  # the last in KiB, as in "2048K"


def num_cores() -> int:
    """The cores that this process may use, as far as the system can say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def library(device: torch.device) -> str:
    """PyTorch, and what it computes with: either may change the last bits of an exponential."""
    if device.type == "cuda":
        what = torch.cuda.get_device_name(device).replace(" ", "_")
    else:
        what = torch.backends.cpu.get_cpu_capability()
    return f"torch_{torch.__version__}_{what}".lower()


def settle_library() -> None:
    """Let MKL find out which processor this is while one thread alone calls it.

    The first call of its vector functions does so, for all of them. A second thread that calls one in that
    moment gets one made for any processor: half of a table of cosines was 7e-9 off, in 3 processes of 100.
    """
    torch.ones(1, device="cpu").exp()


def resident_bytes() -> int:
    """The memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)


def free_bytes(device: torch.device) -> int:
    """What can still be taken: of the GPU, or of the machine within the limits of its control groups."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(int(psutil.virtual_memory().available), *cgroup_free_bytes(), 2**63 - 1)


def cache_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """All last-level caches together: threads may read into several. 0 where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    caches: dict[tuple[int, str], int] = {}  # by level, and by the cores that share it
    for folder in root.glob("sys/devices/system/cpu/cpu[0-9]*/cache/index*"):
        with suppress(OSError, ValueError):  # a machine need not tell all of them
            level, cores, size = ((folder / name).read_text().strip() for name in _OF_CACHE)
            caches[int(level), cores] = int(size.removesuffix("K")) * 1024
    last = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last)


def cgroup_free_bytes(root: Path = Path("/")) -> Iterator[int]:
    """What each memory limit around this process leaves: its control group's, and those of all above it.

    A container sees its own group as the top, or (version 1) has a path that leads nowhere: what is not
    there limits nothing. Without control groups there is nothing.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        mount, *names = _CGROUP_V1 if controllers else _CGROUP_V2
        group = PurePosixPath(path.lstrip("/"))
        for folder in (group, *group.parents):
            yield from _left_in_group(root / mount / folder, *names)


def _left_in_group(folder: Path, limit_name: str, usage_name: str, droppable_name: str) -> Iterator[int]:
    try:
        limit, usage = (folder / limit_name).read_text(), (folder / usage_name).read_text()
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        yield max(0, int(limit) - int(usage) + int(stat.get(droppable_name, 0)))
    except (OSError, ValueError):
        return  # no such group, or "max": no limit
