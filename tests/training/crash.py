"""Trains in child processes and kills them (SIGKILL) at random moments: `python -m tests.training.crash KILLS SEED`.

Kills as often as asked, and on until one hits a checkpoint being written, at most ten times as often. Prints as JSON:
kills, how many of them hit a checkpoint being written, trainings that were finished, and how many of those ended in
other parameters than an undisturbed one (or in an error).
"""

import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from xpcnn.training import Checkpointer

from .common import arrays, loader, trainer

EPOCHS = 12  # 72 steps


def train(folder, seed):
    # Every combination of optimiser and schedule is met sooner or later.
    optimiser = ["momentum", "adam", "rmsprop", "adagrad"][seed % 4]
    schedule = ["step", "cosine", "inverse"][seed % 3]
    mine = trainer(optimiser, schedule, seed=seed)
    if folder is None:
        mine.fit(loader(), loader(shuffle=False), epochs=EPOCHS)
    else:
        mine.checkpoint = Checkpointer(folder, every_steps=1, every_seconds=None, keep=2)
        mine.fit(loader(), loader(shuffle=False), epochs=EPOCHS, resume=True)
    digest = hashlib.sha256()
    for name, value in [*arrays(mine.model).items(), *mine.optimizer.state_dict().items()]:
        digest.update(name.encode())
        digest.update(value.tobytes() if hasattr(value, "tobytes") else repr(value).encode())
    digest.update(mine.history.steps["loss"].tobytes())
    return digest.hexdigest()


def child(folder, seed):
    """Train in a process of its own; the digest goes to a file beside the run."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    with contextlib.suppress(BaseException):
        (folder / "digest").write_text(train(folder / "run", seed))
        status = 0
    os._exit(status)


def main(kills, seed):
    draw = random.Random(seed)
    result = {"kills": 0, "while writing": 0, "trainings": 0, "ended wrongly": 0}

    def kill_more():
        return result["kills"] < (kills if result["while writing"] else 10 * kills)

    while kill_more():
        run_seed = draw.randrange(1000)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            while True:
                pid = child(folder, run_seed)
                if kill_more():
                    time.sleep(draw.uniform(0.0, 0.12 * max(1, result["kills"] / kills)))  # later on a slow machine
                    os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
                if os.WIFEXITED(status):
                    break
                result["kills"] += 1
                result["while writing"] += any((folder / "run").glob(".step-*"))
            result["trainings"] += 1
            digest = folder / "digest"
            if os.WEXITSTATUS(status) or digest.read_text() != train(None, run_seed):
                result["ended wrongly"] += 1
    print(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
