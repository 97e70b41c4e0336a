"""What the ranks of the tests run: `python -m tests.distributed.program FOLDER WHAT...`, words that say what is asked.

Rank 0 leaves FOLDER/result.npz: parameters, buffers and history.
"""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np

import xpcnn
from xpcnn import distributed, nn
from xpcnn.training import Checkpointer

from .test_shared_training import BATCH, DataLoader, images, labels, loader, trainer

EPOCHS = 6  # of six steps


class Say:
    """Prints its process and each step."""

    def on_step(self, made):
        print(f"rank {made.communicator.rank} process {os.getpid()} step {made.step}", flush=True)


class Slow:
    def on_step(self, made):
        time.sleep(0.02)


class Fault:
    """Something happens to rank 1 at step 8."""

    def __init__(self, what):
        self.what = what

    def on_step(self, made):
        if made.step != 8 or made.communicator.rank != 1:
            return
        if self.what == "raise":
            raise ValueError("no luck today")
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.what == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.what == "hang":
            time.sleep(1000)
        if self.what == "leave":
            sys.exit(0)
        if self.what == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        if self.what == "memory":
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 26), -1))
            Greedy.hunger = 1 << 28


class Greedy(nn.Module):
    """A layer that wants memory for nothing."""

    hunger = 1

    def forward(self, x):
        np.empty(self.hunger, "uint8")
        return x

    def backward(self, dy, *, input_gradient=True):
        return dy


def main(folder, *words):
    communicator = distributed.init()
    rank = communicator.rank
    options = {"norm": "norm" in words, "sync_batch_norm": "sync" in words}
    faults = [word for word in words if word.startswith("fault-")]
    callbacks = [Fault(fault.removeprefix("fault-")) for fault in faults]
    callbacks += [Say()] if "say" in words else []
    callbacks += [Slow()] if "slow" in words else []
    made = trainer(communicator, callbacks=callbacks, **options)
    if "greedy" in words:
        made.model.insert(0, Greedy())
    data = loader()
    if "other-version" in words and rank == 1:
        from xpcnn.training import ranks

        ranks.__version__ = "0.0.1"
    if "other-data" in words and rank == 1:
        pictures = images()
        pictures[0, 0, 0] += 1
        data = DataLoader(pictures, labels(), BATCH)
    if "other-seed" in words:
        xpcnn.manual_seed(rank)
    if "resume" in words or "checkpoint" in words:
        made.checkpoint = Checkpointer(Path(folder) / "checkpoints", every_steps=1, every_seconds=None)
    made.fit(data, loader(shuffle=False), epochs=EPOCHS, resume="resume" in words)
    if rank == 0:
        state = made.model.state_dict()
        steps = {f"steps.{name}": column for name, column in made.history.steps.items()}
        np.savez(Path(folder) / "result.npz", **state, **steps, threads=xpcnn.get_num_threads())
        print(f"done on {communicator.size} ranks", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
