"""The notebooks: small, without outputs, and run to their end in a kernel without a screen."""

import json
import os
from pathlib import Path

import pytest

import xpcnn
from xpcnn import examples

ROOT = Path(xpcnn.__file__).parents[1]
NOTEBOOKS = sorted((Path(examples.__file__).parent / "notebooks").glob("*.ipynb"))
SHOWN = {  # what a reader sees, in the order of the cells that show something other than text
    "backpropagation": [],
    "own_pictures": ["text/html", "image/png", "image/png", "text/html"],
    "train_and_look_inside": ["text/html"] * 3 + ["image/png", "text/html"] + ["image/png"] * 6,
}


def named(path):
    return path.stem


def test_there_are_three():
    assert sorted(map(named, NOTEBOOKS)) == sorted(SHOWN)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_without_outputs(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 6000
    assert all(cell["outputs"] == [] for cell in content["cells"] if cell["cell_type"] == "code")
    assert all(cell["execution_count"] is None for cell in content["cells"] if cell["cell_type"] == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
@pytest.mark.filterwarnings("default")  # of the kernel's libraries
def test_it_runs(path, tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XPCNN_EXAMPLE_IMAGES", os.environ.get("XPCNN_EXAMPLE_IMAGES", "500"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(path, 4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"] == []
    shown = [set(output.data) - {"text/plain"} for output in outputs if "data" in output]
    assert [kind for kinds in shown for kind in kinds] == SHOWN[path.stem]
    for output in outputs:
        if "progress" in str(output.get("data", {}).get("text/html", "")):
            pytest.fail("the page of a training that has ended is a table, without a bar")
    if path.stem == "backpropagation":
        assert "False" not in "".join(output.get("text", "") for output in outputs)
        assert sum(output.get("text", "").count("True") for output in outputs) == 7
