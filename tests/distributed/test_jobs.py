"""Jobs of real ranks: what they compute, how they end when one cannot go on, and that they leave nothing behind.

Each needs mpi4py and an MPI (`nox -s distributed`). A fault ends a job within the seconds that a test states, with one
line that names the rank.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.distributed import jobs
from tests.distributed.jobs import Job, run
from tests.recipes.small import write_digits

pytestmark = [pytest.mark.distributed, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]
TRUST = os.environ.get("XPCNN_TRUST") == "1"
KILLS = 50 if TRUST else 3
PROGRAM = "-m", "tests.distributed.program"


def result(folder):
    with np.load(folder / "result.npz") as found:
        return {name: found[name] for name in found.files}


def trained(folder, size, *words, **options):
    folder.mkdir(exist_ok=True)
    ended = run(size, *PROGRAM, folder, *words, **options)
    assert ended.status == 0, ended.err
    assert f"done on {size} ranks" in ended.out
    return result(folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("alone"), 1)


def same(found, expected, eps=0.0):
    for name, value in expected.items():
        if name != "threads":
            np.testing.assert_allclose(found[name], value, rtol=eps, atol=eps, err_msg=name)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_end_where_one_does_and_twice_in_the_same_bits(tmp_path, alone, size):
    first = trained(tmp_path / "first", size)
    same(first, alone, 5e-5)
    same(trained(tmp_path / "second", size), first)
    assert first["threads"] == max(1, len(os.sched_getaffinity(0)) // size)


@pytest.mark.parametrize("size", [2, 4])
def test_sums_that_begin_within_backward_end_there_too(tmp_path, alone, size):
    first = trained(tmp_path / "first", size, XPCNN_BUCKET_BYTES="1")
    same(first, alone, 5e-5)
    same(trained(tmp_path / "second", size, XPCNN_BUCKET_BYTES="1"), first)


@pytest.mark.parametrize("size", [2, 4])
def test_synchronised_statistics_are_those_of_one_rank(tmp_path, size):
    same(trained(tmp_path / "ranks", size, "norm", "sync"), trained(tmp_path / "one", 1, "norm"), 5e-4)


def test_a_killed_job_goes_on_bit_by_bit_and_on_another_number_of_ranks(tmp_path, alone):
    whole = trained(tmp_path / "whole", 2)
    for size in (2, 4):
        folder = tmp_path / str(size)
        folder.mkdir()
        assert run(2, *PROGRAM, folder, "checkpoint", "fault-kill").status != 0
        found = trained(folder, size, "resume")
        same(found, whole, 0.0 if size == 2 else 5e-5)
        same(found, alone, 5e-5)


# --- faults -----------------------------------------------------------------------------------------------------------

ONE = r"xpcnn: rank 1 \(process \d+\)"
FAULTS = {
    # what happens: the line that says so, the seconds in which the job must have ended, start included
    "raise": (r"xpcnn: rank 1: no luck today; the job ends", 20),
    "memory": (r"xpcnn: rank 1: step 9: out of memory in layer .*", 30),
    "kill": (rf"{ONE} (was killed by SIGKILL \(9\)|has ended before its time); the job ends.*", 20),
    "crash": (rf"{ONE} (was killed by SIGSEGV \(11\)|has ended before its time).*", 20),
    "stop": (rf"{ONE} is stopped while others wait for it; the job ends.*", 25),
    "hang": (rf"{ONE} has not come for 2 s to where others wait for it.*", 25),
    "leave": (rf"{ONE} has come to the end of its program while others wait for it.*", 25),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("size", [2, 4])
def test_a_fault_ends_the_job_with_one_line_that_names_the_rank(tmp_path, fault, size):
    line, seconds = FAULTS[fault]
    words = ["greedy"] if fault == "memory" else []
    ended = run(size, *PROGRAM, tmp_path, f"fault-{fault}", *words, XPCNN_DISTRIBUTED_TIMEOUT="2")
    assert ended.status != 0
    assert len(ended.said()) == 1, ended.err
    assert re.fullmatch(line, ended.said()[0]), ended.err
    assert ended.seconds < seconds
    assert not (tmp_path / "result.npz").exists()


@pytest.mark.parametrize("way", [[], ["-m", "mpi4py"]])
def test_an_error_ends_a_job_of_either_launch(tmp_path, way):
    ended = run(2, *way, *PROGRAM, tmp_path, "fault-raise")
    assert ended.status != 0
    assert len(ended.said()) == 1, ended.err
    assert "ValueError: no luck today" in ended.err


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("other-version", r"xpcnn: rank [01]: rank 1: xpcnn: expected '.*' as rank 0 has it, got '0.0.1'.*"),
        ("other-data", r"xpcnn: rank [01]: rank 1: train data: expected 'crc .*' as rank 0 has it, got .*"),
        ("other-seed", r"xpcnn: rank [01]: rank 1: seed \(random state\): expected .* as rank 0 has it, got .*"),
    ],
)
def test_a_rank_that_is_not_like_the_others_is_named(tmp_path, word, line):
    ended = run(2, *PROGRAM, tmp_path, word)
    assert ended.status != 0
    assert len(ended.said()) == 1, ended.err
    assert re.fullmatch(line, ended.said()[0]), ended.err


def test_a_signal_to_one_rank_is_everyone_s_and_leaves_a_checkpoint(tmp_path, alone):
    ended = run(2, *PROGRAM, tmp_path, "checkpoint", "fault-term")
    assert ended.status != 0
    assert re.search(r"stopped after step \d+ .*checkpoint .* is written", ended.err), ended.err
    same(trained(tmp_path, 2, "resume"), alone, 5e-5)


def test_killed_at_random_moments(tmp_path, alone):
    """Any rank, the launcher included, at any moment: no job hangs, none is left, each goes on to the same end."""
    seed = int(time.time()) if TRUST else 1
    draw = random.Random(seed)
    whole = trained(tmp_path / "whole", 2)
    table = {"rank 0": 0, "rank 1": 0, "launcher": 0, "named": 0, "ended wrongly": 0}
    done = 0
    while done < KILLS:
        folder = tmp_path / f"run{done}"
        folder.mkdir()
        target = draw.choice([0, 1, 1, 0, None])
        job = Job(2, *PROGRAM, folder, "resume", "say", "slow")
        pids = {}
        for line in job.process.stdout:
            found = re.match(r"rank (\d) process (\d+) step (\d+)", line)
            if found:
                pids[int(found[1])] = int(found[2])
            if len(pids) == 2:
                break
        time.sleep(draw.uniform(0.0, 0.6))
        victim = job.process.pid if target is None else pids[target]
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
        ended = job.end(60)
        clean = job.leaves_nothing()
        done += 1
        table["launcher" if target is None else f"rank {target}"] += 1
        named = any(f"rank {target} (process {victim})" in line for line in ended.said())
        table["named"] += named
        found = trained(folder, 2, "resume")
        alike = all(np.array_equal(found[name], value) for name, value in whole.items())
        wrong = not clean or not alike or (target is not None and (ended.status == 0 or not named))
        if wrong and (folder / "result.npz").exists() and ended.status == 0 and clean and alike:
            wrong = False  # it was through before the signal came
        table["ended wrongly"] += wrong
    print(f"seed {seed}: {table}")
    assert table["ended wrongly"] == 0, table


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("digits") / "set")


@pytest.mark.parametrize("way", [["-m", "xpcnn"], ["-m", "mpi4py", "-m", "xpcnn"]])
def test_the_command_trains_with_several_ranks(tmp_path, digits, way):
    options = "train", "conv8", "--data", digits, "--epochs", "1", "--out"
    command = sys.executable, "-m", "xpcnn", *options, tmp_path / "one"
    single = subprocess.run(command, cwd=jobs.ROOT, capture_output=True, text=True, check=True)
    ended = run(2, *way, *options, tmp_path / "two", "--distributed")
    assert ended.status == 0, ended.err
    assert ended.out.splitlines()[-1] == single.stdout.splitlines()[-1]  # once, and the same
    assert ended.out.count("test accuracy") == 1
    assert ended.err.count("run folder") == 2
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


def test_the_command_goes_on(tmp_path, digits):
    options = "-m", "xpcnn", "train", "conv8", "--data", digits, "--out", tmp_path / "run", "--distributed"
    assert run(2, *options, "--epochs", "1").status == 0
    again = run(4, *options, "--resume")
    assert again.status == 0, again.err
    assert "4 ranks" in again.err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--epochs", "0"], "epochs: expected an integer of 1 or more, got 0"),
        (["--data", "nowhere"], "got 'nowhere'"),
        (["--epochs"], "expected one argument"),
    ],
)
def test_a_mistake_is_said_once(arguments, line):
    ended = run(4, "-m", "xpcnn", "train", "conv8", "--distributed", *arguments)
    assert ended.status != 0
    said = [each for each in ended.err.splitlines() if each.startswith("xpcnn")]
    assert len(said) == 1, ended.err
    assert line in said[0]


def test_another_seed_on_one_rank_is_named(tmp_path, digits):
    options = (
        sys.executable,
        "-m",
        "xpcnn",
        "train",
        "conv8",
        "--data",
        digits,
        "--distributed",
        "--out",
        str(tmp_path / "a"),
    )
    ended = run(0, "-n", "1", *options, "--seed", "0", ":", "-n", "1", *options, "--seed", "1")
    assert ended.status != 0
    assert len(ended.said()) == 1, ended.err
    assert "rank 1: seed: expected 0 as rank 0 has it, got 1" in ended.said()[0]


def test_more_ranks_than_cores_warns(tmp_path):
    count = len(os.sched_getaffinity(0)) + 1
    ended = run(count, *PROGRAM, tmp_path, PYTHONWARNINGS="default")
    assert f"{count} ranks on a machine that grants {count - 1} core" in ended.err
