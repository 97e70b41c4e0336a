import math

import numpy as np
import pytest

from tests.functional.strategies import distinct, values
from xpcnn import manual_seed, models, nn
from xpcnn.backend import use_backend
from xpcnn.errors import ConfigError, ShapeError
from xpcnn.testing import assert_close, gradcheck

NETS = {  # shape of one image, parameters
    "lenet5": ((1, 32, 32), 61_990),
    "deep3": ((1, 28, 28), 113_162),
    "tiny": ((1, 28, 28), 11_540),
    "conv8": ((1, 28, 28), 13_610),
    "three-layer": ((3, 32, 32), 1_645_346),
    "resnet20": ((3, 32, 32), 272_474),
    "vgg8": ((3, 32, 32), 1_187_274),
    "mobilenet": ((3, 32, 32), 3_217_226),
}
every_net = pytest.mark.parametrize("name", NETS)


def test_every_net_is_here():
    assert models.names() == list(NETS)


@every_net
def test_size(name):
    net = models.create(name)
    assert isinstance(net, nn.Sequential)
    assert sum(parameter.size for parameter in net.parameters()) == NETS[name][1]
    total = net.summary(NETS[name][0]).splitlines()[-1].split()
    assert total[1] == f"{NETS[name][1]:,}"


@every_net
@pytest.mark.parametrize("batch", [1, 3])
def test_shapes_and_a_step(backend, rng, name, batch):
    net = models.create(name)
    if batch == 1:
        net.eval()  # batch norm has nothing to learn from one value
    shape = (batch, *NETS[name][0])
    logits = net(backend.asarray(values(rng, shape, "float32")))
    assert logits.shape == (batch, 10)
    assert logits.dtype == "float32"
    criterion = nn.CrossEntropyLoss()
    criterion(logits, backend.asarray(np.arange(batch)))
    assert net.backward(criterion.backward()).shape == shape
    gradients = [backend.to_numpy(parameter.grad) for parameter in net.parameters()]
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
    assert all(np.any(gradient) for gradient in gradients if gradient.ndim > 1)


@pytest.mark.parametrize(("name", "options"), [("tiny", {"weight_scale": 0.01}), ("conv8", {}), ("three-layer", {})])
def test_weights_drawn_small_make_every_class_as_likely(name, options, rng):
    net = models.create(name, **options)
    with nn.no_grad():
        logits = net(values(rng, (16, *NETS[name][0]), "float32"))
    assert float(nn.CrossEntropyLoss()(logits, rng.integers(0, 10, 16))) == pytest.approx(math.log(10), rel=0.02)


SMALL = {  # options and images (N, C, H, W) of a variant whose gradients are checked in the place of the whole
    "mobilenet": ({"width": 1 / 8}, (4, 3, 32, 32)),
}


@pytest.mark.parametrize("name", NETS)
def test_gradients(rng, name):
    options, shape = SMALL.get(name, ({}, (2, *NETS[name][0])))
    net = models.create(name, **options)
    if name in SMALL:
        # With all at zero a scale before batch norm has no gradient but that of eps, and nothing to compare.
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.bias.data[...] = values(rng, layer.bias.shape) / 4
    # A step this small moves none of the many thousand ReLUs over its kink.
    report = gradcheck(net, distinct(rng, shape, "float64"), max_entries=2, eps=1e-7)
    assert report, report


@every_net
def test_a_seed_means_the_same_net_on_every_backend(name):
    states = []
    for backend_name in ("numpy", "fake"):
        manual_seed(5)
        with use_backend(backend_name) as backend:
            net = models.create(name)
            states.append({key: backend.to_numpy(array) for key, array in net.state_dict().items()})
    assert list(states[0]) == list(states[1])
    for key, array in states[0].items():
        assert np.array_equal(array, states[1][key])


def test_pooling_of_deep3(backend, rng):
    net = models.create("deep3", pooling="average")
    assert sum(isinstance(layer, nn.AvgPool2d) for layer in net) == 3
    assert net(backend.asarray(values(rng, (2, 1, 28, 28), "float32"))).shape == (2, 10)


def test_options(backend, rng):
    net = models.create("lenet5", num_classes=7, in_channels=3, dropout=0.0).eval()
    assert net(backend.asarray(values(rng, (2, 3, 32, 32), "float32"))).shape == (2, 7)
    tiny = models.create("tiny", dtype="float64")
    assert tiny(backend.asarray(values(rng, (2, 1, 28, 28), "float64"))).dtype == "float64"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lenet", {}, "name: expected one of lenet5, deep3, .*, got 'lenet'"),
        ("conv8", {"classes": 3}, "options: conv8 takes num_classes, got classes"),
        ("deep3", {"pooling": "min"}, 'pooling: expected "max" or "average", got \'min\''),
    ],
)
def test_what_does_not_fit(name, options, message):
    with pytest.raises(ConfigError, match=message):
        models.create(name, **options)


@pytest.mark.parametrize(("name", "shape"), [("lenet5", (1, 28, 28)), ("deep3", (3, 28, 28)), ("tiny", (1, 32, 32))])
def test_images_that_do_not_fit(backend, name, shape):
    with pytest.raises(ShapeError, match=r"expected .*, got"):
        models.create(name)(backend.zeros((2, *shape), "float32"))


def test_a_net_is_the_same_in_two_halves_of_a_batch(backend, rng):
    net = models.create("resnet20").eval()
    x = values(rng, (4, 3, 32, 32), "float32")
    with nn.no_grad():
        whole = backend.to_numpy(net(backend.asarray(x)))
        halves = [backend.to_numpy(net(backend.asarray(part))) for part in (x[:2], x[2:])]
    assert_close(np.concatenate(halves), whole, tolerance=1e-5)
