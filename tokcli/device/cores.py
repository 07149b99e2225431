"""How many CPU cores a process may use, which is often fewer than the machine has."""

import contextlib
import os
from pathlib import Path


def cores(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """The cores that this process is bound to, or fewer where its control group has a quota; at least 1.

    Args:
        groups: where the kernel shows control groups.
        own: the file that names this process's group.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(bound, int(_quota(groups, own))))


def _quota(groups: Path, own: Path) -> float:
    """Cores of the narrowest quota on the way from this process's group to the root; as many as there are where none has one."""
    name = "/"
    with contextlib.suppress(OSError):
        name = next((line[3:].strip() for line in own.read_text().splitlines() if line.startswith("0::")), "/")
    inner = groups / name.strip("/")
    folders = [inner, *(folder for folder in inner.parents if folder.is_relative_to(groups))]
    found = [float(os.cpu_count() or 1)]
    for folder in folders:
        with contextlib.suppress(OSError, ValueError):  # version 2: "max 100000" or "150000 100000"
            quota, period = (folder / "cpu.max").read_text().split()
            found.append(float(quota) / float(period))
    with contextlib.suppress(OSError, ValueError):  # version 1: -1 for none
        quota, period = ((groups / "cpu" / f"cpu.cfs_{part}_us").read_text() for part in ("quota", "period"))
        found += [float(quota) / float(period)] if float(quota) > 0 else []
    return min(found)
