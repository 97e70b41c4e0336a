"""Joining the job that a launcher (`mpiexec`, `srun`) has started: MPI, the machine's watcher, what is shared out."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import warnings
from typing import Any

from xpcnn import random
from xpcnn.backend import get_backend, set_backend, share_cores
from xpcnn.backend.graph.code import levels_to_caller
from xpcnn.backend.numpy import cores
from xpcnn.distributed import ending, watcher
from xpcnn.distributed.board import ENDING, Board, cords, create
from xpcnn.distributed.communicator import Communicator
from xpcnn.errors import BackendError, ConfigError
from xpcnn.extras import install_line

_lock = threading.RLock()
_world: Communicator | None = None


def init() -> Communicator:
    """Join the job, and return the communicator of all its ranks; always the same one.

    Call it before anything is drawn or computed. It

    - gives all ranks the random state of rank 0 (`manual_seed` with the same seed on each keeps it so),
    - shares this machine's cores out to its ranks, each with a thread at least, and its devices where there are
      several,
    - lets a rank that raises end the job, with one message that names it, where MPI alone would hang, and
    - starts a small process on each machine that sees a rank killed (at once), stopped (10 seconds) or not coming to
      where others wait (XPCNN_DISTRIBUTED_TIMEOUT, 600 seconds), says which, and ends the job (Linux, macOS).

    Returns
    -------
    Communicator

    Raises
    ------
    BackendError
        mpi4py or an MPI is not there.
    ConfigError
        XPCNN_DISTRIBUTED_TIMEOUT is no number above 0, or XPCNN_BUCKET_BYTES no whole number.

    Examples
    --------
    `mpiexec -n 4 python -m mpi4py train.py`, or without `-m mpi4py`, with this in train.py::

        communicator = xpcnn.distributed.init()
        model = models.create("lenet5")
        trainer = Trainer(model, optim.SGD(model.parameters(), 0.1), CrossEntropyLoss(), communicator=communicator)
        trainer.fit(DataLoader(train.images, train.labels, 128))  # the batch of all ranks
    """
    global _world
    with _lock:
        if _world is None:
            _world = _join()
        return _world


def joined() -> Communicator | None:
    """Return the communicator where `init` has made it, else None."""
    return _world


def _join() -> Communicator:
    timeout, bucket_bytes = _timeout(), _bucket_bytes()
    mpi = _import_mpi()
    world = mpi.COMM_WORLD.Dup()
    here = world.Split_type(mpi.COMM_TYPE_SHARED)
    local_rank, local_size = here.Get_rank(), here.Get_size()
    board = _meet(here, local_rank, local_size, world.Get_rank(), timeout)
    made = Communicator(mpi, world, local_rank, local_size, board)
    if bucket_bytes is not None:
        made.bucket_bytes = bucket_bytes
    ending.watch_over(made, (lambda: board.set_phase(ENDING)) if board is not None else None)
    _share_cores(here, local_rank, local_size)
    backend = get_backend().spread(local_rank)
    if backend is not get_backend():
        set_backend(backend.name)
    random.set_state(_first_of(made, random.get_state()))
    return made


def _import_mpi() -> Any:
    advice = install_line("mpi")
    try:
        from mpi4py import MPI
    except ModuleNotFoundError as error:
        raise BackendError(f"distributed: needs mpi4py, which is not installed; {advice}") from error
    except (ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BackendError(f"distributed: mpi4py finds no MPI ({reason:.120}); {advice}") from error
    return MPI


def _timeout() -> float:
    value = os.environ.get("XPCNN_DISTRIBUTED_TIMEOUT", "").strip() or "600"
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < float("inf"):
        raise ConfigError(f"XPCNN_DISTRIBUTED_TIMEOUT: expected seconds above 0, got {value!r}")
    return seconds


def _bucket_bytes() -> int | None:
    value = os.environ.get("XPCNN_BUCKET_BYTES", "").strip()
    if value and not (value.isascii() and value.isdecimal()):
        raise ConfigError(f"XPCNN_BUCKET_BYTES: expected bytes, 0 for none, got {value!r}")
    return int(value) if value else None


def _first_of(communicator: Communicator, value: Any) -> Any:
    return json.loads(communicator.broadcast_bytes(json.dumps(value).encode()))


def _meet(here: Any, line: int, lines: int, rank: int, timeout: float) -> Board | None:
    """Share a page with the other ranks of this machine, and start its watcher."""
    if os.name != "posix":
        return None
    if line == 0:
        file, path, is_file = create(lines)
        ends, places = cords(lines)
    path, is_file, places = here.bcast((path, is_file, places) if line == 0 else None)
    if line:
        file = os.open(path, os.O_RDWR)
    if places:
        os.open(places[line], os.O_WRONLY)  # open for as long as this rank lives
    board = Board(file, lines, line, rank)
    here.Barrier()
    if line == 0:
        if is_file:
            os.unlink(path)
        for place in places:
            os.close(int(place.rpartition("/")[2]))
        command = [sys.executable, "-I", "-S", watcher.__file__, str(file), str(lines), str(timeout)]
        command += [" ".join(map(str, ends)), *watcher.segments_of(os.getpid())]  # the job may end before it has begun
        with contextlib.suppress(OSError):  # no more processes: the job goes on without
            subprocess.Popen(  # noqa: S603
                command,
                pass_fds=(file, *ends),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # who reads the job's output must not wait for it
                start_new_session=True,  # a launcher that ends the job must not end it first
                cwd="/",
            ).returncode = 0  # nobody waits for it
        for end in ends:
            os.close(end)
    return board


def _share_cores(here: Any, local_rank: int, local_size: int) -> None:
    """Give this rank its share of the machine's cores; warn where there are more ranks than these."""
    mask = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    masks = here.allgather(mask)
    share_cores(mask, masks)
    limits = (len({core for each in masks for core in each}), cores.quota())
    available = min(limit for limit in limits if limit is not None)
    if local_size > available and local_rank == 0:
        warnings.warn(
            f"{local_size} ranks on a machine that grants {available} core{'s' * (available != 1)}: they wait for each "
            f"other's turns; start {available} here at most",
            RuntimeWarning,
            stacklevel=levels_to_caller(),
        )
