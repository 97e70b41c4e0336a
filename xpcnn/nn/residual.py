"""The residual block: a path and a shortcut, added (He et al. 2015, arXiv:1512.03385)."""

from __future__ import annotations

from xpcnn.backend import Array
from xpcnn.backend.split import split_evenly
from xpcnn.errors import ConfigError
from xpcnn.functional.addition import check_paths
from xpcnn.functional.layout import batch_first, batch_last, take
from xpcnn.nn.inquiries import call_backward
from xpcnn.nn.module import Module


class Residual(Module):
    """y = body(x) + shortcut(x); dx = body's dx + shortcut's dx.

    Parameters
    ----------
    body : Module
    shortcut : Module, optional
        The identity by default; else what brings x to the body's shape, such as a 1x1 convolution.

    Examples
    --------
    >>> x = np.ones((2, 3, 8, 8), "float32")
    >>> block = nn.Residual(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()))
    >>> block(x).shape
    (2, 3, 8, 8)
    """

    def __init__(self, body: Module, shortcut: Module | None = None) -> None:
        super().__init__()
        for name, path in (("body", body), ("shortcut", shortcut)):
            if not isinstance(path, Module) and not (name == "shortcut" and path is None):
                raise ConfigError(f"{name}: expected an instance of xpcnn.nn.Module, got {path!r:.60}")
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Array) -> Array:
        """Return the sum of both paths."""
        y = self.body(x)
        other = x if self.shortcut is None else self.shortcut(x)
        return add_paths(y, other)

    def backward(self, dy: Array, *, input_gradient: bool = True) -> Array:
        """Return the sum of both gradients."""
        dx = call_backward(self.body, dy, input_gradient)
        if self.shortcut is not None:
            dy = call_backward(self.shortcut, dy, input_gradient)
        return add(dx, dy) if input_gradient else None


def add_paths(y: Array, other: Array, *, reuse: bool = False) -> Array:
    """Return y + other, what a body and its shortcut give; with `reuse`, y may be written over."""
    check_paths(tuple(y.shape), tuple(other.shape))
    return add(y, other, reuse=reuse)


def add(a: Array, b: Array, *, reuse: bool = False) -> Array:
    """Return a + b, both (N, ...), batch-last; with `reuse`, a may be written over."""
    backend, a, b = take("dx dy", a, b)
    a, b = batch_last(backend, a), batch_last(backend, b)
    out = a if reuse else backend.empty(a.shape, a.dtype)

    def part(channels: range) -> None:
        rows = slice(channels.start, channels.stop)
        mine = a[rows]  # CuPy copies an operand that is `out` by another view
        backend.xp.add(mine, b[rows], out=mine if out is a else out[rows])

    with backend.errstate():
        if not a.ndim:
            backend.xp.add(a, b, out=out)
            return out
        backend.parallel(part, split_evenly(a.shape[0], backend.get_num_threads()), 3.0 * a.size, products=False)
    return batch_first(out)
