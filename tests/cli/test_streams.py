"""Output that is closed, full or gone stops no training; a command that cannot say its result says so, in one line."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from xpcnn.cli import main, streams

ROOT = Path(__file__).parents[2]
XPCNN = f"{sys.executable} -m xpcnn"


def shell(command, **options):
    return subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, timeout=120, **options)


@pytest.fixture
def train(digits, tmp_path):
    """Give the command of a short training, and its folder."""
    return f"{XPCNN} train conv8 --epochs 1 --data {digits} --out {tmp_path / 'run'}", tmp_path / "run"


@pytest.mark.parametrize("redirection", [">&- 2>&-", "> /dev/full 2> /dev/full", "2>&1 | head -c 1"])
def test_a_training_ends_with_its_model(train, redirection):
    command, folder = train
    done = shell(f"{command} {redirection}")
    assert (folder / "model.safetensors").exists(), done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        ("recipes >&-", 1, "xpcnn recipes: standard output cannot be written: Bad file descriptor\n"),
        ("recipes > /dev/full", 1, "xpcnn recipes: standard output cannot be written: No space left on device\n"),
        ("--help > /dev/full", 1, "xpcnn: standard output cannot be written: No space left on device\n"),
        ("fly 2>&-", 2, ""),
        ("fly 2> /dev/full", 2, ""),
    ],
)
def test_one_ending_for_every_path(command, status, says):
    done = shell(f"{XPCNN} {command}")
    assert (done.returncode, done.stdout, done.stderr) == (status, "", says)


class Broken(io.StringIO):
    """Refuses everything."""

    def __init__(self, error):
        super().__init__()
        self.failure = error

    def write(self, text):
        raise self.failure

    def isatty(self):
        raise self.failure


@pytest.mark.parametrize(
    "stream", [None, Broken(BrokenPipeError()), Broken(OSError(28, "No space left on device")), Broken(ValueError())]
)
def test_streams_that_take_nothing(monkeypatch, digits, tmp_path, stream):
    """As in a service without a console, a closed window, a full disk."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        status = main(["train", "conv8", "--epochs", "1", "--data", digits, "--out", str(tmp_path / "run")])
        gone = main(["recipes"])
    assert (status, gone) == (0, 0 if isinstance(getattr(stream, "failure", None), BrokenPipeError) else 1)
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_progress_outside_the_command_stops_nothing_either(monkeypatch):
    import tqdm

    from tests.training.common import SAMPLES, loader, trainer
    from xpcnn.training import Progress

    for bar in (True, False, None):
        for stream in (None, Broken(BrokenPipeError()), Broken(ValueError("I/O operation on closed file"))):
            monkeypatch.setattr(sys, "stderr", stream)
            reporter = Progress(1, bar=bar)
            reporter.REFRESH = 0.0
            made = trainer(callbacks=[reporter])
            made.fit(loader(), epochs=1)
            assert made.step == -(-SAMPLES // 8)
            assert not getattr(
                tqdm.tqdm, "_instances", ()
            )  # later bars would leave a line for one that is never closed


def test_letters_that_an_encoding_lacks(monkeypatch, run_folder):
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", file)
        assert main(["predict", str(run_folder), "ü.png"]) == 2
    file.seek(0)
    assert file.read().startswith(r"xpcnn predict: \xfc.png: ")


def test_a_stream_remembers_the_first_refusal():
    stream = streams.Stream(Broken(OSError(28, "No space left on device")))
    assert stream.write("abc") == 3
    assert stream.write("abc") == 3
    assert stream.error.errno == 28
    assert not stream.isatty()


LONG = "x" * 300


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "--data", LONG],
        ["train", "--out", LONG],
        ["train", "--resume", "--out", LONG],
        ["evaluate", LONG],
        ["evaluate", "RUN", "--data", LONG],
        ["predict", LONG, "a.png"],
        ["predict", "RUN", LONG],
        ["predict", "RUN", f"{LONG}/a.png"],
        ["evaluate", f"{LONG}/{LONG}"],
        ["train", "--data", "/dev/null"],
        ["predict", "RUN", "/dev/zero"],
        ["train", "--out", "/dev/null"],
    ],
    ids=lambda argv: " ".join(argv)[:30],
)
def test_odd_paths_are_one_line(capsys, run_folder, argv):
    assert main([str(run_folder) if each == "RUN" else each for each in argv]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert printed.out == ""
    assert len(line) < 400


def test_the_folder_itself_can_be_run(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "xpcnn", "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "xpcnn 0.2.0\n"), done.stderr


def test_a_zip_file_reads_its_digits(tmp_path):
    app = tmp_path / "app.pyz"
    with zipfile.ZipFile(app, "w") as packed:
        for path in sorted((ROOT / "xpcnn").rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                packed.write(path, path.relative_to(ROOT))
        packed.writestr(
            "__main__.py",
            "import xpcnn, xpcnn.backend.numpy.workers as w; from xpcnn.datasets import load_mnist\n"
            "from xpcnn.recipes.folder import commit; assert commit() is None\n"
            "print(xpcnn.__file__, load_mnist(), w._has_interpreter())",
        )
    done = subprocess.run([sys.executable, app], capture_output=True, text=True, cwd=tmp_path)
    assert "app.pyz" in done.stdout, done.stderr
    assert "60000 images uint8" in done.stdout
    assert "False" in done.stdout
