"""What is given by position means the same as in PyTorch: same place, or by name alone; a guide lists the rest."""

import inspect
from pathlib import Path

import pytest

import xpcnn
from xpcnn import functional, nn, optim

pytestmark = pytest.mark.parity

GUIDE = Path(xpcnn.__file__).parent / "guides" / "pytorch.md"
# Our names for what PyTorch calls otherwise, and who has them.
RENAMED = {"x": "input", "logits": "input", "labels": "target", "axis": "dim", "parameters": "params", "layers": "args"}
# What differs for a reason; the guide says which.
DIFFERENT = {
    "functional.batch_norm": "gamma and beta come before the running statistics",
    "nn.Parameter": "the second argument is the name",
    "optim.GradScaler": "there is no device, for the arrays say it",
}
DEFAULTS = {
    ("functional.cross_entropy", "ignore_index"),
    ("nn.CrossEntropyLoss", "ignore_index"),
    ("optim.SGD", "lr"),
    ("optim.OneCycleLR", "total_steps"),
    ("functional.batch_norm", "training"),
    ("functional.dropout", "training"),
    ("functional.dropout2d", "training"),
    ("nn.Softmax", "dim"),
    ("functional.softmax", "axis"),
    ("functional.log_softmax", "axis"),
    ("nn.Parameter", "data"),
}
# Those without a signature that Python can read, from their documentation.
BUILT_IN = {
    "avg_pool2d": "input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True",
    "conv2d": "input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1",
    "conv_transpose2d": (
        "input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1"
    ),
    "gelu": "input, approximate='none'",
    "linear": "input, weight, bias=None",
    "max_pool2d": "input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False",
}  # fmt: skip
PLACES = {
    "nn": (nn, lambda torch: [torch.nn]),
    "functional": (functional, lambda torch: [torch.nn.functional]),
    "optim": (optim, lambda torch: [torch.optim, torch.optim.lr_scheduler, torch.amp, torch.nn.utils]),
}
NAMES = [f"{place}.{name}" for place, (module, _) in PLACES.items() for name in module.__all__ if name != "init"]


def pair(torch, path):
    """Return our thing and PyTorch's, or None."""
    place, name = path.split(".")
    module, homes = PLACES[place]
    theirs = [getattr(home, other) for home in homes(torch) for other in (name, f"{name}_") if hasattr(home, other)]
    return getattr(module, name), theirs[0] if theirs else None


def arguments(thing, name=""):
    """Return the parameters of a call."""
    text = BUILT_IN.get(name)
    if text is not None:
        namespace = {}
        exec(f"def f({text}): pass", namespace)
        thing = namespace["f"]
    return list(inspect.signature(thing).parameters.values())


def by_position(parameters):
    return [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]


def common(torch):
    for path in NAMES:
        ours, theirs = pair(torch, path)
        if theirs is not None and ours is not nn.Module and callable(ours):
            yield path, arguments(ours), arguments(theirs, path.split(".")[1] if path.startswith("functional") else "")


def misplaced(ours, theirs):
    """Return our first argument by position that is another one of PyTorch's there."""
    order = by_position(theirs)
    if any(p.kind is p.VAR_POSITIONAL for p in order):
        order = []  # takes anything
    for i, parameter in enumerate(by_position(ours)):
        name = RENAMED.get(parameter.name, parameter.name)
        if order and (i >= len(order) or order[i].name not in (name, parameter.name)):
            return parameter.name
    return None


def test_every_name_has_its_counterpart(torch):
    found = {path for path, _, _ in common(torch)}
    assert len(found) > 30
    assert {"nn.Conv2d", "functional.conv2d", "functional.max_pool2d", "optim.Adam", "optim.StepLR"} <= found


def test_by_position_as_in_pytorch_or_by_name(torch):
    wrong = {path: misplaced(ours, theirs) for path, ours, theirs in common(torch)}
    wrong = {path: name for path, name in wrong.items() if name is not None}
    assert wrong.keys() == DIFFERENT.keys(), f"give these by name alone, or list them in the guide: {wrong}"


def test_defaults_are_pytorchs(torch):
    wrong = []
    for path, ours, theirs in common(torch):
        known = {p.name: p.default for p in theirs}
        for parameter in ours:
            default = known.get(parameter.name, known.get(RENAMED.get(parameter.name), parameter.empty))
            if parameter.empty in (parameter.default, default):
                same = parameter.default is default or default is parameter.empty
            else:
                same = parameter.default == default or parameter.name == "dtype"
            if not same and (path, parameter.name) not in DEFAULTS:
                wrong.append((path, parameter.name, parameter.default, default))
    assert wrong == []


def test_what_differs_by_position_is_refused_by_pytorchs_order(torch):
    """What is by name alone fails loudly where ported code gives it by position."""
    optimizer = optim.SGD([nn.Parameter(pytest.importorskip("numpy").zeros(2, "float32"))], 0.1)
    with pytest.raises(TypeError):
        optim.OneCycleLR(optimizer, 0.1, 10, 2, 5)
    with pytest.raises(TypeError):
        nn.CrossEntropyLoss(None)


def test_the_guide_lists_what_differs():
    text = GUIDE.read_text(encoding="utf-8")
    short = {"functional": "F"}
    for path in DIFFERENT:
        place, name = path.split(".")
        assert f"`{short.get(place, place)}.{name}" in text, path
