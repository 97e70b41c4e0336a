"""Threads by default: what containers grant and OMP_NUM_THREADS says; no worker processes where Python is another."""

import sys

import pytest

import xpcnn
from xpcnn.backend.numpy import cores, threads, workers
from xpcnn.errors import ConfigError


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


V1 = "sys/fs/cgroup/cpu,cpuacct"
HOSTS = {
    "v2 in a group": ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 2),
    "v2 above": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
        },
        3,
    ),
    "v2 in a container": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
    "v2 not visible": ({"proc/self/cgroup": "0::/docker/1\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
    "v2 without a limit": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
    "v1": (
        {
            "proc/self/cgroup": "5:memory:/m\n3:cpu,cpuacct:/docker/1\n",
            f"{V1}/docker/1/cpu.cfs_quota_us": "250000\n",
            f"{V1}/docker/1/cpu.cfs_period_us": "100000\n",
        },
        3,
    ),
    "v1 in a container": (
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/docker/1\n0::/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        4,
    ),
    "v1 without a limit": (
        {
            "proc/self/cgroup": "3:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        None,
    ),
    "nonsense": ({"proc/self/cgroup": "\n::\n0::/\n", "sys/fs/cgroup/cpu.max": "many few\n"}, None),
    "no control groups": ({}, None),
}


@pytest.mark.parametrize(("files", "expected"), HOSTS.values(), ids=HOSTS)
def test_a_quota_is_found(tmp_path, files, expected):
    write(tmp_path, files)
    assert cores.quota(tmp_path) == expected


def pool(monkeypatch, **environment):
    for name in ("XPCNN_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cores, "affinity", lambda: 8)
    return threads.ThreadPool()


@pytest.mark.parametrize(
    ("environment", "granted", "expected"),
    [
        ({}, None, 4),
        ({}, 3, 3),
        ({"OMP_NUM_THREADS": "2"}, None, 2),
        ({"OMP_NUM_THREADS": "2,1"}, 3, 2),
        ({"OMP_NUM_THREADS": "none"}, 3, 3),
        ({"XPCNN_NUM_THREADS": ""}, 3, 3),
        ({"XPCNN_NUM_THREADS": " "}, None, 4),
        ({"XPCNN_NUM_THREADS": "4", "OMP_NUM_THREADS": "1"}, 2, 4),
    ],
)
def test_the_default_is_the_tightest_limit(monkeypatch, environment, granted, expected):
    made = pool(monkeypatch, **environment)
    monkeypatch.setattr(cores, "affinity", lambda: 4)
    monkeypatch.setattr(cores, "quota", lambda: granted)
    assert made.size == expected


@pytest.mark.parametrize(("available", "expected"), [(2, 2), (4, 4), (8, 4), (16, 4), (64, 4)])
def test_one_process_takes_no_more_than_can_share_a_recorded_step(monkeypatch, available, expected):
    made = pool(monkeypatch)
    monkeypatch.setattr(cores, "affinity", lambda: available)
    monkeypatch.setattr(cores, "quota", lambda: None)
    assert made.size == (expected if threads.has_lock() else available)
    monkeypatch.setenv("XPCNN_NUM_THREADS", "64")
    assert threads.ThreadPool().size == available


@pytest.mark.parametrize(("available", "expected"), [(2, None), (7, None), (8, 2), (16, 4), (64, 16)])
def test_cores_that_one_process_leaves_idle_are_for_ranks(monkeypatch, available, expected):
    with xpcnn.use_backend("numpy") as backend:
        pass
    monkeypatch.setattr(backend, "pool", pool(monkeypatch))
    monkeypatch.setattr(backend.pool, "_size", min(available, 4))
    monkeypatch.setattr(cores, "affinity", lambda: available)
    monkeypatch.setattr(cores, "quota", lambda: None)
    said = [line for line in backend.hints() if "mpiexec" in line]
    assert len(said) == (expected is not None)
    assert not said or f"uses 4 of {available} cores: `mpiexec -n {expected} xpcnn train --distributed`" in said[0]
    monkeypatch.setattr(cores, "_granted", available)  # in a job
    assert not any("mpiexec" in line for line in backend.hints())


def test_what_makes_no_sense_is_still_an_error(monkeypatch):
    with pytest.raises(ConfigError, match="XPCNN_NUM_THREADS: expected a number of 1 or more, got '0'"):
        _ = pool(monkeypatch, XPCNN_NUM_THREADS="0").size


@pytest.mark.parametrize("program", ["/usr/bin/uwsgi", "", None, "/opt/app/trainer", "C:\\Maya\\maya.exe"])
def test_no_worker_processes_without_python(monkeypatch, program):
    monkeypatch.setattr(sys, "executable", program)
    assert not workers._has_interpreter()


def test_no_worker_processes_in_a_frozen_application(monkeypatch):
    assert workers._has_interpreter()
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert not workers._has_interpreter()
    made = pool(monkeypatch)
    made.size = 2
    assert workers.WorkerProcesses(made).allowed == 0


def test_none_from_within_a_zip_file(monkeypatch):
    monkeypatch.setattr(workers.page, "__file__", "/app.pyz/xpcnn/backend/numpy/worker.py")
    assert not workers._has_interpreter()


def test_an_empty_wish_is_none(monkeypatch):
    monkeypatch.setenv("XPCNN_PROCESSES", "")
    assert workers._wanted()
