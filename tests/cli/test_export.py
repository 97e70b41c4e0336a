"""`xpcnn export` writes the network of a run folder; onnxruntime says what `xpcnn predict` does."""

import json
import re

import numpy as np
import pytest

from xpcnn import recipes
from xpcnn.cli import main

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("options", [[], ["--fold", "--opset", "18"]])
def test_export(options, run_folder, tmp_path, capsys):
    path = tmp_path / "digits.onnx"
    assert main(["export", str(run_folder), str(path), *options]) == 0
    opset = options[-1] if options else "21"
    pattern = rf"{re.escape(str(path))}: [\d,]+ bytes, opset {opset}, input \(N, 1, 32, 32\)\n"
    assert re.fullmatch(pattern, capsys.readouterr().out)
    model, _, _, _ = recipes.load_model(run_folder)
    x = np.random.default_rng(0).normal(size=(4, 1, 32, 32)).astype(np.float32)
    (y,) = runtime.InferenceSession(str(path)).run(None, {"input": x})
    expected = model(x)
    assert np.linalg.norm(y - expected) < 1e-5 * np.linalg.norm(expected)
    metadata = {each.key: each.value for each in onnx.load(path).metadata_props}
    assert json.loads(metadata["transform"])


def test_export_of_a_model_file(tmp_path, capsys):
    """Of a network that takes images of one size, named by its file; and of one of any size, which is asked for."""
    from xpcnn import data, models, training

    model = models.create("tiny").eval()
    path, out = tmp_path / "model.safetensors", str(tmp_path / "a.onnx")
    training.save_model(model, path, classes=list("abcdefghij"), transform=data.Normalize(0.1, 0.5))
    assert main(["export", str(path), out, "--input-shape", "1,28,28"]) == 0
    assert "input (N, 1, 28, 28)" in capsys.readouterr().out
    x = np.random.default_rng(0).normal(size=(4, 1, 28, 28)).astype(np.float32)
    (y,) = runtime.InferenceSession(out).run(None, {"input": x})
    assert np.linalg.norm(y - model(x)) < 1e-5 * np.linalg.norm(y)
    metadata = {each.key: json.loads(each.value) for each in onnx.load(out).metadata_props}
    assert metadata["classes"] == list("abcdefghij")
    assert metadata["transform"]["name"] == "Normalize"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "a.onnx"], "xpcnn export: nowhere: no such run folder"),
        (["RUN", "a.onnx", "--opset", "17"], "xpcnn export: opset: expected 18 to 21"),
        (["RUN", "a.onnx", "--input-shape", "3,x"], "xpcnn export: --input-shape: expected sizes such as 3,32,32"),
        (["RUN", "no/a.onnx"], "xpcnn export: no/a.onnx: expected to write it"),
    ],
)
def test_mistakes(arguments, says, run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *(str(run_folder) if each == "RUN" else each for each in arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(says)
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
