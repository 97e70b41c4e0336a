"""Progress in a notebook: one place that changes, a bar while there is work, a table at the end."""

import sys
import types
import warnings

import pytest

from xpcnn.training import Progress
from xpcnn.training.notebook import is_notebook

from .common import StopAfter, loader, trainer


class Shell:
    kernel = object()


class Display:
    """Stands for IPython.display."""

    def __init__(self):
        self.shown, self.places = [], 0

    def HTML(self, text):
        return text

    def display(self, text, display_id):
        assert display_id
        self.places += 1
        self.shown.append(text)
        return types.SimpleNamespace(update=self.shown.append)


@pytest.fixture
def notebook(monkeypatch):
    display = Display()
    module = types.ModuleType("IPython")
    module.get_ipython = Shell
    monkeypatch.setitem(sys.modules, "IPython", module)
    module.display = display
    return display


def test_a_bar_and_a_table(notebook, capsys, monkeypatch):
    monkeypatch.setattr(Progress, "REFRESH", 0.0)
    made = trainer(callbacks=[Progress()])
    made.fit(loader(), loader(shuffle=False), epochs=2)
    assert notebook.places == 1
    during = [text for text in notebook.shown if "<progress" in text]
    assert len(during) >= 12
    assert '<progress value="3" max="6"></progress> epoch 1/2, batch 3/6, loss ' in during[2]
    assert during[8].count("<tr>") == 2  # the head and the first epoch
    assert notebook.shown[-1] == made.history._repr_html_()
    assert capsys.readouterr() == ("", "")


def test_why_it_stopped_is_said(notebook):
    class Stop:
        def on_epoch(self, made):
            made.stop("it is <good>")

    made = trainer(callbacks=[Stop(), Progress()])
    made.fit(loader(), epochs=3)
    assert notebook.shown[-1].endswith("<p>it is &lt;good&gt;</p>")


def test_an_error_leaves_no_bar(notebook):
    with pytest.raises(StopAfter.Stopped):
        trainer(callbacks=[Progress(), StopAfter(3)]).fit(loader(), epochs=1)
    assert "<progress" not in notebook.shown[-1]


def test_a_file_or_a_bar_is_what_was_asked_for(notebook, tmp_path):
    with open(tmp_path / "log", "w") as file:
        trainer(callbacks=[Progress(every=2, file=file)]).fit(loader(), epochs=1)
    assert not notebook.places
    assert "epoch 1/1" in (tmp_path / "log").read_text()


def test_elsewhere_there_is_none(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not is_notebook()
    shell = types.ModuleType("IPython")
    shell.get_ipython = lambda: None
    monkeypatch.setitem(sys.modules, "IPython", shell)
    assert not is_notebook()


def test_in_a_real_notebook():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    code = """
import numpy as np
from xpcnn import nn, optim
from xpcnn.data import DataLoader
from xpcnn.training import Progress, Trainer
model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
trainer = Trainer(model, optim.SGD(model.parameters(), 0.1), nn.CrossEntropyLoss(), callbacks=[Progress()])
history = trainer.fit(DataLoader(np.zeros((40, 6, 6), "uint8"), np.arange(40) % 3, 8), epochs=2)
model.summary((1, 6, 6))
"""
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code), nbformat.v4.new_code_cell("history.plot()")]
    )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the notebook's own tools
        nbclient.NotebookClient(book, timeout=120).execute()
    first, second = (cell.outputs for cell in book.cells)
    assert [each.output_type for each in first] == ["display_data", "execute_result"]
    assert "<table>" in first[0].data["text/html"]
    assert "<progress" not in first[0].data["text/html"]
    assert "multiply-adds" in first[1].data["text/html"]
    assert second[0].data["image/png"]
