"""How many cores this process may use: the scheduler's mask, a container's quota of CPU time, what is asked for."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence

from xpcnn.errors import ConfigError

MOST_PROCESSES = 4  # that play a recorded step together, the caller included; more were never measured
# What the ranks of this machine leave to this one (`divide`): cores of the scheduler's, and how many share the quota.
_granted: int | None = None
_sharers = 1


def affinity() -> int:
    """Return how many cores the scheduler, and the other ranks of a job, let this process run on."""
    return _scheduled() if _granted is None else min(_granted, _scheduled())


def _scheduled() -> int:
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def divide(mine: Sequence[int], masks: Sequence[Sequence[int]]) -> int:
    """Keep from now on to this process's share of the cores, one at least, and return it.

    Parameters
    ----------
    mine : sequence of int
        The cores that this process may run on.
    masks : sequence of sequence of int
        The same of every rank of the machine: a core that three may run on counts a third for each.
    """
    global _granted, _sharers
    share = sum(1 / sum(core in mask for mask in masks) for core in mine)
    _granted, _sharers = max(1, int(share + 1e-9)), len(masks)
    return _granted


def available() -> int:
    """Return how many cores the scheduler, the other ranks of a job and the quota leave to this process."""
    granted = quota()
    return affinity() if granted is None else max(1, min(affinity(), granted // _sharers))


def default_threads(most: int | None = None) -> int:
    """Return how many threads to use where nobody says: what is available, within OMP_NUM_THREADS, `most` at most."""
    return min(limit for limit in (available(), from_openmp(), most) if limit is not None)


def idle_ranks(threads: int) -> int:
    """Return how many processes of so many threads there are cores for; 1 in a job, or where somebody says how many."""
    if _granted is not None or asked_for() is not None or from_openmp() is not None:
        return 1
    return available() // threads


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


def quota(root: str | os.PathLike[str] = "/") -> int | None:
    """Return the cores that this process's control groups grant it, rounded up; None where they grant all.

    Both versions are read, and every group above the process's own: the tightest holds. In a container the path that
    the process is told may not be visible; its groups then lie at the top.

    Parameters
    ----------
    root : str or Path
        Of the file system.

    References
    ----------
    Linux kernel documentation: "Control Group v2", cpu.max; "CFS Bandwidth Control", cpu.cfs_quota_us.
    """
    shares = list(_shares(os.fspath(root)))
    return max(1, math.ceil(min(shares))) if shares else None


def _shares(root: str) -> Iterator[float]:
    try:
        lines = _text(root, "proc/self/cgroup").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        bases = ("sys/fs/cgroup", "sys/fs/cgroup/unified") if not controllers else _mounts(controllers)
        for base in bases:
            top = os.path.join(root, base)
            names = [name for name in path.split("/") if name]
            for depth in range(len(names), -1, -1):
                group = os.path.join(top, *names[:depth])
                share = _share_v1(group) if controllers else _share_v2(group)
                if share is not None:
                    yield share


def _mounts(controllers: str) -> tuple[str, ...]:
    return tuple(f"sys/fs/cgroup/{name}" for name in dict.fromkeys((controllers, "cpu")))


def _share_v2(group: str) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        limit, period = _text(group, "cpu.max").split()[:2]
        if limit != "max" and int(limit) > 0 and int(period) > 0:
            return int(limit) / int(period)
    return None


def _share_v1(group: str) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        limit, period = (int(_text(group, f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
        if limit > 0 and period > 0:  # -1: no limit
            return limit / period
    return None


def _text(folder: str, name: str) -> str:
    with open(os.path.join(folder, name)) as file:  # pathlib would take as long to import as half of this package
        return file.read()
