"""`xpcnn train`: one line of result, a run folder with its pictures, and a way to go on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.test_model_files import write_pictures
from xpcnn.cli import main
from xpcnn.training import Trainer

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")

FILES = {
    "model.safetensors",
    "run.json",
    "history.csv",
    "history.json",
    "curves.png",
    "predictions.png",
    "confusion.png",
    "filters.png",
    "features.png",
    "checkpoints",
}
RESULT = re.compile(r"^test accuracy: [01]\.\d{4}\n$")


def test_one_line_of_result_and_a_whole_folder(digits, tmp_path, capsys):
    out = tmp_path / "new" / "run"
    assert main(["train", "lenet5", "--data", digits, "--out", str(out), "--seed", "3"]) == 0
    printed = capsys.readouterr()
    assert RESULT.match(printed.out)
    assert {path.name for path in out.iterdir()} == FILES
    for name in FILES:
        if name.endswith(".png"):
            with Image.open(out / name) as picture:
                picture.load()
                assert min(picture.size) > 100
    content = json.loads((out / "run.json").read_text())
    assert content["settings"]["seed"] == 3
    assert f"{content['test']['accuracy']:.4f}" in printed.out
    assert "61,990 parameters, backend numpy" in printed.err
    assert re.search(r"epoch 1/1  batch 3/3  accuracy 0\.\d{4}  loss \d\.\d{4}  lr 0\.1\n", printed.err)
    assert f"run folder: {out}" in printed.err


def test_the_default_folder_names_recipe_and_time(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # also within one second
        assert main(["train", "conv8", "--data", digits, "--epochs", "1"]) == 0
    found = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(found) == 2
    assert all(re.fullmatch(r"conv8-\d{8}-\d{6}(-2)?", name) for name in found)
    assert capsys.readouterr().out.count("test accuracy: ") == 2


def test_the_default_recipe_is_lenet5(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--data", digits]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "run.json").read_text())["settings"]["recipe"] == "lenet5"


def test_a_few_pictures_in_one_batch_are_told_of(digits, tmp_path, capsys):
    folder = write_pictures(tmp_path / "photos", count=10)
    command = ["train", "lenet5", "--data", str(folder), "--out"]
    assert main([*command, str(tmp_path / "one"), "--batch-size", "128", "--epochs", "1"]) == 0
    assert "only 1 training step: smaller batches and more epochs may give a better network; without --batch-size" in (
        capsys.readouterr().err
    )
    assert main([*command, str(tmp_path / "own"), "--image-size", "16"]) == 0
    told = capsys.readouterr().err
    assert (
        "\n24 images to train on in batches of 8, 167 epochs, learning rate 0.00625 (--batch-size, --epochs, --lr)\n"
        in told
    )
    assert "only" not in told
    stops = ["--image-size", "16", "--patience", "1"]
    assert main([*command, str(tmp_path / "stopped"), *stops]) == 0
    told = capsys.readouterr().err
    assert "stopped after step" in told
    assert "only" not in told
    assert main([*command, str(tmp_path / "many"), "--batch-size", "2", "--epochs", "10"]) == 0  # 24 pictures
    assert "training step" not in capsys.readouterr().err
    assert main(["train", "lenet5", "--data", digits, "--out", str(tmp_path / "digits")]) == 0  # as made for MNIST
    assert "training step" not in capsys.readouterr().err


def test_options_reach_the_run(digits, tmp_path):
    options = ["--epochs", "2", "--batch-size", "50", "--seed", "9", "--as-written", "--backend", "numpy"]
    options += ["--precision", "float16", "--lr", "0.002"]
    assert main(["train", "deep3", "--data", digits, "--out", str(tmp_path / "run"), *options]) == 0
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    settings = {"recipe": "deep3", "data": digits, "epochs": 2, "batch_size": 50, "seed": 9, "as_written": True}
    assert content["settings"].items() >= {**settings, "precision": "float16", "lr": 0.002}.items()
    assert len(content["epochs"]) == 2


def test_without_matplotlib_it_trains_all_the_same(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["train", "--data", digits, "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr()
    assert RESULT.match(printed.out)
    assert 'pip install ".[cli]"' in printed.err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {name for name in FILES if ".png" not in name}


def test_the_backend_is_used(digits, tmp_path):
    assert main(["train", "--data", digits, "--out", str(tmp_path / "run"), "--backend", "fake"]) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["machine"]["backend"] == "fake"
    assert main(["evaluate", str(tmp_path / "run"), "--backend", "numpy"]) == 0


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_ending_signal_says_how_to_go_on(digits, tmp_path, monkeypatch, capsys, signum):
    out = str(tmp_path / "a run")
    step = Trainer.read

    def press(trainer):
        step(trainer)
        if trainer.step == 4:
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(Trainer, "read", press)
    assert main(["train", "--data", digits, "--epochs", "3", "--out", out]) == 128 + signum
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1] == f"xpcnn train: interrupted; go on with: xpcnn train --resume --out '{out}'"
    monkeypatch.setattr(Trainer, "read", step)
    assert main(["train", "--resume", "--out", out]) == 0
    printed = capsys.readouterr()
    assert RESULT.match(printed.out)
    assert re.search(r"going on from step [1-8]$", printed.err, re.MULTILINE)


def test_a_signal_before_the_training_begins_leaves_one_line(digits, tmp_path, monkeypatch, capsys):
    from xpcnn.recipes import sources

    monkeypatch.setattr(sources, "load", lambda *arguments: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["train", "--data", digits, "--out", str(tmp_path / "run")]) == 143
    assert capsys.readouterr().err == "xpcnn train: interrupted\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_picture_that_fails_is_no_pictures(digits, tmp_path, monkeypatch, capsys):
    from xpcnn import plot

    def fail(*arguments, **options):
        raise RuntimeError("no fonts\nat all")

    monkeypatch.setattr(plot, "filters", fail)
    assert main(["train", "--data", digits, "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr()
    assert RESULT.match(printed.out)
    assert "no pictures: RuntimeError: no fonts at all\n" in printed.err


def test_a_clock_that_goes_back_gives_no_negative_seconds(digits, tmp_path, monkeypatch):
    clock = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    assert main(["train", "conv8", "--epochs", "1", "--data", digits, "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["seconds"] >= 0


def test_a_real_process_interrupted_in_the_middle_goes_on(digits, tmp_path):
    """Ctrl-C from outside, whatever the process is doing; then the same numbers as a run that was left alone."""
    command = [sys.executable, "-m", "xpcnn", "train", "lenet5", "--data", digits, "--epochs", "25", "--seed", "1"]
    out = tmp_path / "run"
    process = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(out.glob("checkpoints/step-*")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert (process.returncode, printed) == (130, ""), errors
    assert f"xpcnn train --resume --out {out}" in errors
    assert "Traceback" not in errors
    resume = [sys.executable, "-m", "xpcnn", "train", "--resume", "--out", str(out)]
    resumed = subprocess.run(resume, capture_output=True, text=True)
    whole = subprocess.run([*command, "--out", str(tmp_path / "whole")], capture_output=True, text=True)
    assert (resumed.returncode, whole.returncode) == (0, 0), resumed.stderr
    assert resumed.stdout == whole.stdout
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def hears(pid, signum):
    """Whether a process has said what a signal means to it: a Python that still starts would end."""
    masks = re.findall(r"^Sig(?:Ign|Cgt):\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return any(int(mask, 16) >> (signum - 1) & 1 for mask in masks)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are looked up in /proc")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_leaves_a_checkpoint(digits, tmp_path, signum):
    """As batch systems and closing terminals send it: worker processes hear it too, and live to finish the step."""
    out = str(tmp_path / "run")
    command = [sys.executable, "-m", "xpcnn", "train", "lenet5", "--data", digits, "--epochs", "4000", "--out", out]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + 30
    while process.poll() is None and not children.read_text() and time.monotonic() < until:
        time.sleep(0.02)
    while process.poll() is None and time.monotonic() < until:  # until they have begun to work
        workers = children.read_text()
        if all(hears(worker, signum) for worker in workers.split()):
            break
        time.sleep(0.02)
    time.sleep(0.5)
    for worker in workers.split():
        os.kill(int(worker), signum)
    time.sleep(0.2)
    still = children.read_text()
    os.killpg(process.pid, signum)
    _, errors = process.communicate(timeout=60)
    assert set(workers.split()) <= set(still.split())  # on a busy machine one may begin late
    assert process.returncode == 128 + signum, errors
    assert errors.splitlines()[-1].startswith("xpcnn train: interrupted; go on with: xpcnn train --resume"), errors
    if workers:
        assert "worker process" not in errors
    else:
        pytest.skip("no worker processes on this machine: the signal reached the training alone")


def test_a_loss_that_explodes_is_one_line_and_status_1(digits, tmp_path, monkeypatch, capsys):
    from dataclasses import replace

    from xpcnn.optim import SGD
    from xpcnn.recipes import table

    wild = replace(table.RECIPES["conv8"], optimizer=lambda model: SGD(model.parameters(), 1e30))
    monkeypatch.setitem(table.RECIPES, "conv8", wild)
    assert main(["train", "conv8", "--data", digits, "--out", str(tmp_path / "run")]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("xpcnn train: step ")
    assert "nan or infinite" in last or "the loss is" in last


def test_a_training_that_a_callback_stops_says_so_and_succeeds(digits, tmp_path, monkeypatch, capsys):
    def stop(self, trainer):
        if trainer.step == 5:
            trainer.stop("good enough")

    monkeypatch.setattr("xpcnn.cli.train._Heading.on_step", stop, raising=False)
    out = tmp_path / "run"
    assert main(["train", "lenet5", "--data", digits, "--out", str(out), "--epochs", "9"]) == 0
    printed = capsys.readouterr()
    assert RESULT.match(printed.out)
    assert "stopped after step 5, 1 of 9 epochs finished: good enough\n" in printed.err
    content = json.loads((out / "run.json").read_text())
    assert content["state"] == "done"
    capsys.readouterr()
    assert main(["evaluate", str(out)]) == 0  # of the parameters as they are, not of the last whole epoch's
    assert printed.out in capsys.readouterr().out
