"""What holds for every public function of `F` and every layer and loss of `nn`; a new one is held to it unnamed.

A function is called with arrays by the names of its parameters, in every kind of input (images, features, any shape)
that it takes. One with a parameter that has no entry here fails until it has one.
"""

import functools
import inspect
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from xpcnn import functional as F
from xpcnn import nn
from xpcnn.errors import DTypeError, ShapeError, XpcnnError

# The rebuilt convolution takes these checks over; delete this line with it.

KINDS: dict[str, dict[str, Any]] = {
    "images": {"x": (2, 4, 6, 6), "weight": (4, 4, 3, 3), "bias": (4,), "cols": (16, 50)},
    "features": {"x": (3, 4), "weight": (5, 4), "bias": (5,), "logits": (3, 4), "labels": (3,)},
    "dense": {"logits": (2, 4, 3, 5), "labels": (2, 3, 5), "weight": (4,)},
    "sequence": {"x": (3, 4, 5)},
    "vector": {"x": (4,)},
    "number": {"x": ()},
}
for _shapes in KINDS.values():
    _shapes.update(dict.fromkeys(("gamma", "beta", "running_mean", "running_var"), (4,)))
    if "x" in _shapes:
        _shapes["target"] = _shapes["x"]
PIXEL = {"x": (2, 4, 1, 1), "weight": (4, 4, 1, 1), "bias": (4,), "cols": (4, 2), "x_shape": (2, 4, 1, 1)}
PIXEL.update(dict.fromkeys(("gamma", "beta", "running_mean", "running_var"), (4,)), kernel_size=1, target=PIXEL["x"])
VALUES = {
    "kernel_size": 2, "training": True, "x_shape": (2, 4, 6, 6),
    "in_channels": 4, "out_channels": 4, "in_features": 4, "out_features": 5, "num_features": 4,
    "output_size": 4, "size": 5, "normalized_shape": (6, 6), "num_groups": 2, "num_channels": 4,
}  # fmt: skip
CHOSEN = {"upsample": ["size"], "Upsample": ["size"]}  # options that are not left at their defaults
ONE_PIXEL = {"kernel_size": 1, "x_shape": (2, 4, 1, 1), "output_size": 1, "size": 1, "normalized_shape": (1, 1)}
SHAPES = {
    "layer_norm": {"weight": (6, 6), "bias": (6, 6)},
    "group_norm": {"weight": (4,)},
    "cross_entropy": {"weight": (4,)},
}
PIXEL_SHAPES = {"layer_norm": {"weight": (1, 1), "bias": (1, 1)}, "group_norm": {"weight": (4,)}}
FUNCTIONS = {name: getattr(F, name) for name in F.__all__} | {
    "concat": lambda x, axis=1: F.concat([x], axis),
    "concat_backward": lambda dy, cache: F.concat_backward(dy, cache)[0],
}
SAID = {("concat", "x"): r"arrays\[0\]"}
MADE_OF_LAYERS = ("Sequential", "Residual", "Concat")
OF_ANY_SHAPE = (
    *MADE_OF_LAYERS, "concat", "pad_channels", "ChannelPad", "layer_norm", "LayerNorm",
    "mse_loss", "MSELoss", "l1_loss", "L1Loss", "binary_cross_entropy_with_logits", "BCEWithLogitsLoss",
)  # fmt: skip
ALONG_CHANNELS = ("concat", "Concat", "pad_channels", "ChannelPad")
KINDS["images"]["kernel_size"] = 2
LAYER_KERNEL = {"Conv2d": 3}
WRITTEN = ("running_mean", "running_var")  # in place
BATCHED = ("x", "logits", "labels", "target")
SCALARS = {bool: np.bool_, int: np.int64, float: np.float32}


@dataclass(frozen=True)
class Case:
    """One callable with one kind of input."""

    name: str
    kind: str

    def __str__(self):
        return f"{self.name}-{self.kind}"

    @property
    def parameters(self):
        target = FUNCTIONS.get(self.name) or getattr(nn, self.name)
        return inspect.signature(target).parameters

    @property
    def is_layer(self):
        return not hasattr(F, self.name)

    @property
    def is_loss(self):
        return self.is_layer and not issubclass(getattr(nn, self.name), nn.Module)

    @property
    def array_names(self):
        if self.is_loss:
            return list(inspect.signature(getattr(nn, self.name).__call__).parameters)[1:]
        return ["x"] if self.is_layer else [name for name in self.parameters if name in ARRAYS]

    @property
    def options(self):
        """Return name and default of its options, and of required arguments that are no arrays their value here."""
        found = {}
        for name, parameter in self.parameters.items():
            if name in self.array_names or parameter.kind is parameter.VAR_KEYWORD:
                continue
            if parameter.kind is parameter.VAR_POSITIONAL:
                continue
            if name in CHOSEN.get(self.name, ()):
                found[name] = VALUES[name]
            elif parameter.default is parameter.empty:
                if name == "body":
                    found[name] = nn.ReLU()
                else:
                    assert name in VALUES, f"say in VALUES of {__file__} what {name} of {self.name} may be"
                    found[name] = LAYER_KERNEL.get(self.name, VALUES[name]) if name == "kernel_size" else VALUES[name]
            else:
                found[name] = parameter.default
        return found

    def arrays(self, shapes=None, dtype="float32", seed=0):
        """Return the arrays by name; a shape may be replaced."""
        rng = np.random.default_rng(seed)
        given = {**KINDS[self.kind], **SHAPES.get(self.name, {}), **(shapes or {})}
        found = {}
        for name in self.array_names:
            shape = given[name]
            if name == "labels":
                found[name] = rng.integers(0, 4, shape)
            else:
                found[name] = np.asarray(rng.normal(size=shape), dtype)
                if name == "running_var":
                    found[name] = np.abs(found[name]) + np.asarray(0.5, dtype)
                if name in ("gamma", "beta", *WRITTEN) and dtype == "float16":
                    found[name] = found[name].astype("float32")
        return found

    def call(self, arrays, options=None):
        """Return (y, backward): the result, and what maps dy to gradients."""
        options = {**self.options, **(options or {})}
        if not self.is_layer:
            result = FUNCTIONS[self.name](**arrays, **options)
            backward = FUNCTIONS.get(f"{self.name}_backward")
            if not isinstance(result, tuple):
                if backward is None:
                    return result, None
                return result, lambda dy: backward(dy, result, **{k: v for k, v in options.items() if k == "axis"})
            if backward is None:  # a loss
                return result[0], lambda dy: result[1]
            return result[0], lambda dy: backward(dy, result[1])
        made = self.make(options)
        for name, parameter in made.named_parameters() if isinstance(made, nn.Module) else ():
            rng = np.random.default_rng(len(name))
            parameter.data = rng.normal(size=parameter.data.shape).astype(parameter.data.dtype)
        if self.is_loss:
            return made(*arrays.values()), lambda dy: made.backward()
        if getattr(arrays["x"], "dtype", None) in ("float64", "float16"):
            made.to(dtype=arrays["x"].dtype)
        return made(arrays["x"]), made.backward

    def make(self, options):
        """Return the layer, with a seed of its own."""
        from xpcnn import manual_seed

        manual_seed(3)
        target = getattr(nn, self.name)
        if self.name in ("Sequential", "Concat"):
            return target(nn.ReLU(), **options)
        return target(**options)


ARRAYS = {"x", "weight", "bias", "cols", "gamma", "beta", *WRITTEN, "target", "logits", "labels"}


def names():
    functions = [name for name in F.__all__ if not name.endswith("_backward")]
    classes = [name for name in nn.__all__ if isinstance(getattr(nn, name), type)]
    others = {"Module", "Parameter", "Inference", "no_grad"}  # a base class, and what is no layer of a forward
    return [*functions, *(name for name in classes if name not in others)]


@functools.cache
def takes(case):
    """Whether a callable takes a kind of input."""
    try:
        if any(name not in KINDS[case.kind] for name in case.array_names):
            return False
        case.call(case.arrays())
    except XpcnnError:
        return False
    return True


CASES = [case for name in names() for kind in KINDS if takes(case := Case(name, kind))]


def cases(*kinds, only=lambda case: True):
    chosen = [case for case in CASES if (not kinds or case.kind in kinds) and only(case)]
    return pytest.mark.parametrize("case", [pytest.param(c, id=str(c)) for c in chosen])


def results(case, arrays, options=None, change=lambda a: a, seed=5):
    """Return the result and all gradients as a list of host arrays."""
    from xpcnn import manual_seed

    manual_seed(7)
    y, backward = case.call(arrays, options)
    found = [np.asarray(y)]
    if backward is not None:
        dy = np.random.default_rng(seed).normal(size=np.shape(y)).astype(found[0].dtype)
        gradients = backward(change(dy))
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        found += [np.asarray(g) for g in gradients if g is not None]
    return found


def same(actual, expected):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.dtype.isnative
        assert a.dtype.str == b.dtype.str
        np.testing.assert_array_equal(a, b)


def test_every_public_name_is_met_here():
    assert {case.name for case in CASES} == set(names())


@cases("images", "features", "sequence")
def test_of_no_images_comes_nothing(case):
    whole = KINDS[case.kind]
    shapes = {name: (0, *whole[name][1:]) for name in BATCHED if name in whole}
    if "cols" in case.array_names:
        shapes["cols"] = (16, 0)
    arrays = case.arrays(shapes)
    options = {"x_shape": (0, 4, 6, 6)} if "x_shape" in case.options else {}
    found = results(case, arrays, options)
    assert found[0].size == 0 or found[0].ndim == 0
    for gradient in found[1:]:
        assert not np.any(gradient)


@cases("images")
def test_one_pixel_is_an_image(case):
    options = {name: value for name, value in ONE_PIXEL.items() if name in case.options}
    found = results(case, case.arrays({**PIXEL, **PIXEL_SHAPES.get(case.name, {})}), options)
    assert found[0].size == (1 if found[0].ndim == 0 else 8)


@cases()
def test_options_may_be_scalars_of_numpy(case):
    plain = results(case, case.arrays())
    for name, value in case.options.items():
        if type(value) in SCALARS:
            scalar = SCALARS[type(value)](value)
            same(
                results(case, case.arrays(), {name: scalar}), results(case, case.arrays(), {name: type(value)(scalar)})
            )
    assert plain


@cases()
def test_what_is_read_only_is_read_only(case):
    arrays = case.arrays()
    for name, array in arrays.items():
        array.flags.writeable = name in WRITTEN

    def locked(dy):
        dy = np.array(dy)
        dy.flags.writeable = False
        return dy

    for _ in range(8):  # from the sixth on, a lone operation is replayed
        found = results(case, arrays, change=locked)
        same(found[1:2], results(case, case.arrays())[1:2])
    for name, array in case.arrays().items():
        if name not in WRITTEN:
            np.testing.assert_array_equal(arrays[name], array)


@cases()
def test_a_foreign_byte_order_is_read_and_never_given(case):
    swapped = {name: array.astype(array.dtype.newbyteorder(">")) for name, array in case.arrays().items()}
    for _ in range(8):
        found = results(case, swapped, change=lambda dy: dy.astype(dy.dtype.newbyteorder(">")))
        expected = results(case, case.arrays())
        if "running_mean" in swapped:
            found, expected = found[:2], expected[:2]
        same(found, expected)


def pretenders(array):
    """Yield what looks like an array and is none."""
    yield array.tolist()
    if array.size:
        yield np.ma.masked_array(array, mask=np.zeros(array.shape, bool))
        yield array.dtype.type(array.flat[0])
    if array.ndim == 2:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield np.matrix(array)


@cases()
def test_what_is_no_array_is_refused_by_name(case):
    for name, array in case.arrays().items():
        said = SAID.get((case.name, name), name)
        for wrong in pretenders(array):
            if name == "labels" and isinstance(wrong, list):
                same(results(case, {**case.arrays(), name: wrong}), results(case, case.arrays()))
                continue
            with pytest.raises(DTypeError, match=rf"^(layer '\w+' \(\w+\): )?{said}: expected an array, got "):
                case.call({**case.arrays(), name: wrong})


@cases(only=lambda case: not case.is_loss)
def test_a_gradient_that_is_no_array_is_refused_by_name(case):
    y, backward = case.call(case.arrays())
    if backward is None or (not case.is_layer and not hasattr(F, f"{case.name}_backward")):
        return
    for wrong in pretenders(np.asarray(y)):
        with pytest.raises(DTypeError, match=rf"^dy: expected an array, got {type(wrong).__name__}"):
            backward(wrong)
    dy = np.zeros((*np.shape(y), 2), np.asarray(y).dtype)
    with pytest.raises(ShapeError, match=r"^dy: expected shape"):
        backward(dy)


def is_elementwise(case):
    """Whether each number goes its own way: it takes images and features, and gives what has their shape."""
    both = [Case(case.name, kind) for kind in ("images", "features")]
    if not all(each in CASES for each in both) or case.array_names != ["x"] or case.name in ALONG_CHANNELS:
        return False
    if case.is_layer and dict(case.make(case.options).named_parameters()):
        return False
    return all(np.shape(each.call(each.arrays())[0]) == KINDS[each.kind]["x"] for each in both)


@cases("images", only=lambda case: is_elementwise(case))
def test_elementwise_operations_take_any_shape(case):
    for kind in ("sequence", "vector", "number"):
        if kind == "number" and {"axis", "dim"} & set(case.options):
            continue
        other = Case(case.name, kind)
        assert other in CASES, kind
        y, *gradients = results(other, other.arrays())
        assert y.shape == KINDS[kind]["x"]
        assert [gradient.shape for gradient in gradients] == [y.shape]


@cases(only=lambda case: not is_elementwise(case))
def test_another_rank_is_refused_by_name(case):
    for name, array in case.arrays().items():
        if name == "target" or case.name in OF_ANY_SHAPE:
            continue
        with pytest.raises(XpcnnError, match=r"^(x|weight|bias|cols|logits|labels|gamma|beta|running_\w+): expected"):
            case.call({**case.arrays(), name: array[None, None, None]})


@cases("images", only=lambda case: not is_elementwise(case) and "x" in case.array_names)
def test_images_have_a_height_and_a_width(case):
    if case.name in OF_ANY_SHAPE:
        return
    for shape in ((2, 4, 0, 6), (2, 4, 6, 0)):
        with pytest.raises(ShapeError, match=r"^x: expected a height and width of 1 or more, got"):
            case.call(case.arrays({"x": shape}))


EXTREMES = (np.inf, -np.inf, np.nan, 0.0, -0.0, 1.0, -200.0, 1e-3)


def extremes(array, seed):
    """Return an array of the numbers at which arithmetic complains, some of them each time."""
    limits = np.finfo(array.dtype)
    several = [*EXTREMES, limits.max, -limits.max, limits.tiny, -limits.smallest_subnormal, limits.eps]
    rng = np.random.default_rng(seed)
    some = rng.choice(several if seed % 2 else [v for v in several if np.isfinite(v)], array.shape)
    return np.asarray(some, array.dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@cases()
def test_nothing_is_raised_by_arithmetic(case, dtype):
    """Under an error state that raises; and a replayed call gives what a written one does, nan by nan."""
    first = {}
    for call in range(16):
        seed = call % 2
        arrays = case.arrays(dtype=dtype)
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not (name in WRITTEN or (name == "labels")):
                arrays[name] = extremes(array, seed)
        with np.errstate(all="raise"):
            found = results_of_extremes(case, arrays, seed)
        if seed in first:
            same(found, first[seed])
        first.setdefault(seed, found)


def results_of_extremes(case, arrays, seed):
    from xpcnn import manual_seed

    manual_seed(7)
    y, backward = case.call(arrays)
    found = [np.array(y)]
    if backward is not None:
        gradients = backward(extremes(np.asarray(y), seed))
        found += [np.array(g) for g in (gradients if isinstance(gradients, tuple) else (gradients,)) if g is not None]
    return found
