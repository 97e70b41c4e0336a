"""How many cores this process may use: the scheduler's mask, a container's quota of CPU time, what is asked for."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

from xpcnn.errors import ConfigError


def affinity() -> int:
    """Return how many cores the scheduler lets this process run on."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def default_threads() -> int:
    """Return how many threads to use where nobody says: cores, within the quota and OMP_NUM_THREADS."""
    limits = (affinity(), quota(), from_openmp())
    return max(1, min(limit for limit in limits if limit is not None))


def asked_for() -> int | None:
    """Return XPCNN_NUM_THREADS; None where it is unset or empty.

    Raises
    ------
    ConfigError
        It is no number of 1 or more.
    """
    value = os.environ.get("XPCNN_NUM_THREADS", "").strip()
    if not value:
        return None
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(f"XPCNN_NUM_THREADS: expected a number of 1 or more, got {value!r}")
    return int(value)


def from_openmp() -> int | None:
    """Return OMP_NUM_THREADS, the first of its levels; None where it is unset or says nothing that can be used.

    It is the machine's or another library's setting: what makes no sense in it is theirs to say.
    """
    value = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(value) if value.isdecimal() and int(value) > 0 else None


def quota(root: Path = Path("/")) -> int | None:
    """Return the cores that this process's control groups grant it, rounded up; None where they grant all.

    Both versions are read, and every group above the process's own: the tightest holds. In a container the path that
    the process is told may not be visible; its groups then lie at the top.

    Parameters
    ----------
    root : Path
        Of the file system.

    References
    ----------
    Linux kernel documentation: "Control Group v2", cpu.max; "CFS Bandwidth Control", cpu.cfs_quota_us.
    """
    shares = list(_shares(root))
    return max(1, math.ceil(min(shares))) if shares else None


def _shares(root: Path) -> Iterator[float]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        bases = ("sys/fs/cgroup", "sys/fs/cgroup/unified") if not controllers else _mounts(controllers)
        for base in bases:
            place = root / base / path.lstrip("/")
            for group in (place, *place.parents):
                share = _share_v1(group) if controllers else _share_v2(group)
                if share is not None:
                    yield share
                if group == root / base:
                    break


def _mounts(controllers: str) -> tuple[str, ...]:
    return tuple(f"sys/fs/cgroup/{name}" for name in dict.fromkeys((controllers, "cpu")))


def _share_v2(group: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        limit, period = (group / "cpu.max").read_text().split()[:2]
        if limit != "max" and int(limit) > 0 and int(period) > 0:
            return int(limit) / int(period)
    return None


def _share_v1(group: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        limit, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        if limit > 0 and period > 0:  # -1: no limit
            return limit / period
    return None
