"""XPCNN_PORTABLE=1: the maths as written, in few files, with the results of the fast ways."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.backend.processes import ROOT, python

STEP = """
import json, sys
import numpy as np
import xpcnn
from xpcnn import nn

rng = np.random.default_rng(0)
layer = nn.Conv2d(4, 6, 3, stride=STRIDE, padding=1)
for p, shape in zip(layer.parameters(), [(6, 4, 3, 3), (6,)]):
    p.data = rng.standard_normal(shape, dtype="float32")
x = rng.standard_normal((5, 4, 9, 8), dtype="float32")
dy = rng.standard_normal(layer(x).shape, dtype="float32")
layer.backward(dy)
layer.zero_grad()
passed, package = [], xpcnn.__path__[0].replace("\\\\", "/") + "/"

def look(frame, event, argument):
    name = frame.f_code.co_filename.replace("\\\\", "/")
    if event == "call" and name.startswith(package):
        passed.append([name.removeprefix(package), frame.f_code.co_name])

sys.setprofile(look)
y = layer(x)
dx = layer.backward(dy)
sys.setprofile(None)
print(json.dumps({"passed": passed, "portable": xpcnn.backend.is_portable(),
                  "results": [a.tolist() for a in (y, dx, layer.weight.grad, layer.bias.grad)]}))
"""
FILES = {
    "nn/module.py",
    "nn/caches.py",
    "nn/convolution.py",
    "nn/parameter.py",
    "functional/convolution.py",
    "functional/layout.py",
    "windows.py",
    "backend/base.py",
}


def run(stride, **environment):
    return json.loads(python(STEP.replace("STRIDE", str(stride)), **environment))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_both_ways_passes_eight_files_and_stops_on_the_page(stride):
    found, usual = run(stride, XPCNN_PORTABLE="1"), run(stride)
    assert found["portable"]
    assert not usual["portable"]
    assert {file for file, _ in found["passed"]} <= FILES
    names = [name for file, name in found["passed"] if file == "functional/convolution.py"]
    assert {"conv2d_forward", "conv2d_gradients", "conv2d_input_gradient", "fill_columns"} <= set(names)
    assert "conv2d_forward" not in [n for f, n in usual["passed"] if f == "functional/convolution.py"]
    for ours, theirs in zip(found["results"], usual["results"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


TRAINING = """
import numpy as np, json, xpcnn
from xpcnn import models, nn, optim
from xpcnn.training import Trainer
from xpcnn.functional import convolution

xpcnn.manual_seed(0)
model = models.create("lenet5")
trainer = Trainer(model, optim.SGD(model.parameters(), lr=0.05, momentum=0.9), nn.CrossEntropyLoss())
rng = np.random.default_rng(0)
x, labels = rng.standard_normal((16, 1, 32, 32), dtype="float32"), rng.integers(0, 10, 16)
calls, page = [], convolution.fill_columns
convolution.fill_columns = lambda *arguments: (calls.append(1), page(*arguments))[1]
counts = []
for _ in range(8):
    trainer.train_batch(x, labels)
    counts.append(len(calls))
weights = [p.data.ravel()[:50].tolist() for p in model.parameters()]
print(json.dumps([weights, counts, nn.Inference(model)(x).tolist()]))
"""


def test_nothing_of_a_training_is_recorded():
    """The eighth step passes the page as often as the first, where it would long have been a list of NumPy's calls."""
    weights, counts, logits = json.loads(python(TRAINING, XPCNN_PORTABLE="1"))
    steps = np.diff([0, *counts])
    assert steps[0] > 0
    assert set(steps) == {steps[0]}
    usual_weights, _, usual_logits = json.loads(python(TRAINING))
    for ours, theirs in zip(weights, usual_weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(logits, usual_logits, rtol=1e-3, atol=1e-3)


def test_a_debugger_stops_at_each_of_the_three_products(tmp_path):
    """As the guide of convolution says: none of them is another body, or a record that is replayed."""
    program = "import numpy as np\nfrom xpcnn import functional as F\nx = np.ones((1, 1, 5, 5))\n"
    program += "y, cache = F.conv2d(x, np.ones((1, 1, 3, 3)), np.zeros(1))\nF.conv2d_backward(y, cache)\n"
    (tmp_path / "mine.py").write_text(program)
    products = ["conv2d_forward", "conv2d_gradients", "conv2d_input_gradient"]
    typed = ["next", "next", "break F.conv2d", "continue", *(f"break {name}" for name in products)]
    typed += ["continue"] * 3 + ["quit"]
    done = subprocess.run(
        [sys.executable, "-m", "pdb", str(tmp_path / "mine.py")],
        input="\n".join(typed) + "\n",
        env=os.environ | {"XPCNN_PORTABLE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    stops = re.findall(r"convolution\.py\(\d+\)(\w+)\(\)\n->", done.stdout)
    assert stops == ["conv2d", *products]
