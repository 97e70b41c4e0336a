"""How many kernels a recorded training step launches, counted on the fake device: a launch costs what small work does.

Products, copies and the calls of `xp` count as one each, as they do on a GPU.
"""

from pathlib import Path

import pytest

from tests.fake_device import capture
from tests.fake_device.recording import Recorder, untouched
from xpcnn import models, nn, optim
from xpcnn.backend import register_backend, use_backend
from xpcnn.backend.cupy.updates import FUSED
from xpcnn.training import Trainer

from .shim import CpuKernels, ShimBackend

pytestmark = pytest.mark.gpu_static


class CountingBackend(ShimBackend):
    """The fake device with kernels, whose captures count what they record."""

    name = "counting"
    captures = True
    multiprocessors = 132
    tools = (str(Path(__file__).parent), str(Path(__file__).parents[1] / "fake_device"))

    def __init__(self):
        super().__init__()
        self.counted = []

    def owns(self, array):
        return False  # its arrays are those of the backend "fake", which stands for it

    def capture(self, step):
        recorder, memory, launch = Recorder(), [], CpuKernels.launch
        CpuKernels.launch = recorder.noting(launch)  # of every file
        try:
            with untouched(memory), recorder.running(), capture():
                step()
        finally:
            CpuKernels.launch = launch
        self.counted.append(len(recorder.tape))
        return lambda: None


@pytest.fixture
def counting(monkeypatch):
    from xpcnn import backend as switch

    before = switch._backends["fake"]
    device = CountingBackend()
    device.name = "fake"
    device.owns = before.owns
    register_backend(device)
    switch._by_type.clear()
    yield device
    register_backend(before)
    switch._by_type.clear()


SHAPES = {
    "tiny": (1, 28, 28),
    "lenet5": (1, 32, 32),
    "deep3": (1, 28, 28),
    "vgg8": (3, 8, 8),  # launches are those of 32x32, but where convolutions without columns share out few pixels
    "resnet20": (3, 8, 8),
}
MOST = {"tiny": 28, "lenet5": 65, "deep3": 40, "vgg8": 90, "resnet20": 240}
FLOAT16_SHARE = 1.3  # of float32's launches, at most; casts of images, logits and their gradient are three more


@pytest.mark.parametrize("name", MOST)
def test_a_recorded_step_launches_few_kernels(counting, rng, name):
    assert launches(counting, rng, name, "float32") <= MOST[name]


@pytest.mark.parametrize("name", MOST)
def test_a_recorded_step_of_float16_launches_hardly_more(counting, rng, name):
    assert launches(counting, rng, name, "float16") <= FLOAT16_SHARE * launches(counting, rng, name, "float32")


@pytest.mark.parametrize("name", ["lenet5", "vgg8", "resnet20"])
def test_convolutions_without_columns_launch_less(counting, rng, monkeypatch, name):
    usual = launches(counting, rng, name, "float32")
    counting.counted.clear()
    monkeypatch.setattr(counting, "implicit_gemm", True)
    monkeypatch.setattr(counting, "keeps_columns", False)  # as the setter of CuPy's backend does
    assert count(counting, rng, name, "float32", size=32) <= 0.9 * usual  # kernels of every file counted


@pytest.mark.parametrize("name", ["vgg8", "resnet20"])
def test_sums_of_convolutions_add_no_launch(counting, rng, monkeypatch, name):
    monkeypatch.setattr(counting, "implicit_gemm", True)
    monkeypatch.setattr(counting, "keeps_columns", False)
    found = []
    for left_out in ("", "conv2d_sums"):
        kernels = {each: kernel for each, kernel in FUSED.items() if each != left_out}
        monkeypatch.setattr(counting, "fused", kernels)
        counting.counted.clear()
        counting.kernels.launched.clear()
        found.append(count(counting, rng, name, "float32"))
        assert ("merge_moments" in counting.kernels.launched) is not bool(left_out)
        assert ("batch_norm_sums" in counting.kernels.launched) is bool(left_out)
    assert found[0] <= found[1]


_launches: dict[tuple[str, str], int] = {}


def launches(counting, rng, name, dtype):
    """Return how many kernels a recorded step of a model launches, counted once."""
    if (name, dtype) not in _launches:
        counting.counted.clear()
        _launches[name, dtype] = count(counting, rng, name, dtype)
    return _launches[name, dtype]


def count(counting, rng, name, dtype, size=None):
    channels, size = SHAPES[name][0], size or SHAPES[name][1]
    with use_backend("fake") as backend:
        assert backend is counting
        model = models.create(name, image_size=size).to(dtype=dtype)
        optimizer = optim.Adam(model.parameters()) if name == "lenet5" else optim.SGD(model.parameters(), 0.01, 0.9)
        trainer = Trainer(model, optimizer, nn.CrossEntropyLoss(), compile=True)
        x = backend.asarray(rng.normal(size=(2, channels, size, size)).astype("float32"))
        labels = backend.asarray(rng.integers(0, 10, 2))
        for _ in range(5):
            if not counting.counted:
                trainer.train_batch(x, labels)
        (counted,) = counting.counted
        return counted
