"""The memory that a training takes: peak of a fresh process, by the kernel's own count."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MOST = 90e6  # bytes: interpreter, NumPy, the batches and the step of lenet5 on 128 images

PROGRAM = """
import sys
from pathlib import Path
import numpy as np
import xpcnn
from xpcnn import models, nn, optim
from xpcnn.training import Trainer
xpcnn.set_num_threads(2)
model = models.create("lenet5")
optimizer = optim.SGD(model.parameters(), 0.02, momentum=0.9)
trainer = Trainer(model, optimizer, nn.CrossEntropyLoss(), compile=sys.argv[1] == "True")
rng = np.random.default_rng(0)
x, labels = rng.normal(size=(128, 1, 32, 32)).astype("float32"), rng.integers(0, 10, 128)
for _ in range(40):
    trainer.train_batch(x, labels)
trainer.read()
lines = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) * 1024 for line in lines if "VmHWM" in line))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says it")
@pytest.mark.parametrize("compiled", [True, False])
def test_a_step_of_lenet5(compiled):
    settings = {**os.environ, "XPCNN_PROCESSES": "0", "XPCNN_BACKEND": "numpy"}
    command = [sys.executable, "-c", PROGRAM, str(compiled)]
    run = subprocess.run(command, env=settings, capture_output=True, text=True, check=True, timeout=300)
    assert int(run.stdout) <= MOST
