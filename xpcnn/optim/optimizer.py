"""What every optimiser shares: parameter groups, the flat buffers, and state that can be saved.

A subclass names its options, its state arrays and its hyperparameters, and gives one update function over flat arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from xpcnn.backend import Array, backend_of
from xpcnn.errors import ConfigError, DataError, StateError
from xpcnn.functional.precision import is_narrow
from xpcnn.nn import Parameter
from xpcnn.optim.flat import MASTER, Flat
from xpcnn.optim.groups import Group, Number, check_range, make_groups, put, read_array, read_number


class Optimizer:
    """Base of the optimisers; `step` is `collect`, `upload` and `apply`, of which only `apply` may be captured.

    Parameters
    ----------
    parameters : iterable of Parameter, or of dict
        Parameters, or groups: `{"params": [...], "lr": ...}` with options that differ from the defaults.
    defaults : dict
        The options of groups that do not name them.

    Attributes
    ----------
    param_groups : list of dict
        Each group's parameters and options; options may be changed between steps.
    generation : int
        Changes whenever arrays or the kind of update change, so that a captured step must be captured again.
    grad_scale : (1,) float32 array or None
        What all gradients are too large by; `apply` divides them by it (see `GradScaler`).

    Raises
    ------
    ConfigError
        No parameters, one that is given twice, an unknown option, or a value that is not allowed.
    """

    def __init__(self, parameters: Iterable[Parameter] | Iterable[Group], defaults: Group) -> None:
        self.param_groups = make_groups(parameters, defaults)
        for group in self.param_groups:
            self._check(group)
        self.generation = 0
        self.grad_scale: Array | None = None
        self._guarded = False
        self._memory: list[dict[str, Number]] = [self._fresh(group) for group in self.param_groups]
        self._plans = [_Plan() for _ in self.param_groups]
        for group, plan in zip(self.param_groups, self._plans, strict=True):
            self._lay_out(group, plan)

    def __repr__(self) -> str:
        groups = []
        for group in self.param_groups:
            options = [f"{name}={value!r}" for name, value in group.items() if name != "params"]
            count = len(group["params"])
            groups.append(", ".join([f"{count} parameter{'s' * (count != 1)}", *options]))
        inside = groups[0] if len(groups) == 1 else ", ".join(f"[{group}]" for group in groups)
        return f"{type(self).__name__}({inside})"

    # --- what a subclass gives ------------------------------------------------------------------------------------

    switches: tuple[str, ...] = ()  # options that are True or False
    identity: tuple[float, ...]  # hyperparameters with which an update on gradients of zero changes nothing

    def _check(self, group: Group) -> None:
        """Raise ConfigError where an option's value is not allowed."""
        raise NotImplementedError

    def _fresh(self, group: Group) -> dict[str, Number]:
        """Return the numbers that change from step to step, as they are before the first."""
        return {}

    def _state(self, group: Group) -> dict[str, float]:
        """Return name and initial value of each state array."""
        raise NotImplementedError

    def _hyper(self, group: Group, memory: dict[str, Number]) -> tuple[float, ...]:
        """Return the hyperparameters of this step, in the order in which the update reads them."""
        raise NotImplementedError

    def _update(self, group: Group) -> tuple[Callable[..., None], dict[str, bool]]:
        """Return the update and its flags."""
        raise NotImplementedError

    # --- the step -------------------------------------------------------------------------------------------------

    @property
    def lr(self) -> float:
        """The learning rate of the first group; setting it sets every group's."""
        return float(self.param_groups[0]["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        check_range("lr", value, 0.0)
        for group in self.param_groups:
            group["lr"] = value

    def step(self) -> None:
        """Update every parameter from its gradient. A gradient that no backward has written counts as zero."""
        self.collect()
        self.upload()
        self.apply()

    def zero_grad(self) -> None:
        """Declare every gradient zero; the memory is written only where the next backward does not overwrite it."""
        for plan in self._plans:
            for parameter in plan.parameters:
                parameter.grad_is_zero = True

    def collect(self) -> None:
        """Get ready for `apply`: `gather`, and write zeros to gradients that count as zero."""
        self.gather(zeros=True)

    def gather(self, *, zeros: bool = False) -> None:
        """Bring the parameters' arrays into the flat buffers, where a user or `Module.to` has replaced them."""
        for group, plan in zip(self.param_groups, self._plans, strict=True):
            for flat in plan.flats:
                if not flat.adopt(zeros):
                    self._lay_out(group, plan)
                    break

    def upload(self) -> None:
        """Begin a step on the host: count it, and write the hyperparameters that have changed to the backend."""
        for group, memory, plan in zip(self.param_groups, self._memory, self._plans, strict=True):
            hyper = self._hyper(group, memory)
            switches = [group[name] for name in self.switches]
            if hyper == plan.hyper and switches == plan.switches:
                continue
            plan.switches = switches
            kind = self._update(group)
            if kind != plan.kind:
                # Arrays that a new option needs (momentum that was 0) start at their initial value.
                if any(self._state(group).keys() != flat.state.keys() for flat in plan.flats):
                    self._lay_out(group, plan)
                plan.kind = kind
                plan.update = partial(kind[0], **kind[1])
                self.generation += 1
            for flat in plan.flats:
                flat.hyper[...] = flat.backend.asarray(hyper, flat.wide)
            plan.hyper = hyper

    def apply(self) -> None:
        """Finish a step on the backend: nothing here depends on values that change on the host."""
        for plan in self._plans:
            for flat in plan.flats:
                flat.apply(plan.update, 10.0, self.grad_scale)

    def flush_denormals(self) -> None:
        """Set parameters and state below 1e-30 to zero, where the host computes in float32.

        What no gradient reaches decays for ever: weights behind a ReLU that is never on, and the averages of their
        gradients. Below 1.2e-38 a processor takes many times as long for each product: after 2,000 steps the
        three-layer network's took five times as long. A trainer calls this now and then; a loop of one's own may.
        """
        for plan in self._plans:
            for flat in plan.flats:
                if flat.backend.immediate and flat.master.itemsize == 4:
                    flat.flush_denormals()

    # --- numbers that are not finite --------------------------------------------------------------------------------

    def gradient_sums(self) -> list[Array]:
        """Return the sum of each flat buffer's gradients, 0-d, after `collect`: nan or inf where one is, else finite.

        The arrays are written again by the next call.
        """
        return [flat.sum_gradients() for plan in self._plans for flat in plan.flats]

    def guard(self, ok: Array) -> None:
        """Make the next `apply` change nothing where `ok` (1,) is False; no value travels to the host."""
        if not self._guarded:
            self._guarded = True
            for group, plan in zip(self.param_groups, self._plans, strict=True):
                self._lay_out(group, plan)
        for plan in self._plans:
            for flat, identity in zip(plan.flats, plan.identities, strict=True):
                flat.guard(ok, identity)

    # --- state ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that a bit-exact continuation needs, flat: host arrays and plain numbers by name.

        Arrays are `"state.PARAMETER.NAME"`, options `"group.GROUP.OPTION"`, counters `"memory.GROUP.NAME"`. A float16
        parameter has `"state.PARAMETER.master"` too.
        """
        self.gather()
        result: dict[str, Any] = self._numbers()
        order = self._order()
        for plan in self._plans:
            for flat in plan.flats:
                for name, array in flat.kept().items():
                    host = flat.backend.to_numpy(array)
                    for parameter, part in zip(flat.parameters, flat.split(host), strict=True):
                        result[f"state.{order[id(parameter)]}.{name}"] = part.copy()
        return result

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, into an optimiser over parameters of the same shapes.

        Raises
        ------
        DataError
            A name is missing or unknown, or an array has another shape or dtype; nothing is changed then.
        """
        groups = [dict(group) for group in self.param_groups]
        memories = [dict(memory) for memory in self._memory]
        known = self._numbers()
        for key, value in known.items():
            put(groups if key.startswith("group.") else memories, key, read_number(state, key, value))
        order = self._order()
        arrays: dict[tuple[int, str], Any] = {}
        for group in groups:
            try:
                self._check(group)
            except ConfigError as error:
                raise DataError(f"optimiser state: {error}") from error
            for parameter in group["params"]:
                names = [*self._state(group), *([MASTER] if is_narrow(parameter.data.dtype) else [])]
                for name in names:  # the options decide which arrays there are
                    key = f"state.{order[id(parameter)]}.{name}"
                    arrays[id(parameter), name] = read_array(state, key, parameter)
                    known[key] = 0
        unknown = [key for key in state if key not in known]
        if unknown:
            raise DataError(f"optimiser state: expected no {unknown[0]!r}; it was saved by another kind of optimiser")
        for mine, new in zip(self.param_groups, groups, strict=True):
            mine.update(new)
        self._memory = memories
        for group, plan in zip(self.param_groups, self._plans, strict=True):
            plan.hyper = plan.kind = None
            self._lay_out(group, plan, arrays)

    # --- the buffers ------------------------------------------------------------------------------------------------

    def _numbers(self) -> dict[str, Number]:
        """Return options and counters by name."""
        result: dict[str, Number] = {}
        for i, (group, memory) in enumerate(zip(self.param_groups, self._memory, strict=True)):
            for name, value in group.items():
                if isinstance(value, tuple):
                    result.update({f"group.{i}.{name}.{j}": part for j, part in enumerate(value)})
                elif name != "params":
                    result[f"group.{i}.{name}"] = value
            result.update({f"memory.{i}.{name}": value for name, value in memory.items()})
        return result

    def _order(self) -> dict[int, int]:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        return {id(parameter): i for i, parameter in enumerate(parameters)}

    def _lay_out(self, group: Group, plan: _Plan, state: Mapping[tuple[int, str], Any] | None = None) -> None:
        """Make the flat buffers anew where the parameters are now, with the given state, or with the one there is."""
        self.generation += 1
        arrays: dict[tuple[int, str], Any] = dict(state or {})
        has_masters = any(is_narrow(parameter.data.dtype) for parameter in group["params"])
        for flat in plan.flats if state is None else []:
            # Where parameters have just become float16, the float32 ones that they were go on as their masters.
            for name, array in {**flat.state, **({MASTER: flat.master} if has_masters else {})}.items():
                host = flat.backend.to_numpy(array)
                for parameter, part in zip(flat.parameters, flat.split(host), strict=True):
                    arrays[id(parameter), name] = part
        kinds: dict[tuple[int, str], list[Parameter]] = {}
        for parameter in group["params"]:
            backend = backend_of(parameter.data)
            kinds.setdefault((id(backend), str(parameter.data.dtype)), []).append(parameter)
        plan.flats = []
        for parameters in kinds.values():
            backend = backend_of(parameters[0].data)
            flat = Flat(parameters, backend, self._state(group), len(self.identity), self._guarded)
            for name, array in flat.kept().items():
                for parameter, part in zip(parameters, flat.split(array), strict=True):
                    kept = arrays.get((id(parameter), name))
                    if kept is not None and kept.shape == part.shape:
                        part[...] = backend.asarray(kept, flat.wide)
            if plan.hyper is not None:
                flat.hyper[...] = backend.asarray(plan.hyper, flat.wide)
            plan.flats.append(flat)
        plan.parameters = list(group["params"])
        plan.identities = [flat.backend.asarray(self.identity, flat.wide) for flat in plan.flats]


class _Plan:
    """What a group's steps use again and again."""

    __slots__ = ("flats", "hyper", "identities", "kind", "parameters", "switches", "update")

    def __init__(self) -> None:
        self.flats: list[Flat] = []
        self.parameters: list[Parameter] = []
        self.identities: list[Array] = []
        self.hyper: tuple[float, ...] | None = None
        self.switches: list[bool] = []
        self.kind: tuple[Callable[..., None], dict[str, bool]] | None = None
        self.update: Callable[..., None] = _nothing


def _nothing(*arrays: Array) -> None:
    raise StateError("apply: call upload() before it")
