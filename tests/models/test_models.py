import math

import numpy as np
import pytest

import xpcnn
from tests.functional.strategies import distinct, values
from tests.models import small
from xpcnn import manual_seed, models, nn, optim
from xpcnn.backend import use_backend
from xpcnn.errors import ConfigError, DTypeError, ShapeError
from xpcnn.testing import assert_close, gradcheck

NETS = {  # shape of one image, parameters
    "lenet5": ((1, 32, 32), 61_990),
    "deep3": ((1, 28, 28), 113_162),
    "tiny": ((1, 28, 28), 11_540),
    "conv8": ((1, 28, 28), 13_610),
    "three-layer": ((3, 32, 32), 1_645_346),
    "resnet20": ((3, 32, 32), 272_474),
    "vgg8": ((3, 32, 32), 1_187_274),
    "resnet32": ((3, 32, 32), 464_154),
    "resnet56": ((3, 32, 32), 853_018),
    "vgg11": ((3, 32, 32), 9_225_610),
    "mobilenet": ((3, 32, 32), 3_217_226),
    "densenet40": ((3, 32, 32), 1_019_722),
    "unet": ((1, 16, 32), 31_030_658),
    "conv4": ((1, 28, 28), 156_282),
}
SMALL = {  # options and images (N, C, H, W) of a variant in the place of the whole
    "resnet32": ({}, (3, 3, 8, 8)),
    "resnet56": ({}, (3, 3, 8, 8)),
    "vgg11": ({"batch_norm": True, "hidden_dim": 6, "dropout": 0.0}, (3, 3, 32, 32)),
    "mobilenet": ({"width": 1 / 16}, (4, 3, 32, 32)),
    "densenet40": ({"depth": 10, "growth_rate": 4}, (3, 3, 8, 8)),
    "unet": ({"width": 4, "depth": 2, "batch_norm": True, "num_classes": 3}, (2, 1, 8, 12)),
}
LEAST = {  # pixels of the smallest images
    "lenet5": 16, "deep3": 5, "tiny": 4, "conv8": 4, "three-layer": 2, "vgg8": 8, "vgg11": 32, "densenet40": 4,
    "unet": 16, "conv4": 15,
}  # fmt: skip
every_net = pytest.mark.parametrize("name", NETS)


def test_every_net_is_here():
    assert models.names() == list(NETS)
    for name in NETS:
        assert getattr(models, name.replace("-", "_"))


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
    whole = backend.name == "numpy"
    net = models.create(name) if whole else small.create(name)
    if batch == 1:
        net.eval()  # batch norm has nothing to learn from one value
    shape = (batch, *(NETS[name][0] if whole else small.SHAPES[name]))
    logits = net(backend.asarray(values(rng, shape, "float32")))
    by_pixel = whole and name == "unet"
    assert logits.shape == ((batch, 2, *shape[2:]) if by_pixel else (batch, 10))
    assert logits.dtype == "float32"
    if by_pixel:
        dlogits = backend.asarray(values(rng, logits.shape, "float32"))
    else:
        criterion = nn.CrossEntropyLoss()
        criterion(logits, backend.asarray(np.arange(batch)))
        dlogits = criterion.backward()
    assert net.backward(dlogits).shape == shape
    gradients = [backend.to_numpy(parameter.grad) for parameter in net.parameters()]
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
    assert all(np.any(gradient) for gradient in gradients if gradient.ndim > 1)


@pytest.mark.parametrize(("name", "options"), [("tiny", {"weight_scale": 0.01}), ("conv8", {}), ("three-layer", {})])
def test_weights_drawn_small_make_every_class_as_likely(backend, name, options, rng):
    net = models.create(name, **options)
    with nn.no_grad():
        logits = net(backend.asarray(values(rng, (16, *NETS[name][0]), "float32")))
    loss = nn.CrossEntropyLoss()(logits, backend.asarray(rng.integers(0, 10, 16)))
    assert float(backend.to_numpy(loss)) == pytest.approx(math.log(10), rel=0.02)


@pytest.mark.parametrize("name", sorted(NETS.keys() - {"resnet32", "resnet56"}))  # which are made as resnet20 is
def test_gradients(backend, rng, name):
    """Along one direction of all parameters and the images, mostly uphill, in which arrays of any size weigh alike.

    Three forwards see a wrong array anywhere, where `gradcheck` takes two for each entry of a few: that one names it.
    Uphill the parts do not cancel, so the slope is far above rounding.
    """
    options, shape = SMALL.get(name, ({}, (2, *NETS[name][0])))
    manual_seed(0)
    net = small.thin(name, **options).to(dtype="float64")
    if name in SMALL:
        # With all at zero a scale before batch norm has no gradient but that of eps, and nothing to compare.
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.bias.data[...] = backend.asarray(values(rng, layer.bias.shape, "float64") / 4)
    x = distinct(rng, shape, "float64")

    def forward(x):
        manual_seed(1)  # the same masks
        return net(backend.asarray(x))

    dy = values(rng, forward(x).shape, "float64")
    gradients = [net.backward(backend.asarray(dy)), *(parameter.grad for parameter in net.parameters())]
    gradients = [backend.to_numpy(gradient).astype("float64") for gradient in gradients]
    before = [x, *(backend.to_numpy(parameter.data).copy() for parameter in net.parameters())]
    signs = [np.where(g < 0, -1.0, 1.0) * np.where(rng.random(g.shape) < 3 / 4, 1.0, -1.0) for g in gradients]
    sums = [np.abs(gradient).sum() for gradient in gradients]
    steps = [sign / max(total, max(sums) / 1000) for sign, total in zip(signs, sums, strict=True)]
    expected = sum(np.vdot(g, step) for g, step in zip(gradients, steps, strict=True))

    def value(way):
        moved = [array + way * step for array, step in zip(before, steps, strict=True)]
        for parameter, array in zip(net.parameters(), moved[1:], strict=True):
            parameter.data[...] = backend.asarray(array)
        return np.vdot(backend.to_numpy(forward(moved[0])), dy)

    way = 1e-7  # so small that of the many thousand ReLUs hardly one goes over its kink
    found = (value(way) - value(-way)) / (2 * way)
    assert found == pytest.approx(expected, rel=1e-4), gradcheck(net, x, max_entries=2, eps=1e-7)


@every_net
def test_a_seed_means_the_same_net_on_every_backend(name, backend, other_backend):
    states = []
    for where in (backend.name, other_backend):
        manual_seed(5)
        with use_backend(where) as active:
            net = models.create(name, **SMALL.get(name, ({}, ()))[0])
            states.append({key: active.to_numpy(array) for key, array in net.state_dict().items()})
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


def test_the_papers_counts():
    def count(name, **options):
        return sum(parameter.size for parameter in models.create(name, **options).parameters())

    for name, padded in (("resnet20", 269_722), ("resnet32", 464_154), ("resnet56", 853_018)):
        assert count(name, shortcut="padding") == padded  # 0.27, 0.46 and 0.85 million
        assert count(name, shortcut="projection") == padded + 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64

    assert count("mobilenet", num_classes=1000, image_size=224, stem_stride=2) == 4_231_976  # 4.2 million

    # The paper's 133 million are 224x224 images (7x7 pixels are left), 1000 classes and 4096 hidden values.
    def dense(left, hidden):
        return 512 * left * hidden + hidden + hidden * hidden + hidden + hidden * 1000 + 1000

    assert 9_220_480 + dense(7 * 7, 4096) == 132_863_336
    assert count("vgg11", num_classes=1000, image_size=64, hidden_dim=32) == 9_220_480 + dense(2 * 2, 32)


@every_net
def test_a_net_is_built_to_the_data(backend, rng, name):
    least = LEAST.get(name, 1)
    multiples = name == "unet"
    for size in [(least, least), (least, 2 * least), (2 * least, least) if multiples else (least + 3, least + 8)]:
        options, _ = SMALL.get(name, ({}, ()))
        options = options | {"num_classes": 3, "in_channels": 2, "image_size": size}
        if multiples:
            options["depth"] = 4
        net = small.thin(name, **options).eval()
        logits = net(backend.asarray(values(rng, (2, 2, *size), "float32")))
        assert logits.shape == ((2, 3, *size) if multiples else (2, 3))


@pytest.mark.parametrize("name", LEAST)
def test_images_of_which_nothing_would_be_left(name):
    if name == "unet":
        for size in (17, (16, 24), 8):
            with pytest.raises(ShapeError, match=r"image_size: unet expects multiples of 16, .*, got .*; resize"):
                models.create("unet", image_size=size)
        return
    least = LEAST[name]
    for size in (least - 1, (least, least - 1), (least - 1, 100)):
        with pytest.raises(ShapeError, match=rf"image_size: {name} expects images of {least}x{least} pixels or more"):
            models.create(name, image_size=size)


@every_net
def test_numbers_that_are_none(name):
    for option in ("num_classes", "in_channels", "image_size"):
        with pytest.raises(ShapeError, match=f"{option}: expected 1 or more, got 0"):
            models.create(name, **{option: 0})
        with pytest.raises(DTypeError, match=f"{option}: expected integers, got "):
            models.create(name, **{option: "three"})


@pytest.mark.parametrize("name", SMALL)
def test_a_step_compiled_is_the_step_as_written(backend, name, rng):
    options, shape = SMALL[name]
    x = backend.asarray(values(rng, shape, "float32"))
    losses, states = [], []
    before = xpcnn.get_num_threads()
    xpcnn.set_num_threads(2)
    try:
        for compiled in (False, True):
            manual_seed(3)
            net = small.thin(name, **options)
            optimizer = optim.SGD(net.parameters(), 0.05, momentum=0.9)
            criterion = nn.MSELoss() if name == "unet" else nn.CrossEntropyLoss()
            y = np.zeros((shape[0], 3, *shape[2:]), "float32") if name == "unet" else np.arange(shape[0])
            y = backend.asarray(y)

            def step(x, y, net=net, optimizer=optimizer, criterion=criterion):
                optimizer.zero_grad()
                loss = criterion(net(x), y)
                net.backward(criterion.backward(), input_gradient=False)
                optimizer.step()
                return loss

            run = xpcnn.compile(step) if compiled else step
            losses.append([float(backend.to_numpy(run(x, y))) for _ in range(5)])
            states.append({key: backend.to_numpy(array) for key, array in net.state_dict().items()})
    finally:
        xpcnn.set_num_threads(before)
    assert losses[0] == losses[1]
    assert all(np.array_equal(array, states[1][key]) for key, array in states[0].items())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lenet", {}, "name: expected one of lenet5, deep3, .*, got 'lenet'"),
        ("conv8", {"classes": 3}, "options: conv8 takes num_classes, in_channels, image_size, got classes"),
        ("mobilenet", {"width": 0}, "width: expected a factor of the numbers of channels from 1/32 to 8, got 0"),
        ("mobilenet", {"width": "1"}, "width: expected a factor of the numbers of channels from 1/32 to 8, got '1'"),
        ("resnet32", {"shortcut": "A"}, 'shortcut: expected "padding" or "projection", got \'A\''),
        ("densenet40", {"depth": 41}, r"depth: expected 3k \+ 4 .*, got 41"),
        ("deep3", {"pooling": "min"}, 'pooling: expected "max" or "average", got \'min\''),
    ],
)
def test_what_does_not_fit(name, options, message):
    with pytest.raises(ConfigError, match=message):
        models.create(name, **options)


@pytest.mark.parametrize("name", [None, ["tiny"], np.zeros(3)])
def test_what_is_no_name(name):
    with pytest.raises(ConfigError, match=r"name: expected one of .*lenet5"):
        models.create(name)


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
