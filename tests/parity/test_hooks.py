"""Forward hooks, against PyTorch's."""

import numpy as np
import pytest

from xpcnn import nn

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity


def heard(library, as_array):
    """Return what hooks on a network were told, in order."""
    model = library.Sequential(library.ReLU(), library.Sequential(library.Tanh(), library.Sigmoid()))
    log = []

    def note(tag, change=None):
        def hook(module, args, output):
            log.append((tag, type(module).__name__, len(args), np.asarray(args[0]).copy(), np.asarray(output).copy()))
            return None if change is None else output * change

        return hook

    model[0].register_forward_hook(note("a"))
    model[0].register_forward_hook(note("b", 2.0))
    model[0].register_forward_hook(note("c"), prepend=True)
    gone = model[1][0].register_forward_hook(note("gone"))
    model[1].register_forward_hook(note("inner", 0.5))
    model.register_forward_hook(note("outer"))
    gone.remove()
    with model[1][1].register_forward_hook(note("within")):
        model(as_array)
    y = model(as_array)
    log.append(("result", "", 0, np.asarray(y), np.asarray(y)))
    return log


def test_hooks_are_told_the_same_in_the_same_order():
    x = np.linspace(-1, 1, 12, dtype="float32").reshape(3, 4)
    ours, theirs = heard(nn, x), heard(torch.nn, torch.tensor(x))
    assert [each[:3] for each in ours] == [each[:3] for each in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine[3], other[3], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(mine[4], other[4], rtol=1e-6, atol=1e-7)
