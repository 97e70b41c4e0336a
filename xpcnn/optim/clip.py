"""Clipping of gradients by their common norm."""

from __future__ import annotations

from collections.abc import Iterable

from xpcnn.backend import Array, Backend, backend_of
from xpcnn.errors import ConfigError
from xpcnn.functional.layout import number
from xpcnn.functional.precision import cast, wide
from xpcnn.nn import Parameter


def clip_grad_norm(parameters: Iterable[Parameter], max_norm: float, *, scale: Array | None = None) -> Array:
    """Scale all gradients so that their common 2-norm is at most `max_norm`.

    Squares add up in float64, and with float64 gradients all are divided by the largest first, so that no norm
    overflows or underflows on the way; one beyond the dtype is given as inf, and clipped all the same. As in PyTorch,
    an infinite gradient makes the norm inf, itself nan and the others 0; a nan makes all of them nan.

    Parameters
    ----------
    parameters : iterable of Parameter
        Their gradients change in place.
    max_norm : float
        The highest norm allowed.
    scale : (1,) float32 array, optional
        What the gradients are too large by (`GradScaler`); norms are counted without it.

    Returns
    -------
    0-d array
        The norm before; it stays on the backend, so nothing waits.

    Raises
    ------
    ConfigError
        No parameters, or a norm that is not a number of 0 or more.

    References
    ----------
    Pascanu, Mikolov and Bengio, 2013, arXiv:1211.5063; the factor is torch's, max_norm / (norm + 1e-6).

    Examples
    --------
    >>> layer = nn.Linear(4, 1, bias=False)
    >>> optimizer = optim.SGD(layer.parameters(), lr=0.1)
    >>> layer.weight.grad[...] = 1.0
    >>> float(optim.clip_grad_norm(layer.parameters(), 1.0))  # the norm before
    2.0
    >>> layer.weight.grad.round(3)
    array([[0.5, 0.5, 0.5, 0.5]], dtype=float32)
    """
    max_norm = number("max_norm", max_norm, "a number, 0 or more", 0.0)
    members = [parameters] if isinstance(parameters, Parameter) else list(parameters)
    if not members:
        raise ConfigError("parameters: expected at least one Parameter, got none")
    written = [parameter for parameter in members if not parameter.grad_is_zero]
    backend = backend_of(*(parameter.grad for parameter in written or members))
    xp = backend.xp
    wide_ones = [parameter.grad for parameter in written if parameter.grad.itemsize == 8]
    with backend.errstate():
        size = _size_of(backend, wide_ones)
        total = backend.zeros((1,), "float64")  # of (gradient / size)^2
        for parameter in written:
            row = parameter.grad.reshape(1, -1)
            row = row if row.itemsize == 8 else cast(backend, row, "float64")
            if wide_ones:
                row = xp.divide(row, size)
            xp.add(total, backend.row_dots(row, row), out=total)
        norm = xp.sqrt(total) if scale is None else xp.divide(xp.sqrt(total), cast(backend, scale, "float64"))
        # max_norm / (norm + 1e-6), both by size
        share = xp.divide(xp.divide(max_norm, size), xp.add(norm, xp.divide(1e-6, size)))
        xp.minimum(share, 1.0, out=share)
        factors = {str(dtype): cast(backend, share, dtype) for dtype in {wide(p.grad.dtype) for p in written}}
        for parameter in written:
            xp.multiply(parameter.grad, factors[str(wide(parameter.grad.dtype))], out=parameter.grad)
        return cast(backend, xp.multiply(norm, size), wide(members[0].data.dtype)).reshape(())


def _size_of(backend: Backend, gradients: list[Array]) -> Array:
    """Return the largest |gradient| as (1,) float64; 1 where that is nan or inf, or where there is none."""
    xp = backend.xp
    size = xp.ones((1,), dtype="float64")
    if not any(gradient.size for gradient in gradients):
        return size
    largest = backend.zeros((1,), "float64")
    for gradient in gradients:
        if gradient.size:
            xp.maximum(largest, xp.max(xp.absolute(gradient)), out=largest)
    xp.maximum(largest, float(xp.finfo("float64").tiny), out=largest)
    xp.copyto(size, largest, where=xp.isfinite(largest))
    return size
