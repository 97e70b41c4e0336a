"""Several layers on one input, their results side by side."""

from __future__ import annotations

from collections.abc import Iterator

from xpcnn.backend import Array
from xpcnn.errors import ConfigError
from xpcnn.functional.concatenation import concat, split, take_concatenated
from xpcnn.nn.inquiries import call_backward
from xpcnn.nn.module import Module
from xpcnn.nn.residual import add
from xpcnn.windows import integer


class Concat(Module):
    """y = [branch_1(x), ..., branch_k(x)] along `dim`; dx = the sum of the branches' dx.

    `Concat(Identity(), layers)` keeps x beside what comes of it: the dense blocks of DenseNet, the skips of U-Net.

    Parameters
    ----------
    *branches : Module
        One or more, whose results are of one shape but for `dim`.
    dim : int
        1 for channels or features; the batch, 0, is none to put side by side.

    References
    ----------
    Szegedy et al. 2014, arXiv:1409.4842 (filter concatenation); Ronneberger et al. 2015, arXiv:1505.04597 (U-Net);
    Huang et al. 2016, arXiv:1608.06993 (DenseNet).

    Examples
    --------
    >>> x = np.ones((2, 3, 8, 8), "float32")
    >>> block = nn.Concat(nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 3, padding=1))
    >>> block(x).shape
    (2, 12, 8, 8)
    """

    def __init__(self, *branches: Module, dim: int = 1) -> None:
        super().__init__()
        for branch in branches:
            if not isinstance(branch, Module):
                raise ConfigError(f"branches: expected instances of xpcnn.nn.Module, got {branch!r}")
        if not branches:
            raise ConfigError("branches: expected at least one module, got none")
        self.branches, self.dim = branches, integer("dim", dim, 1)

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield the branches by number."""
        return ((str(i), branch) for i, branch in enumerate(self.branches))

    def forward(self, x: Array) -> Array:
        """Return the branches' results, side by side."""
        y, cache = concat([branch(x) for branch in self.branches], self.dim)
        self.keep(cache)
        return y

    def backward(self, dy: Array, *, input_gradient: bool = True) -> Array:
        """Return the sum of the branches' gradients."""
        cache = self.take()
        parts = split(take_concatenated(dy, cache), cache)
        dx, is_fresh = None, False
        for i in reversed(range(len(parts))):  # as they were kept, the last first
            gradient = call_backward(self.branches[i], parts[i], input_gradient)
            if not input_gradient:
                continue
            if dx is None:
                dx = gradient
            else:
                dx, is_fresh = add(dx, gradient, reuse=is_fresh), True
        return dx
