"""What nobody may lose: kills, long runs, threads, processes. In full with XPCNN_TRUST=1 (`nox -s trust`)."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from xpcnn.backend import use_backend

from .common import arrays, assert_same, loader, net_without_dropout, trainer

TRUST = os.environ.get("XPCNN_TRUST") == "1"
ROOT = Path(__file__).parents[2]


def python(*arguments):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes with SIGKILL")
def test_killed_at_random_moments():
    kills = 300 if TRUST else 20
    seed = int(time.time()) if TRUST else 1
    result = json.loads(python("-m", "tests.training.crash", kills, seed))
    print(f"seed {seed}: {result}")
    assert result["kills"] >= kills
    assert result["while writing"] > 0
    assert result["trainings"] > 0
    assert result["ended wrongly"] == 0


SOAK = """
import sys
from array import array
from xpcnn import models, nn, optim
from xpcnn.data import DataLoader
from xpcnn.datasets import load_mnist
from xpcnn.training import Checkpointer, Trainer

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

class Watch:
    sizes = array("q")
    def on_step(self, trainer):
        self.sizes.append(resident())

steps = int(sys.argv[1])
train, _ = load_mnist()
model = models.create("conv8")
optimizer = optim.Adam(model.parameters(), 1e-4)
mine = Trainer(model, optimizer, nn.CrossEntropyLoss(), schedule=optim.InverseTimeLR(optimizer, 1e-6),
               callbacks=[Watch()], checkpoint=Checkpointer(sys.argv[2], every_steps=997))
mine.fit(DataLoader(train.images[:2000], train.labels[:2000], 2), epochs=steps // 1000)
tenth = len(Watch.sizes) // 10
second, last = Watch.sizes[tenth:2 * tenth], Watch.sizes[-tenth:]
print(len(Watch.sizes), sum(last) / sum(second))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads the resident memory from /proc")
@pytest.mark.skipif(not TRUST, reason="20,000 steps: XPCNN_TRUST=1")
def test_memory_stays_flat(tmp_path):
    steps, growth = python("-c", SOAK, 20_000, tmp_path).split()
    print(f"{steps} steps, resident memory of the last tenth / second tenth: {growth}")
    assert int(steps) >= 20_000
    assert 0.98 < float(growth) < 1.02


def test_two_threads_with_two_backends():
    def run(name, results):
        with use_backend(name):
            mine = models[name]
            mine.fit(loader(seed=3), epochs=5)
            results[name] = arrays(mine.model)

    outcomes = []
    for together in (False, True):
        models = {}
        for name in ("numpy", "fake"):
            with use_backend(name):
                # Without masks: threads draw from one generator, in whatever order they come.
                models[name] = trainer("adam", "cosine", model=net_without_dropout())
        results = {}
        threads = [threading.Thread(target=run, args=(name, results)) for name in models]
        for thread in threads:
            thread.start()
            if not together:
                thread.join()
        for thread in threads:
            thread.join()
        outcomes.append(results)
    for name in ("numpy", "fake"):
        assert_same(outcomes[0][name], outcomes[1][name])
        assert all(isinstance(value, np.ndarray) for value in outcomes[0][name].values())


PROCESSES = """
import multiprocessing
import sys

def train(seed):
    import hashlib
    import numpy as np
    import xpcnn
    from xpcnn import models, nn, optim
    from xpcnn.data import DataLoader
    from xpcnn.training import Trainer
    xpcnn.manual_seed(seed)
    rng = np.random.default_rng(0)
    data = DataLoader(rng.integers(0, 256, (192, 28, 28)).astype("uint8"), rng.integers(0, 10, 192), 64)
    model = models.create("deep3")  # large enough for the thread pool
    Trainer(model, optim.SGD(model.parameters(), 0.01, momentum=0.9), nn.CrossEntropyLoss()).fit(data, epochs=1)
    digest = hashlib.sha256()
    for array in model.state_dict().values():
        digest.update(array.tobytes())
    return digest.hexdigest()

if __name__ == "__main__":
    here = [train(seed) for seed in (1, 2)]
    for method in sys.argv[1:]:
        with multiprocessing.get_context(method).Pool(2) as pool:
            there = pool.map(train, (1, 2))
        print(method, there == here)
"""


def test_spawn_and_fork(tmp_path):
    methods = [method for method in ("spawn", "fork") if method == "spawn" or hasattr(os, "fork")]
    script = tmp_path / "train_in_processes.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{PROCESSES}")
    assert python(script, *methods).split() == [word for method in methods for word in (method, "True")]
