"""How a batch and a machine's cores are shared out, and the page on which ranks note that they wait."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import xpcnn
from xpcnn.backend.numpy import cores, threads
from xpcnn.data import DataLoader, Normalize, ToFloat
from xpcnn.data.compose import Compose, takes_images_singly
from xpcnn.distributed import board, watcher
from xpcnn.errors import BackendError, ConfigError
from xpcnn.functional.part import part_of


@pytest.mark.parametrize("total", [1, 3, 8, 128, 129])
@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_parts_are_even_in_order_and_whole(total, size):
    parts = [part_of(total, rank, size) for rank in range(size)]
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(total))
    sizes = [part.size for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert all(part.images == (slice(part.start, part.stop) if part.size else slice(0, 1)) for part in parts)


def images(count=23):
    return np.arange(count * 4, dtype="float32").reshape(count, 1, 2, 2)


def own(batch):
    """Depends on the whole batch."""
    return batch - batch.mean()


@pytest.mark.parametrize("transform", [None, Compose(ToFloat(), Normalize(0.5, 2.0)), own])
def test_a_loader_gives_parts_of_the_batches_that_it_would_give(transform):
    def made():
        return DataLoader(images(), np.arange(23), 5, seed=3, transform=transform)

    whole = list(made())
    for rank in range(3):
        for (x, labels), (x_part, labels_part, part) in zip(
            whole, made().parts(lambda total, rank=rank: part_of(total, rank, 3)), strict=True
        ):
            assert part.total == len(labels)
            np.testing.assert_array_equal(x_part, x[part.images])
            np.testing.assert_array_equal(labels_part, labels[part.images])


def test_what_the_library_does_to_images_one_by_one_is_known():
    assert takes_images_singly(Compose(ToFloat(), Normalize(0.5, 2.0)))
    assert not takes_images_singly(own)
    assert not takes_images_singly(Compose(ToFloat(), own))


def test_a_loader_keeps_its_place_over_parts():
    whole, shared = (DataLoader(images(), np.arange(23), 5, seed=3) for _ in range(2))
    batches = iter(whole)
    parts = shared.parts(lambda total: part_of(total, 1, 2))
    for _ in range(2):
        next(batches)
        next(parts)
    assert whole.state_dict() == shared.state_dict()


@pytest.fixture
def _undivided(monkeypatch):
    monkeypatch.setattr(cores, "_granted", None)
    monkeypatch.setattr(cores, "_sharers", 1)


@pytest.mark.usefixtures("_undivided")
@pytest.mark.parametrize(
    ("mine", "masks", "expected"),
    [
        (range(8), [range(8)] * 2, 4),  # mpich binds no rank
        (range(8), [range(8)] * 3, 2),
        (range(2), [range(2)] * 4, 1),
        ([3], [[0], [1], [2], [3]], 1),  # Open MPI binds each to a core
        (range(4), [range(4), range(4, 8)], 4),  # as Slurm's --cpus-per-task
    ],
)
def test_ranks_share_the_cores_that_they_may_use(monkeypatch, mine, masks, expected):
    monkeypatch.setattr(cores, "_scheduled", lambda: len(mine))
    monkeypatch.setattr(cores, "quota", lambda: None)
    for name in ("XPCNN_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    pool = threads.ThreadPool()
    assert pool.size == (min(len(mine), 4) if threads.has_lock() else len(mine))
    assert cores.divide(mine, masks) == expected
    pool.reconsider()
    assert pool.size == expected
    pool.size = 64
    assert pool.size == expected  # what is asked for is no more than there is
    pool.reconsider()
    assert pool.size == expected


@pytest.mark.usefixtures("_undivided")
def test_a_quota_is_shared_too(monkeypatch):
    monkeypatch.setattr(cores, "_scheduled", lambda: 8)
    monkeypatch.setattr(cores, "quota", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores.divide(range(8), [range(8)] * 2)
    assert cores.default_threads() == 2


def test_board_and_watcher_read_one_page():
    for name in ("HEADER", "LINE", "SPOKEN", "RANK", "PROCESS", "PHASE", "COUNT", "SINCE"):
        assert getattr(board, name) == getattr(watcher, name)
    for name in ("WORKING", "WAITING", "ENDING", "SAID"):
        assert getattr(board, name) == getattr(watcher, name)


@pytest.mark.skipif(os.name != "posix", reason="there is no board on Windows")
def test_one_rank_speaks():
    file, path, is_file = board.create(2)
    other = os.open(path, os.O_RDWR)
    first, second = board.Board(file, 2, 0, 6), board.Board(other, 2, 1, 7)
    first.wait()
    seen = watcher.Watcher(file, 2, 600.0)
    assert [seen.word(line, watcher.RANK) for line in range(2)] == [6, 7]
    assert [seen.word(line, watcher.PHASE) for line in range(2)] == [watcher.WAITING, watcher.WORKING]
    assert [seen.word(line, watcher.COUNT) for line in range(2)] == [1, 0]
    first.go_on()
    assert seen.word(0, watcher.PHASE) == watcher.WORKING
    assert second.claim()
    assert not first.claim()
    assert seen.word(1, watcher.PHASE) == watcher.SAID
    os.close(other)
    if is_file:
        os.unlink(path)


RANK = "import os, sys; sys.stdin.readline(); os.close(int(sys.argv[1])); print(flush=True); sys.stdin.readline()"


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="ranks are looked at one by one")
def test_who_let_go_of_its_files_first_is_named_though_another_has_ended_before_it(capfd):
    file, _, _ = board.create(2)
    ends, places = board.cords(2)
    held = [int(place.rpartition("/")[2]) for place in places]
    ranks = []
    for line in range(2):
        command = [sys.executable, "-I", "-S", "-c", RANK, str(held[line])]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        ranks.append(subprocess.Popen(command, pass_fds=(held[line],), **pipes))
        os.close(held[line])
        page = board.Board(file, 2, line, 6 + line)
        page.words[board.HEADER + line * board.LINE + board.PROCESS] = ranks[line].pid
    watching = threading.Thread(target=watcher.Watcher(file, 2, 600.0, ends).run)
    watching.start()
    ranks[1].stdin.write(b"\n")
    ranks[1].stdin.flush()
    ranks[1].stdout.readline()  # as one that ends: its files first, itself a moment later
    ranks[0].kill()
    time.sleep(0.3)
    ranks[1].kill()
    watching.join(20)
    said = capfd.readouterr().err
    for each in ranks:
        each.communicate()
    assert said.startswith(f"xpcnn: rank 7 (process {ranks[1].pid}) was killed by SIGKILL (9); the job ends")
    assert said.count("\n") == 1
    for descriptor in (file, *ends):
        os.close(descriptor)


def test_without_mpi4py_one_line_says_what_to_install(monkeypatch):
    from xpcnn.distributed import start

    monkeypatch.setattr(start, "_world", None)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(BackendError, match=r'needs mpi4py, which is not installed; pip install "\.\[mpi\]"') as caught:
        xpcnn.distributed.init()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf"])
def test_a_timeout_is_a_number_of_seconds(monkeypatch, value):
    from xpcnn.distributed import start

    monkeypatch.setattr(start, "_world", None)
    monkeypatch.setenv("XPCNN_DISTRIBUTED_TIMEOUT", value)
    with pytest.raises(ConfigError, match="XPCNN_DISTRIBUTED_TIMEOUT: expected seconds above 0"):
        xpcnn.distributed.init()


@pytest.mark.parametrize("value", ["-1", "1e6", "many", "1.5"])
def test_buckets_are_of_whole_bytes(monkeypatch, value):
    from xpcnn.distributed import start

    monkeypatch.setattr(start, "_world", None)
    monkeypatch.setenv("XPCNN_BUCKET_BYTES", value)
    with pytest.raises(ConfigError, match="XPCNN_BUCKET_BYTES: expected bytes, 0 for none"):
        xpcnn.distributed.init()
