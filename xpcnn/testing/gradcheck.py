"""Prove a backward: its gradients against central differences of the forward, in float64, entry by entry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpcnn import random
from xpcnn.errors import ConfigError
from xpcnn.testing.numerical import STEP
from xpcnn.testing.subjects import CriterionSubject, FunctionSubject, ModuleSubject, Subject

Host = NDArray[np.float64]

# An entry this much smaller than the largest of its array is judged beside the largest: it drowns in its rounding.
SMALL_ENTRY = 1e-3
ROUNDING = 8 * float(np.finfo(np.float64).eps)  # of a forward, relative to its result
KINK = 1e-3  # one-sided slopes that differ by this share have no derivative between them


@dataclass(frozen=True)
class GradientRow:
    """What was found for one input or parameter."""

    name: str
    shape: tuple[int, ...]
    entries: int  # that were compared
    kinks: int  # where the forward has no derivative, which are not judged
    max_relative_error: float
    ok: bool
    remark: str = ""
    analytic: float = float("nan")  # the gradient at the worst entry, and its difference quotient
    numerical: float = float("nan")


@dataclass
class GradcheckReport:
    """The verdict on every gradient; true where all are right, and a table where it is printed.

    Examples
    --------
    >>> from xpcnn import testing
    >>> report = testing.gradcheck(nn.ReLU(), np.random.default_rng(0).normal(size=(4, 3)))
    >>> len(report.rows), bool(report)
    (1, True)
    """

    rows: list[GradientRow] = field(default_factory=list)
    tolerance: float = 0.0
    unchecked: list[str] = field(default_factory=list)  # floating inputs of a function that its backward leaves out

    def __bool__(self) -> bool:
        return all(row.ok for row in self.rows)

    def __str__(self) -> str:
        width = max([8, *(len(row.name) for row in self.rows)])
        sizes = [str(row.shape) for row in self.rows]
        wide = max([5, *map(len, sizes)])
        lines = [f"{'gradient':{width}}  {'shape':{wide}}  entries  kinks  relative error"]
        for row, size in zip(self.rows, sizes, strict=True):
            verdict = "ok" if row.ok else f"WRONG {row.remark}".rstrip()
            error = f"{row.max_relative_error:14.1e}"
            lines.append(f"{row.name:{width}}  {size:{wide}}  {row.entries:7}  {row.kinks:5}  {error}  {verdict}")
        verdict = "all gradients are right" if self else "at least one gradient is wrong"
        if self.unchecked:
            lines.append(f"backward returns nothing for {', '.join(self.unchecked)}")
        return "\n".join([*lines, f"{verdict} (tolerance {self.tolerance:.0e})"])


def gradcheck(
    target: Any,
    inputs: Any,
    *,
    backward: Callable[..., Any] | None = None,
    eps: float = STEP,
    tolerance: float = 1e-6,
    seed: int = 0,
    max_entries: int | None = 100,
) -> GradcheckReport:
    """Compare the gradients of a module, a loss or a function with central differences.

    Everything runs in float64, with a random upstream gradient: one of ones would hide a backward that ignores or
    transposes it. A module is copied first, so that nothing of it changes.

    Parameters
    ----------
    target : Module, loss object or function
        A module has forward(x) and backward(dy); a loss object `loss = target(logits, labels)` and backward(); a
        function returns (y, cache), or y alone, which then stands for the cache. `functools.partial` gives a function
        its options: `gradcheck(partial(F.conv2d, stride=2), (x, weight, bias))`.
    inputs : array, or sequence of arrays, None and anything else
        Of the host or of any backend; host arrays go to the module's or the active backend. Floating arrays become
        float64 and get their gradient checked, as far as backward returns one: running statistics have none.
    backward : callable, optional
        backward(dy, cache) of a function, returning dx or (dx, dweight, ...) in the order of `inputs`; by default
        NAME_backward beside the function NAME.
    eps : float
        Step of the differences; relative to the entry where that is larger than 1.
    tolerance : float
        Allowed |a - n| / (|a| + |n|); entries a thousand times smaller than the largest are judged beside that.
    seed : int
        Of the upstream gradient and of the choice of entries.
    max_entries : int, optional
        Entries compared per array, drawn at random; None compares all.

    Returns
    -------
    GradcheckReport
        True where every gradient is right; `.rows`, and a table where printed. Where a one-sided slope agrees but the
        two differ, the forward has a kink there (ReLU at 0, a tie in a pool): counted, and not judged.

    Raises
    ------
    ConfigError
        There is nothing to check, or no backward was found.

    Examples
    --------
    >>> from xpcnn import testing
    >>> report = testing.gradcheck(nn.Linear(3, 2), np.random.default_rng(0).normal(size=(4, 3)))
    >>> bool(report)
    True
    """
    if not (eps > 0 and tolerance > 0):
        raise ConfigError(f"eps, tolerance: expected numbers above 0, got {eps!r} and {tolerance!r}")
    if max_entries is not None and max_entries < 1:
        raise ConfigError(f"max_entries: expected 1 or more, or None for all, got {max_entries!r}")
    if not callable(target):
        raise ConfigError(f"target: expected a module, a loss object or a function, got {type(target).__name__}")
    arrays = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    subject = _subject(target, arrays, backward)
    if not subject.values:
        raise ConfigError("inputs: expected at least one floating array or parameter to differentiate by, got none")
    rng = np.random.default_rng(seed)
    state = random.get_state()  # a function that draws, such as dropout, draws the same each time

    def forward() -> Host:
        random.set_state(state)
        return subject.forward()

    with random.fork_rng():
        y = forward()
        dy = subject.upstream(y, rng)
        random.set_state(state)  # a module runs once more here
        gradients, remarks = subject.backward(dy)
        rows = []
        for name in [name for name in subject.values if name in gradients or name in remarks]:
            value, gradient = subject.values[name], gradients.get(name)
            wrong = remarks.get(name) or _misfit(gradient, value)
            if gradient is None or wrong:
                rows.append(GradientRow(name, value.shape, 0, 0, float("inf"), False, wrong))
                continue
            places = _choose(value.shape, max_entries, rng)
            rows.append(_compare(subject, name, gradient, forward, y, dy, places, eps, tolerance))
    return GradcheckReport(rows, tolerance, [name for name in subject.values if name not in {r.name for r in rows}])


def _subject(target: Any, inputs: Sequence[Any], backward: Callable[..., Any] | None) -> Subject:
    if hasattr(target, "forward") and hasattr(target, "backward"):
        return ModuleSubject(target, inputs)
    if hasattr(target, "backward"):
        return CriterionSubject(target, inputs)
    return FunctionSubject(target, inputs, backward)


def _misfit(gradient: Any, value: Host) -> str:
    if gradient is None:
        return "(no gradient)"
    if gradient.shape != value.shape:
        return f"(shape {gradient.shape})"
    if not np.all(np.isfinite(gradient)):
        return "(not finite)"
    return ""


def _choose(shape: tuple[int, ...], most: int | None, rng: np.random.Generator) -> list[tuple[int, ...]]:
    size = int(np.prod(shape))
    chosen = np.arange(size) if most is None or size <= most else np.sort(rng.choice(size, most, replace=False))
    return [tuple(int(i) for i in np.unravel_index(flat, shape)) for flat in chosen]


def _compare(
    subject: Subject,
    name: str,
    gradient: Host,
    forward: Callable[[], Host],
    y: Host,
    dy: Host,
    places: list[tuple[int, ...]],
    eps: float,
    tolerance: float,
) -> GradientRow:
    """Compare one gradient with differences at `places`."""
    value = subject.values[name]
    below, above, steps = np.zeros(len(places)), np.zeros(len(places)), np.zeros(len(places))
    for i, place in enumerate(places):
        centre = value[place]
        steps[i] = eps * max(1.0, abs(centre))
        try:
            # The sum runs over differences of y: a difference of sums would lose digits.
            value[place] = centre + steps[i]
            subject.put(name)
            above[i] = np.sum(dy * (forward() - y)) / steps[i]
            value[place] = centre - steps[i]
            subject.put(name)
            below[i] = np.sum(dy * (y - forward())) / steps[i]
        finally:
            value[place] = centre
    subject.put(name)
    analytic = np.array([gradient[place] for place in places])
    numerical = (above + below) / 2
    scale = float(np.max(np.abs(numerical), initial=0.0))
    noise = ROUNDING * float(np.sum(np.abs(dy * y))) / eps
    floor = max(SMALL_ENTRY * scale, noise / tolerance, 1e-300)

    def error(n: Any) -> Any:
        return np.abs(analytic - n) / np.maximum(np.abs(analytic) + np.abs(n), floor)

    spread = np.abs(above - below)
    one_sided = np.minimum(error(above), error(below)) < KINK
    between = (np.minimum(above, below) <= analytic) & (analytic <= np.maximum(above, below))
    kinks = (spread > KINK * np.maximum(np.abs(above) + np.abs(below), floor)) & (one_sided | between)
    kinks &= error(numerical) > tolerance
    judged = np.where(kinks, 0.0, error(numerical))
    worst = float(np.max(judged, initial=0.0))
    all_kinks = len(places) > 0 and bool(np.all(kinks))
    remark = "(nothing but kinks: move the input)" if all_kinks else ""
    ok = worst <= tolerance and not all_kinks
    at = int(np.argmax(judged if worst > 0 else np.abs(numerical))) if places else 0
    pair = (float(analytic[at]), float(numerical[at])) if places else (0.0, 0.0)
    return GradientRow(name, value.shape, len(places), int(np.sum(kinks)), worst, ok, remark, *pair)
