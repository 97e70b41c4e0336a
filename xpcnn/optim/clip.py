"""Clipping of gradients by their common norm."""

from __future__ import annotations

from collections.abc import Iterable

from xpcnn.backend import Array, backend_of
from xpcnn.errors import ConfigError
from xpcnn.functional.precision import cast, is_narrow, wide
from xpcnn.nn import Parameter
from xpcnn.optim.groups import check_range


def clip_grad_norm(parameters: Iterable[Parameter], max_norm: float, *, scale: Array | None = None) -> Array:
    """Scale all gradients so that their common 2-norm is at most `max_norm`.

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
    """
    check_range("max_norm", max_norm, 0.0)
    members = [parameters] if isinstance(parameters, Parameter) else list(parameters)
    if not members:
        raise ConfigError("parameters: expected at least one Parameter, got none")
    written = [parameter for parameter in members if not parameter.grad_is_zero]
    backend = backend_of(*(parameter.grad for parameter in written or members))
    xp = backend.xp
    total = backend.zeros((1,), wide(members[0].data.dtype))
    for parameter in written:
        row = parameter.grad.reshape(1, -1)
        if is_narrow(row.dtype):
            row = cast(backend, row, total.dtype)
        total += backend.row_dots(row, row)
    norm = xp.sqrt(total) if scale is None else xp.divide(xp.sqrt(total), scale)
    factor = xp.minimum(max_norm / (norm + 1e-6), 1.0)
    for parameter in written:
        xp.multiply(parameter.grad, factor, parameter.grad)
    return norm.reshape(())
