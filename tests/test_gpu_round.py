"""The GPU round, rehearsed without a GPU: its stages run, its results name no machine, and what fails is said."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from xpcnn import backend as switch
from xpcnn.backend import base, get_backend

ROOT = Path(__file__).resolve().parents[1]
sys_bench = str(ROOT / "bench")


def round_of(*arguments, out=None):
    """Run bench/gpu_round.sh with this Python."""
    environment = {**os.environ, "PYTHON": sys.executable}
    environment.pop("OUT", None)
    if out:
        environment["OUT"] = str(out)
    command = ["bash", str(ROOT / "bench" / "gpu_round.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/")


@pytest.fixture
def rounds(monkeypatch):
    monkeypatch.syspath_prepend(sys_bench)
    # A stage switches the backend of its process, and registers a stand-in: both end with the test.
    monkeypatch.setattr(switch, "_default", get_backend())
    for table in ("_backends", "_by_type"):
        copied = dict(getattr(switch, table))
        for module in (switch, base):
            monkeypatch.setattr(module, table, copied)
    import gpu_round

    return gpu_round


def test_rehearsal(tmp_path):
    (tmp_path / "out").mkdir()
    done = round_of("--rehearse", "--results", str(tmp_path), "kernels", "parity", out=tmp_path / "out")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"gpu-kernels.json", "gpu-parity.json", "gpu-round.md", "out"}
    parity = json.loads((tmp_path / "gpu-parity.json").read_text())
    assert len(parity["checks"]) == 8
    assert all(check["ok"] for check in parity["checks"])
    assert set(parity["curves"]) == {"tiny", "lenet5"}
    assert parity["facts"]["rehearsal"] is True
    text = "".join(path.read_text() for path in [*tmp_path.glob("gpu-*"), *(tmp_path / "out").iterdir()])
    assert "| kernels | passed" in text
    assert platform.node() not in text
    assert str(ROOT) not in text
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_stages_are_listed_and_unknown_ones_refused():
    listed = round_of("--list").stdout.splitlines()
    assert [line.split(":")[0] for line in listed][:3] == ["kernels", "suite-functional", "parity"]
    done = round_of("--rehearse", "speed")
    assert done.returncode == 2
    assert "unknown stage speed; there are kernels" in done.stderr


def test_a_stage_that_takes_too_long_or_fails(tmp_path, rounds):
    stage = rounds.STAGES["kernels"]
    report = rounds.run("kernels", stage, True, tmp_path, 0.01)
    assert report["status"] == "ran out of time"
    broken = rounds.Stage("broken", ("-c", "print('why'); raise SystemExit(7)"))
    report = rounds.run("broken", broken, True, tmp_path, 60)
    assert report["status"] == "failed (7)"
    assert report["tail"] == ["why"]
    absent = rounds.Stage("absent", ("-c", ""), ("no_such_package",))
    assert rounds.run("absent", absent, True, tmp_path, 60)["why"] == "no_such_package not installed"
    unable = rounds.Stage("unable", ("-c", "print('not run: no GPU'); raise SystemExit(3)"))
    report = rounds.run("unable", unable, True, tmp_path, 60)
    assert (report["status"], report["why"]) == ("not run", "no GPU")


def test_a_bound_that_is_passed_shows(rounds, tmp_path, monkeypatch):
    import gpu_device

    failed = gpu_device.check("gradients", 2e-5, 1e-5)
    assert not failed["ok"]
    assert not gpu_device.check("nan", float("nan"), 1.0)["ok"]
    text = rounds.table([{"stage": "parity", "status": "failed (1)"}], {"parity": {"checks": [failed]}})
    assert "| gradients | 2e-05 | 1e-05 | FAILED |" in text
    monkeypatch.setattr(sys, "argv", ["stage", "--rehearse", "--out", str(tmp_path / "gpu-x.json")])
    with pytest.raises(SystemExit, match="failed: gradients"):
        gpu_device.stage(lambda device, arguments: {"checks": [failed]}, "a stage")
    assert json.loads((tmp_path / "gpu-x.json").read_text())["checks"] == [failed]
