"""The residual block: a path and a shortcut, added (He et al. 2015, arXiv:1512.03385)."""

from __future__ import annotations

from xpcnn.backend import Array, backend_of
from xpcnn.errors import ShapeError
from xpcnn.functional.layout import batch_first, batch_last
from xpcnn.nn.module import Module


class Residual(Module):
    """y = body(x) + shortcut(x); dx = body's dx + shortcut's dx.

    Parameters
    ----------
    body : Module
    shortcut : Module, optional
        The identity by default; else what brings x to the body's shape, such as a 1x1 convolution.
    """

    def __init__(self, body: Module, shortcut: Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Array) -> Array:
        """Return the sum of both paths."""
        y = self.body(x)
        other = x if self.shortcut is None else self.shortcut(x)
        if y.shape != other.shape:
            raise ShapeError(
                f"shortcut: expected the body's shape {tuple(y.shape)}, got {tuple(other.shape)}; "
                "give a shortcut that changes channels and stride alike"
            )
        return _add(y, other)

    def backward(self, dy: Array) -> Array:
        """Return the sum of both gradients."""
        dx = self.body.backward(dy)
        return _add(dx, dy if self.shortcut is None else self.shortcut.backward(dy))


def _add(a: Array, b: Array) -> Array:
    backend = backend_of(a, b)
    a, b = batch_last(backend, a), batch_last(backend, b)
    out = backend.empty(a.shape, a.dtype)
    edges = _halves(a.shape[0], backend.get_num_threads())

    def add(part: slice) -> None:
        backend.xp.add(a[part], b[part], out=out[part])

    backend.parallel(add, edges, 3.0 * a.size)
    return batch_first(out)


def _halves(size: int, parts: int) -> list[slice]:
    edges = [size * i // parts for i in range(parts + 1)]
    return [slice(*edge) for edge in zip(edges[:-1], edges[1:], strict=True)]
