"""What a trainer tells a terminal, a file and a program without tqdm while it trains."""

import io
import re

import pytest

from xpcnn.backend import use_backend
from xpcnn.errors import ConfigError
from xpcnn.training import Progress

from .common import loader, trainer

pytestmark = pytest.mark.usefixtures("backend")


class TestProgress:
    def test_plain_lines(self, backend):
        file = io.StringIO()
        mine = trainer(callbacks=[Progress(every=4, file=file)])
        mine.fit(loader(), loader(), epochs=2)
        lines = file.getvalue().splitlines()
        assert len(lines) == 6
        step = r" +[\d.]+ s  epoch 1/2  batch 4/6  accuracy 0\.\d{4}  loss \d\.\d{4}  lr 0\.035"
        assert re.fullmatch(step, lines[0])
        epoch = r"epoch 2/2  loss [\d.]+  accuracy [\d.]+  validation loss [\d.]+  validation accuracy [\d.]+  [\d.]+ s"
        assert re.match(epoch, lines[-1])
        mean = sum(mine.history.steps["loss"][:4]) / 4
        assert f"loss {mean:.4f}" in lines[0]

    def test_bar(self, backend, monkeypatch):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        monkeypatch.setattr(Progress, "REFRESH", 0.0)
        file = Terminal()
        mine = trainer(callbacks=[Progress(file=file)], read_every=2)
        mine.fit(loader(), epochs=1)
        text = file.getvalue()
        assert "6/6" in text
        assert re.search(r"epoch 1/1 loss [\d.]+ accuracy [\d.]+ \|.*\| \d/6 [\d:]+<[\d:?]+, \d+/s", text)
        assert text.splitlines()[-1].startswith("epoch 1/1  loss")


def test_without_tqdm_a_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setattr("xpcnn.training.progress.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"bar: expected False or None without tqdm, got True: pip install"):
        Progress(bar=True)
    file = io.StringIO()
    file.isatty = lambda: True
    with use_backend("numpy"):
        trainer(callbacks=[Progress(every=1, file=file)]).fit(loader(), epochs=1)
    assert re.search(r"epoch 1/1  batch 1/", file.getvalue())


def test_80_columns_show_loss_and_accuracy(monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setenv("COLUMNS", "80")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    file = Terminal()
    progress = Progress(file=file)
    progress.REFRESH = 0.0
    made = trainer(callbacks=[progress], read_every=1)
    made.fit(loader(), epochs=1)
    shown = [line for line in file.getvalue().split("\r") if "|" in line]
    assert all(len(line) <= 80 for line in shown)
    assert re.search(r"epoch 1/1 loss \d\.\d{4} accuracy \d\.\d{4}", shown[-1])
