"""A user's mistake ends in status 2 and one line on standard error, and loses nothing."""

import subprocess
import sys

import pytest

from xpcnn.cli import main


def mistake(capsys, *argv):
    """Run a command that must fail; return its one line."""
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert len(line) < 400
    assert "Traceback" not in line
    return line


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "xpcnn: the following arguments are required: COMMAND"),
        (["fly"], "xpcnn: argument COMMAND: invalid choice: 'fly'"),
        (["train", "lenet6"], "xpcnn train: recipe: expected one of lenet5, lenet5-fast, deep3"),
        (["train", "--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["train", "--epochs", "0"], "epochs: expected an integer of 1 or more, got 0"),
        (["train", "--lr", "0"], "lr: expected a learning rate above 0, such as 0.01, got 0.0"),
        (["train", "--lr", "nan"], "lr: expected a learning rate above 0, such as 0.01, got nan"),
        (["train", "--batch-size", "-3"], "batch_size: expected an integer of 1 or more, got -3"),
        (["train", "--seed", "-1"], "seed: expected an integer of 0 or more, got -1"),
        (["train", "--data", "nowhere"], "data: expected mnist, or a folder or file that is there, got 'nowhere'"),
        (["train", "three-layer", "--data", "cifar10"], "fetch cifar-10-python.tar.gz"),
        (["train", "--backend", "tpu"], "expected one of numpy"),
        (["train", "--resume"], "--resume: expected the folder of the run with it, --out RUN_DIR"),
        (["train", "--speed", "9"], "xpcnn train: unrecognized arguments: --speed; see xpcnn train --help"),
        (["evaluate"], "required: RUN_DIR|MODEL_FILE"),
        (["evaluate", "nowhere"], "nowhere: no such run folder"),
        (["predict", "nowhere", "a.png"], "nowhere: no such run folder"),
        (["predict", "nowhere"], "required: IMAGE"),
        (["gradcheck", "lenet6"], "recipe: expected one of"),
        (["info", "--backend", "tpu"], "expected one of numpy"),
        (["gradcheck", "--seed", "-1"], "seed: expected an integer of 0 or more"),
    ],
    ids=" ".join,
)
def test_one_line(tmp_path, monkeypatch, capsys, argv, says):
    monkeypatch.chdir(tmp_path)
    assert says in mistake(capsys, *argv)
    assert not list(tmp_path.iterdir())


def test_a_backend_that_is_not_there_says_what_to_install(tmp_path, monkeypatch, capsys):
    from xpcnn.backend import available_backends

    if "cupy" in available_backends():
        pytest.skip("a GPU is here")
    monkeypatch.chdir(tmp_path)
    assert "cupy" in mistake(capsys, "train", "--backend", "cupy")
    assert not list(tmp_path.iterdir())


def test_a_run_that_exists_is_not_touched(run_folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in run_folder.rglob("*")}
    assert "holds a run already" in mistake(capsys, "train", "--out", str(run_folder))
    assert {path: path.stat().st_mtime_ns for path in run_folder.rglob("*")} == before


def test_a_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = mistake(capsys, "train", "--out", str(tmp_path / "file" / "run"))
    assert "expected to write it, got 'Not a directory'" in line


def test_other_settings_than_the_run_s(run_folder, capsys):
    line = mistake(capsys, "train", "--resume", "--out", str(run_folder), "--epochs", "9")
    assert "epochs: expected 3 as the run" in line


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
@pytest.mark.parametrize("name", ["run.json", "model.safetensors"])
def test_a_damaged_run_folder(run_folder, tmp_path, capsys, name, damage):
    for each in ("run.json", "model.safetensors", "history.json"):
        (tmp_path / each).write_bytes((run_folder / each).read_bytes())
    (tmp_path / name).write_bytes(damage)
    assert name in mistake(capsys, "evaluate", str(tmp_path))
    assert name in mistake(capsys, "predict", str(tmp_path), "digit.png")


def test_a_picture_that_cannot_be_read(run_folder, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"no picture")
    assert "a.png: not a PNG or JPEG" in mistake(capsys, "predict", str(run_folder), str(tmp_path / "a.png"))
    assert "no such file" in mistake(capsys, "predict", str(run_folder), str(tmp_path / "b.png"))


def test_a_data_set_that_is_not_mnist(run_folder, tmp_path, capsys):
    assert "MNIST's four IDX files" in mistake(capsys, "evaluate", str(run_folder), "--data", str(tmp_path))


@pytest.mark.parametrize("argv", [["train", "lenet6"], ["evaluate", "nowhere"], ["nonsense"]], ids=" ".join)
def test_a_real_process_says_it_in_one_line_too(argv):
    done = subprocess.run([sys.executable, "-m", "xpcnn", *argv], capture_output=True, text=True)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr


def test_the_environment_s_backend_too(monkeypatch):
    monkeypatch.setenv("XPCNN_BACKEND", "tpu")
    command = [sys.executable, "-m", "xpcnn", "info"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
