"""Loss scaling: gradients that float16 would round to zero are computed a power of two too large.

Everything that changes lies on the backend, so that a device decides by itself and a captured step goes on deciding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from xpcnn.backend import Array, Backend
from xpcnn.errors import ConfigError, DataError
from xpcnn.functional.primitive import primitive
from xpcnn.optim.groups import check_count, check_range

LOWEST, HIGHEST = 2.0**-14, 2.0**120  # float32 divides by both without loss


@primitive
def update_scale(
    backend: Backend,
    scale: Array,
    good: Array,
    ok: Array,
    live: Array | None,
    factors: tuple[Array, Array],
    constants: tuple[Array, Array],
    growth_interval: int,
    bounds: tuple[float, float],
) -> None:
    """Change `scale` and the count of `good` steps in a row, (1,) each, after a step that was `ok`, (1,) bool.

    `factors` are growth and backoff, `constants` 1 and 0, (1,) each; `bounds` hold the scale. Nothing changes where
    `live` (1,) is False.
    """
    xp = backend.xp
    (growth, backoff), (one, zero) = factors, constants
    steps = xp.where(ok, xp.add(good, 1.0), zero)
    grows = xp.greater_equal(steps, growth_interval)
    factor = xp.where(ok, xp.where(grows, growth, one), backoff)
    changed = xp.minimum(xp.maximum(xp.multiply(scale, factor), bounds[0]), bounds[1])
    for place, value in ((scale, changed), (good, xp.where(grows, zero, steps))):
        xp.copyto(place, value if live is None else xp.where(live, value, place))


class GradScaler:
    """The factor by which a `Trainer` multiplies the gradient of the loss, and the update divides all others.

    A step with a gradient that is infinite or nan is left out, and the scale is multiplied by `backoff_factor`; after
    `growth_interval` good steps in a row it is multiplied by `growth_factor`. It stays between 2^-14 and 2^120.

    Parameters
    ----------
    init_scale : float
        The scale of the first step. Powers of two round nothing.
    growth_factor : float
        1 or more.
    backoff_factor : float
        From above 0 to 1. With 1 (and `growth_factor` 1) the scale is static.
    growth_interval : int
        1 or more.

    Raises
    ------
    ConfigError
        A value is out of its range.

    References
    ----------
    Micikevicius et al. 2018, arXiv:1710.03740, section 3.2; names and values are torch.amp.GradScaler's.

    Examples
    --------
    >>> scaler = optim.GradScaler(init_scale=1024.0)
    >>> scaler.state_dict()["scale"]
    1024.0
    """

    def __init__(
        self,
        init_scale: float = 65536.0,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ) -> None:
        check_range("init_scale", init_scale, LOWEST, HIGHEST)
        check_range("growth_factor", growth_factor, 1.0)
        check_range("backoff_factor", backoff_factor, LOWEST, math.nextafter(1.0, 2.0))
        check_count("growth_interval", growth_interval)
        self.growth_factor, self.backoff_factor = float(growth_factor), float(backoff_factor)
        self.growth_interval = growth_interval
        self._backend: Backend | None = None
        self._now = float(init_scale), 0  # scale and good steps in a row, where no backend has them
        self._scale: Array = None
        self._good: Array = None
        self._constants: tuple[Array, ...] = ()

    def __repr__(self) -> str:
        return (
            f"GradScaler(scale={self.get_scale()}, growth_factor={self.growth_factor}, "
            f"backoff_factor={self.backoff_factor}, growth_interval={self.growth_interval})"
        )

    # --- on the backend ---------------------------------------------------------------------------------------------

    def place(self, backend: Backend) -> Array:
        """Put the scale on a backend, where it stays; return it, (1,) float32, always the same array there."""
        if self._backend is not backend:
            scale, good = self._numbers()
            self._backend = backend
            self._scale, self._good = (backend.asarray([value], "float32") for value in (scale, float(good)))
            values = 1.0, self.growth_factor, self.backoff_factor, 0.0
            self._constants = tuple(backend.asarray([value], "float32") for value in values)
        return self._scale

    def update(self, ok: Array, live: Array | None = None) -> None:
        """Change the scale after a step; nothing waits.

        Parameters
        ----------
        ok : (1,) bool
            Whether the step's gradients were finite.
        live : (1,) bool, optional
            Where it is False, nothing changes.
        """
        if self._backend is None:
            raise ConfigError("update: expected a scaler that was placed on a backend; call place(backend) first")
        one, growth, backoff, zero = self._constants
        given = (growth, backoff), (one, zero), self.growth_interval, (LOWEST, HIGHEST)
        update_scale(self._backend, self._scale, self._good, ok, live, *given)

    def can_lower(self, scale: Any) -> Any:
        """Say of a scale, number or array, whether an overflow may be over with a lower one."""
        return scale > (LOWEST if self.backoff_factor < 1.0 else math.inf)

    def __getstate__(self) -> dict[str, Any]:
        on_backend = {"_backend": None, "_scale": None, "_good": None, "_constants": (), "_now": self._numbers()}
        return vars(self) | on_backend

    # --- on the host ------------------------------------------------------------------------------------------------

    def _numbers(self) -> tuple[float, int]:
        if self._backend is None:
            return self._now
        scale, good = (self._backend.to_numpy(array).tolist()[0] for array in (self._scale, self._good))
        return scale, int(good)

    def get_scale(self) -> float:
        """Return the present scale. Waits for the device."""
        return self._numbers()[0]

    def state_dict(self) -> dict[str, float | int]:
        """Return scale, factors, interval and the number of good steps in a row, by torch's names. Waits."""
        scale, good = self._numbers()
        return {
            "scale": scale,
            "growth_factor": self.growth_factor,
            "backoff_factor": self.backoff_factor,
            "growth_interval": self.growth_interval,
            "_growth_tracker": good,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises
        ------
        DataError
            A name is missing or unknown, or a value out of its range; nothing is changed then.
        """
        names = self.state_dict().keys()
        if not isinstance(state, Mapping) or state.keys() != names:
            raise DataError(f"scaler state: expected {', '.join(names)}, got {state!r:.80}")
        good = state["_growth_tracker"]
        if isinstance(good, bool) or not isinstance(good, int) or good < 0:
            raise DataError(f"scaler state: expected an integer of 0 or more named '_growth_tracker', got {good!r:.40}")
        try:
            fresh = GradScaler(*(state[name] for name in list(names)[:4]))
        except ConfigError as error:
            raise DataError(f"scaler state: {error}") from error
        backend = self._backend
        self.growth_factor, self.backoff_factor = fresh.growth_factor, fresh.backoff_factor
        self.growth_interval = fresh.growth_interval
        self._backend, self._now = None, (fresh.get_scale(), good)
        if backend is not None:
            held = self._scale, self._good
            self.place(backend)
            for place, value in zip(held, (self._scale, self._good), strict=True):
                place[...] = value  # a recorded step goes on reading the arrays it knows
            self._scale, self._good = held
