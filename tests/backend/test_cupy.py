"""What only a device shows, a GPU or an emulated one: the memory of graphs, threads, several devices."""

import gc
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import xpcnn
from tests.conftest import BACKENDS
from xpcnn import nn, optim
from xpcnn.backend import use_backend
from xpcnn.backend.cupy import driver, transfer
from xpcnn.errors import BackendError, OutOfMemoryError
from xpcnn.training import Trainer

pytestmark = pytest.mark.skipif("cupy" not in BACKENDS, reason="XPCNN_TEST_BACKENDS does not name cupy")
MIB = 1 << 20


@pytest.fixture
def gpu():
    with use_backend("cupy") as backend:
        step, _, _ = add_and_scale(backend, 1)
        backend.capture(step)  # the stream of recordings and its workspace stay
        yield backend
        backend.xp.get_default_memory_pool().set_limit(size=0)


def bytes_free(backend) -> int:
    """Return what the device has free once all pools have given back what nobody uses."""
    gc.collect()
    backend.graphs.give_back()
    backend.xp.get_default_memory_pool().free_all_blocks()
    return backend.xp.cuda.runtime.memGetInfo()[0]


def add_and_scale(backend, size=MIB):
    """Return a step whose products stay inside it, and what it reads and writes."""
    x, y = backend.zeros((size,), np.float32), backend.zeros((size,), np.float32)

    def step():
        xp = backend.xp
        xp.multiply(xp.add(x, 1), 2, out=y)

    step()
    return step, x, y


def convolutional(batch, channels=16, side=16):
    """A trainer and a batch whose activations are most of what it takes."""
    xpcnn.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(channels * side * side, 10),
    )  # fmt: skip
    trainer = Trainer(model, optim.SGD(model.parameters(), 0.01), nn.CrossEntropyLoss(), compile=True)
    backend = xpcnn.get_backend()
    rng = np.random.default_rng(0)
    x = backend.asarray(rng.normal(size=(batch, 1, side, side)).astype(np.float32))
    return trainer, x, backend.asarray(rng.integers(0, 10, batch))


def normalised(dtype, compiled):
    """A trainer and a batch of a network whose batch norms follow convolutions, one of them in a residual sum."""
    xpcnn.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(20, 20, 3, padding=1, bias=False), nn.BatchNorm2d(20))
    model = nn.Sequential(
        nn.Conv2d(2, 20, 3, stride=2, padding=1, bias_init=lambda shape, *rest: np.full(shape, 500.0)),
        nn.BatchNorm2d(20), nn.ReLU(), nn.Residual(body), nn.ReLU(), nn.Flatten(), nn.Linear(500, 10),
    )  # fmt: skip
    model.to(dtype=dtype)
    trainer = Trainer(model, optim.SGD(model.parameters(), 0.01), nn.CrossEntropyLoss(), compile=compiled)
    backend = xpcnn.get_backend()
    rng = np.random.default_rng(0)
    x = backend.asarray(rng.normal(size=(6, 2, 9, 9)).astype(np.float32))
    return trainer, x, backend.asarray(rng.integers(0, 10, 6))


class TestMemoryOfGraphs:
    def test_a_dropped_graph_gives_it_back(self, gpu):
        step, x, _ = add_and_scale(gpu)
        before = bytes_free(gpu)
        replay = gpu.capture(step)
        assert replay.pool_bytes >= x.nbytes
        assert bytes_free(gpu) < before
        del replay
        assert bytes_free(gpu) == before

    def test_also_what_an_array_holds_when_the_graph_goes(self, gpu):
        x = gpu.zeros((MIB,), np.float32)
        kept = []
        before = bytes_free(gpu)

        def step():
            kept[:] = [gpu.xp.add(x, 1)]

        step()
        replay = gpu.capture(step)
        replay()
        result = kept.pop()
        del replay, step
        gc.collect()
        assert gpu.to_numpy(result).sum() == MIB
        del result
        assert bytes_free(gpu) == before

    def test_a_failed_recording_gives_it_back(self, gpu):
        x = gpu.zeros((MIB,), np.float32)
        before = bytes_free(gpu)

        def step():
            y = gpu.xp.add(x, 1)
            float(y[0])  # a device that records cannot be asked

        with pytest.raises(BackendError, match="capture: the step cannot be recorded"):
            gpu.capture(step)
        assert bytes_free(gpu) == before
        working, _, y = add_and_scale(gpu)
        y[...] = 0
        gpu.capture(working)()
        assert gpu.to_numpy(y).min() == 2

    def test_a_trainer_that_goes_gives_it_back(self, gpu):
        def train():
            trainer, x, labels = convolutional(16)
            for _ in range(6):
                trainer.train_batch(x, labels)
            trainer.read()

        train()
        before = bytes_free(gpu)
        for _ in range(3):
            train()
        assert bytes_free(gpu) == before

    def test_recording_takes_little_more_than_a_step_as_written(self, gpu):
        trainer, x, labels = convolutional(64)
        base = bytes_free(gpu)
        for _ in range(3):
            trainer.train_batch(x, labels)
        trainer.read()
        eager = base - gpu.xp.cuda.runtime.memGetInfo()[0]
        for _ in range(3):
            trainer.train_batch(x, labels)
        trainer.read()
        assert trainer._step.compiled[0].graphs
        assert base - gpu.xp.cuda.runtime.memGetInfo()[0] <= 1.2 * eager


class TestOutOfMemory:
    def test_recorded_blocks_are_never_trimmed(self, gpu):
        """A pool of CuPy's would free the first sum, which recorded nodes still write, to make room for the second."""
        x, y = gpu.zeros((MIB,), np.float32), gpu.zeros((2 * MIB,), np.float32)
        before = bytes_free(gpu)

        def step():
            xp = gpu.xp
            xp.add(xp.add(x, 1), 1, out=x)
            xp.add(xp.add(y, 1), 1, out=y)

        pool = gpu.xp.get_default_memory_pool()
        pool.set_limit(size=pool.total_bytes() + 12 * MIB + 64)
        gpu.capture(step)
        pool.set_limit(size=pool.total_bytes() + 11 * MIB)
        with pytest.raises(OutOfMemoryError, match="cupy: out of memory allocating"):
            gpu.capture(step)
        pool.set_limit(size=0)
        assert bytes_free(gpu) == before
        gpu.capture(step)()
        assert gpu.to_numpy(x).max() == 2

    def test_while_a_step_is_recorded(self, gpu):
        """It is an error of memory, with advice; the trainer goes on with smaller batches."""
        trainer, x, labels = convolutional(64)
        for _ in range(3):
            trainer.train_batch(x[:32], labels[:32])
        trainer.read()
        pool = gpu.xp.get_default_memory_pool()
        bytes_free(gpu)
        pool.set_limit(size=pool.total_bytes() + 3 * MIB)
        with pytest.raises(OutOfMemoryError, match=r"with a batch of 32; a batch of \d+ fits"):
            trainer.train_batch(x[:32], labels[:32])
        before = len(trainer.history)
        for _ in range(3):
            trainer.train_batch(x[:2], labels[:2])
        trainer.read()
        assert len(trainer.history) == before + 3
        assert np.isfinite(list(trainer.history.steps["loss"])).all()

    def test_the_advice_is_the_largest_half_that_fits(self, gpu):
        trainer, x, labels = convolutional(64)
        pool = gpu.xp.get_default_memory_pool()
        convolutional(8)[0].train_batch(x[:8], labels[:8])  # makes workspaces, which are no part of a batch
        bytes_free(gpu)
        base = pool.total_bytes()
        trainer.train_batch(x[:32], labels[:32])
        trainer.read()
        needed = pool.total_bytes() - base
        del trainer
        bytes_free(gpu)
        trainer, x, labels = convolutional(64)
        bytes_free(gpu)
        pool.set_limit(size=pool.total_bytes() + int(1.1 * needed))
        with pytest.raises(OutOfMemoryError, match="with a batch of 64; a batch of 32 fits"):
            trainer.train_batch(x, labels)

    def test_on_a_device_that_is_full(self):
        """The device's own refusal, not a pool's limit, in a process of its own."""
        code = """
            import cupy, numpy as np, xpcnn
            from xpcnn.errors import OutOfMemoryError
            MIB = 1 << 20
            with xpcnn.use_backend("cupy") as gpu:
                x, y = gpu.zeros((MIB,), np.float32), gpu.zeros((MIB,), np.float32)
                def step():
                    cupy.multiply(cupy.add(x, 1), 2, out=y)
                step()
                gpu.capture(step)()  # the stream and its workspace are there from here on
                cupy.get_default_memory_pool().free_all_blocks()
                full = [cupy.cuda.Memory(cupy.cuda.runtime.memGetInfo()[0] - 3 * MIB)]
                try:
                    gpu.capture(step)
                except OutOfMemoryError as error:
                    print(error)
                full.clear()
                y[...] = 0
                gpu.capture(step)()
                print(int(y.min()))
        """
        done = run(code, CUDA_ON_CPU_MEGABYTES="256")
        assert done.stdout.startswith("cupy: out of memory allocating 4,194,304 bytes"), done.stderr
        assert done.stdout.endswith("\n2\n")


def run(code, **environment):
    """Run Python code in a process of its own."""
    import os
    import textwrap

    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment})


class TestStart:
    def test_a_folder_for_kernels_that_cannot_be_written(self, tmp_path):
        """CuPy makes it at import: "auto" would be NumPy, and "cupy" blame the installation."""
        (tmp_path / "file").touch()
        (tmp_path / "tmp").mkdir()
        code = """
            import os, xpcnn
            print(xpcnn.available_backends()[:2])
            xpcnn.set_backend("auto")
            gpu = xpcnn.get_backend()
            print(gpu.name, gpu.to_numpy(gpu.xp.ones(3) + 1).tolist(), *gpu.hints(), sep="\\n")
            print(os.environ["CUPY_CACHE_DIR"])
        """
        folder = tmp_path / "file" / "kernels"
        done = run(code, CUPY_CACHE_DIR=str(folder), TMPDIR=str(tmp_path / "tmp"))
        lines = done.stdout.splitlines()
        assert lines[:3] == ["['numpy', 'cupy']", "cupy", "[2.0, 2.0, 2.0]"], done.stderr
        assert lines[-2].startswith(f"CuPy cannot write its compiled kernels to {folder}, so they are in {lines[-1]},")
        kept = Path(lines[-1])
        assert kept.parent == tmp_path / "tmp"
        assert kept.stat().st_mode & 0o777 == 0o700
        assert list(kept.iterdir())
        again = run(code, CUPY_CACHE_DIR=str(folder), TMPDIR=str(tmp_path / "tmp"))
        assert again.stdout.splitlines()[-1] == lines[-1]
        kept.chmod(0o777)  # anybody may have put kernels there
        other = run(code, CUPY_CACHE_DIR=str(folder), TMPDIR=str(tmp_path / "tmp")).stdout.splitlines()[-1]
        assert Path(other).parent == tmp_path / "tmp"
        assert other != lines[-1]
        assert not Path(other).exists()  # it was that process's alone

    def test_without_the_headers_of_cuda(self):
        code = """
            import cuda.pathfinder
            cuda.pathfinder.find_nvidia_header_directory = lambda name: None
            import xpcnn
            try:
                xpcnn.set_backend("cupy")
            except xpcnn.errors.BackendError as error:
                print(error)
        """
        done = run(code)
        message = "and a device, but no kernel can be compiled (Failed to find CUDA headers."
        assert message in done.stdout, done.stderr
        assert 'pip install ".[cuda' in done.stdout

    def test_advice_knows_the_devices(self, gpu):
        if (found := driver.oldest_capability()) is not None:  # an emulated driver may not answer
            assert found <= gpu.compute_capability
        assert driver.fitting((12, 9), None) == "cuda12"


class TestUpload:
    def test_much_data_is_not_pinned(self, gpu):
        """CuPy keeps pinned memory for good, and rounds it up."""
        pinned = gpu.xp.get_default_pinned_memory_pool()
        host = np.random.default_rng(0).random((transfer.LARGE // 4 + 1, 2), np.float32).T
        before = pinned.n_free_blocks()
        there = gpu.asarray(host)
        gpu.synchronize()
        assert pinned.n_free_blocks() == before
        assert np.array_equal(gpu.to_numpy(there), host)

    def test_much_data_waits_for_who_had_the_memory(self, gpu):
        with gpu.xp.cuda.Stream(non_blocking=True):
            host = np.ones(transfer.LARGE // 4, np.float32)
            first = gpu.empty(host.shape, host.dtype)
            first[...] = 3
            address = first.data.ptr
            del first
            second = gpu.asarray(host)
            assert second.data.ptr == address
            assert gpu.to_numpy(second).max() == 1


class TestThreads:
    def test_recordings_at_once(self, gpu):
        """All share one stream: a second that began inside the first would be part of it, or end it."""

        def slow(step):
            def both():
                step()
                time.sleep(0.01)
                step()

            return both

        steps = [(slow(step), x, y) for step, x, y in (add_and_scale(gpu, 1000 + i) for i in range(4))]
        barrier, failures = threading.Barrier(4), []

        def work(step, y, number):
            try:
                with use_backend("cupy"):
                    for i in range(5):
                        barrier.wait(60)
                        replay = gpu.capture(step)
                        with gpu.graphs.lock:  # nobody records while this looks
                            y[...] = 0
                            replay()
                            assert gpu.to_numpy(y).min() == 2, (number, i)
            except BaseException as error:
                failures.append(error)
                barrier.abort()

        threads = [threading.Thread(target=work, args=(step, y, i)) for i, (step, _, y) in enumerate(steps)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures

    def test_a_graph_outlives_the_thread_that_recorded_it(self, gpu):
        """Its products use the workspace of that thread's handle."""
        a = gpu.asarray(np.ones((64, 64), np.float32))
        out = gpu.zeros((64, 64), np.float32)
        found = []

        def record():
            with use_backend("cupy"):
                gpu.matmul(a, a, out=out)
                replay = gpu.capture(lambda: gpu.matmul(a, a, out=out))
                with gpu.graphs.stream:
                    found.extend([replay, gpu.cublas.current().workspace.data.ptr])

        thread = threading.Thread(target=record)
        thread.start()
        thread.join()
        gc.collect()
        replay, workspace = found
        size = gpu.cublas.current().workspace.nbytes
        with gpu.graphs.stream:  # the arena of the stream is where a freed workspace would be found again
            others = [gpu.empty((size,), np.uint8) for _ in range(4)]
        assert all(other.data.ptr != workspace for other in others)
        replay()
        assert gpu.to_numpy(out).max() == 64

    @pytest.mark.skipif("cupy:1" not in xpcnn.available_backends(), reason="one device")
    def test_a_fresh_thread_works_on_its_own_device(self):
        code = """
            import threading, warnings
            import numpy as np, cupy, xpcnn
            from xpcnn import functional as F
            xpcnn.set_backend("cupy:1")
            gpu = xpcnn.get_backend()
            x = gpu.asarray(np.ones((8, 8), np.float32))
            y = gpu.zeros((8, 8), np.float32)
            def on_one(*arrays):
                assert all(array.device.id == 1 for array in arrays), [array.device.id for array in arrays]
            def fresh(work):
                failed = []
                def run():
                    try:
                        assert cupy.cuda.device.get_device_id() == 0
                        work()
                    except BaseException as error:
                        failed.append(error)
                thread = threading.Thread(target=run)
                thread.start()
                thread.join()
                if failed:
                    raise failed[0]
            def step():
                gpu.matmul(gpu.xp.add(x, 1), x, out=y)
            found = []
            fresh(lambda: on_one(gpu.empty((3,), np.float32)))
            fresh(lambda: on_one(gpu.zeros((3,), np.float32)))
            fresh(lambda: on_one(xpcnn.get_backend().xp.ones(3)))
            fresh(lambda: on_one(*next(iter(gpu.prefetch([(np.ones(3), np.ones(3))])))))
            fresh(lambda: gpu.kernels.launch("relu_forward", x.dtype, (1,), x, y, x.size))
            fresh(lambda: found.append(gpu.capture(step)))
            y[...] = 0
            fresh(found[0])
            gpu.synchronize()
            assert gpu.to_numpy(y).tolist() == np.full((8, 8), 16).tolist()
            assert found[0].pool_bytes > 0
            with cupy.cuda.Device(0):
                assert cupy.get_default_memory_pool().total_bytes() == 0
            print("done")
        """
        done = run(code)
        assert done.stdout == "done\n", done.stderr


class TestImplicitGemm:
    def test_a_recorded_step_follows_the_switch(self, gpu, monkeypatch):
        """Recorded with columns, recorded anew without: the same training within rounding, and none filled."""
        columns, launch = [], gpu.kernels.launch

        def noted(name, *rest):
            columns.append(name == "fill_columns")
            launch(name, *rest)

        monkeypatch.setattr(gpu.kernels, "launch", noted)
        monkeypatch.setattr(gpu, "tools", (*gpu.tools, __file__))  # what is noted is no part of the step
        trained = {}
        try:
            for first in (False, True):
                gpu.implicit_gemm = first
                trainer, x, labels = convolutional(3, 4, 8)
                for _ in range(6):
                    trainer.train_batch(x, labels)
                assert any(columns) is not first
                gpu.implicit_gemm = not first
                columns.clear()
                for _ in range(6):
                    trainer.train_batch(x, labels)
                assert columns, "the step was not recorded anew"
                assert any(columns) is first
                columns.clear()
                trained[first] = [gpu.to_numpy(parameter.data) for parameter in trainer.model.parameters()]
        finally:
            gpu.implicit_gemm = False
        for columnless, usual in zip(trained[True], trained[False], strict=True):
            np.testing.assert_allclose(columnless, usual, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("dtype", ["float32", "tf32", "float16"])
    @pytest.mark.parametrize("compiled", [False, True])
    def test_batch_norm_takes_its_statistics_from_tiles(self, gpu, monkeypatch, dtype, compiled):
        """No pass of its own over what a convolution wrote, and the same training as with one, at large means."""
        names, launch, fused = [], gpu.kernels.launch, gpu.fused

        def noted(name, *rest):
            names.append(name)
            launch(name, *rest)

        monkeypatch.setattr(gpu.kernels, "launch", noted)
        monkeypatch.setattr(gpu, "tools", (*gpu.tools, __file__))  # what is noted is no part of the step
        trained, counts = [], []
        try:
            gpu.implicit_gemm, gpu.allow_tf32 = True, dtype == "tf32"
            for left_out in ("conv2d_sums", None):
                monkeypatch.setattr(gpu, "fused", {name: fused[name] for name in fused if name != left_out})
                trainer, x, labels = normalised("float32" if dtype == "tf32" else dtype, compiled)
                for _ in range(5):
                    trainer.train_batch(x, labels)
                counts.append([names.count(name) for name in ("batch_norm_sums", "batch_norm_train")])
                names.clear()
                arrays = [each.data for each in trainer.model.parameters()]
                arrays += [each for _, each in trainer.model.named_buffers()]
                trained.append([gpu.to_numpy(each).astype(float) for each in arrays])
        finally:
            gpu.implicit_gemm = gpu.allow_tf32 = False
        (passes, norms), (passes_left, same) = counts
        assert passes == norms == same > 0
        assert passes_left == 0
        bound = 1e-2 if dtype == "float16" else 1e-4
        for tiled, usual in zip(*trained, strict=True):
            assert np.isfinite(tiled).all()
            np.testing.assert_allclose(tiled, usual, rtol=bound, atol=bound * np.abs(usual).max())
