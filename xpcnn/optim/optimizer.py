"""What every optimiser shares: parameter groups, the flat buffers, and state that can be saved.

A subclass names its options, its state arrays and its hyperparameters, and gives one update function over flat arrays.
What a step works with follows from `param_groups`, which may be edited between steps: each step looks whether lists of
parameters, options, frozen parameters or arrays are still what the buffers were laid out for. Parameters that take no
part, because they are frozen or gone from their list, keep their state at rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from xpcnn.backend import Array, backend_of
from xpcnn.backend.graph import Guarded, host, is_captured, see
from xpcnn.backend.graph.guards import Tokens
from xpcnn.errors import ConfigError, DataError, StateError
from xpcnn.functional.precision import is_narrow
from xpcnn.nn import Parameter
from xpcnn.nn.parameter import clock
from xpcnn.optim.flat import MASTER, Flat
from xpcnn.optim.groups import (
    Group,
    Number,
    WatchedGroup,
    WatchedList,
    check_members,
    check_range,
    make_groups,
    put,
    read_array,
    read_number,
)


class Optimizer(Guarded):
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
        Each group's parameters and options. Options, lists of parameters and the list of groups may be edited; the
        next step follows, as it does where `Parameter.requires_grad` has changed.
    generation : int
        Changes whenever arrays or the kind of update change, so that a captured step must be captured again.
    grad_scale : (1,) float32 array or None
        What all gradients are too large by; `apply` divides them by it (see `GradScaler`).

    Raises
    ------
    ConfigError
        No parameters, one that is given twice, an unknown option, or a value that is not allowed.

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> optimizer = optim.SGD(layer.parameters(), lr=0.1)  # each optimiser is one
    >>> isinstance(optimizer, optim.Optimizer), optimizer.param_groups[0]["lr"]
    (True, 0.1)
    >>> optimizer.zero_grad()
    >>> float(layer.weight.grad.sum())
    0.0
    """

    def __init__(self, parameters: Iterable[Parameter] | Iterable[Group], defaults: Group) -> None:
        self.defaults = dict(defaults)
        self.param_groups: list[Group] = WatchedList(make_groups(parameters, defaults))
        self.generation = 0
        self.grad_scale: Array | None = None
        self._guarded = False
        self._plans: list[_Plan] = []
        self._groups_seen: list[int] = []  # by their ids; the plans hold them
        self._resting: dict[int, _Resting] = {}
        self._follow()

    def __repr__(self) -> str:
        groups = []
        for group in self.param_groups:
            options = [f"{name}={value!r}" for name, value in group.items() if name != "params"]
            count = len(group["params"])
            groups.append(", ".join([f"{count} parameter{'s' * (count != 1)}", *options]))
        inside = groups[0] if len(groups) == 1 else ", ".join(f"[{group}]" for group in groups)
        return f"{type(self).__name__}({inside})"

    # --- what a subclass gives ------------------------------------------------------------------------------------

    optional_state: tuple[str, ...] = ()  # names of state arrays that some options do without
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

    def _hyper(self, group: Group, counters: dict[str, Number]) -> tuple[float, ...]:
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

    def parameters(self) -> list[Parameter]:
        """Return the parameters of all groups as they are now."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def add_param_group(self, group: Group) -> None:
        """Add a group, such as of layers that are trained from now on.

        Parameters
        ----------
        group : dict
            `{"params": [...], "lr": ...}`; options that it does not name are the optimiser's defaults.

        Raises
        ------
        ConfigError
            As at construction; nothing has changed then.
        """
        if not isinstance(group, Mapping):
            raise ConfigError(f'group: expected a dict such as {{"params": [...], "lr": 0.1}}, got {group!r:.80}')
        (new,) = make_groups([group], self.defaults)
        self._check(new)
        check_members([*self.param_groups, new])
        self.param_groups.append(new)
        self._follow()

    def step(self) -> None:
        """Update every parameter from its gradient. A gradient that no backward has written counts as zero."""
        self.collect()
        self.update()

    def update(self, ok: Array | None = None) -> None:
        """Do what `step` does after `collect`; nothing at all where `ok` (1,), if given, is False."""
        see(self)
        self._follow()
        host(self.upload)
        if ok is not None:
            self.guard(ok)
        else:
            for plan in self._plans:
                for flat in plan.flats:
                    flat.unguard()
        self.apply()

    # --- traced by `xpcnn.compile` --------------------------------------------------------------------------------

    unguarded = frozenset({"_plans", "_resting", "_groups_seen", "_guarded", "generation", "defaults"})

    def parts(self) -> Iterable[Guarded]:
        """Return the optimiser and its parameters."""
        return self, *self.parameters()

    def settle(self) -> None:
        """Follow all edits."""
        self.gather()

    def guard_token(self, tokens: Tokens, without: frozenset[str] = frozenset()) -> Any:
        """Return which layout of the buffers and which updates there are; rates and the like are read by each step."""
        return self.generation, id(self.grad_scale)

    def zero_grad(self) -> None:
        """Declare every gradient zero; the memory is written only where the next backward does not overwrite it."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad_is_zero = True

    def collect(self) -> None:
        """Get ready for `apply`: `gather`, and write zeros to gradients that count as zero."""
        self.gather(zeros=True)

    def gather(self, *, zeros: bool = False) -> None:
        """Follow all edits: of groups, of frozen parameters, and of arrays that were put in place of the buffers'.

        `generation` says afterwards whether a captured step still does what is to be done.
        """
        self._follow()
        for plan in self._plans:
            if not all(flat.adopt(zeros) for flat in plan.flats):
                self._lay_out([plan])
                for flat in plan.flats:
                    flat.adopt(zeros)

    def upload(self) -> None:
        """Begin a step on the host: count it, and write the hyperparameters that have changed to the backend."""
        self._follow()
        by = type(self).__name__ + ".step"
        for plan in self._plans:
            for flat in plan.flats:
                hyper = self._hyper(plan.group, flat.counters)
                if hyper != flat.hyper_values:
                    flat.write_hyper(hyper)
                Parameter.mark_all_changed(flat.parameters, by)

    def apply(self) -> None:
        """Finish a step on the backend: nothing here depends on values that change on the host."""
        for plan in self._plans:
            for flat in plan.flats:
                if flat.hyper_values is None and not is_captured():
                    raise StateError("apply: call upload() before it")
                flat.apply(plan.update, 10.0, self.grad_scale)

    def flush_denormals(self) -> None:
        """Set denormal parameters and state to zero where no step can tell, on a host that computes in float32.

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
        sums = [flat.sum_gradients() for plan in self._plans for flat in plan.flats]
        if not sums:  # all are frozen
            backend = backend_of(self.parameters()[0].data)
            sums = [backend.zeros((), "float32")]
        return sums

    def flat_gradients(self) -> list[Array]:
        """Return all gradients, after `collect`, as flat arrays."""
        return [flat.grad for plan in self._plans for flat in plan.flats]

    def gradient_buffers(self) -> list[Array]:
        """Return flat arrays that hold all gradients, after `collect`, each with HEAD numbers more (see `Flat.summed`).

        Whoever writes there changes the update.
        """
        return [flat.summed for flat in self.flats()]

    def flats(self) -> list[Flat]:
        """Return the buffers as they are laid out now; `generation` changes with them."""
        return [flat for plan in self._plans for flat in plan.flats]

    def state_buffers(self) -> list[Array]:
        """Return the flat arrays that hold the optimiser's state, as they lie on the backend."""
        return [array for plan in self._plans for flat in plan.flats for array in flat.kept().values()]

    def guard(self, ok: Array) -> None:
        """Make the next `apply` change nothing where `ok` (1,) is False; no value travels to the host."""
        self.guard_updates()
        for plan in self._plans:
            for flat in plan.flats:
                flat.guard(ok, plan.update)

    def guard_updates(self) -> None:
        """Make room for what `guard` needs."""
        if not self._guarded:
            self._guarded = True
            self._lay_out(self._plans)

    # --- state ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that a bit-exact continuation needs, flat: host arrays and plain numbers by name.

        Arrays are `"state.PARAMETER.NAME"`, options `"group.GROUP.OPTION"`, counters `"memory.GROUP.NAME"`, and
        `"counter.PARAMETER.NAME"` where a parameter has taken part in fewer steps than others of its group. A float16
        parameter has `"state.PARAMETER.master"` too.
        """
        self.gather()
        saved = self._saved()
        result: dict[str, Any] = self._numbers(saved)
        for i, parameter in enumerate(self.parameters()):
            rest = saved.get(id(parameter))
            if rest is not None:
                result.update({f"state.{i}.{name}": array for name, array in rest.arrays.items()})
        return result

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, into an optimiser over parameters of the same shapes.

        Raises
        ------
        DataError
            A name is missing or unknown, or an array has another shape or dtype; nothing is changed then.
        """
        self._follow()
        groups = [dict(group) for group in self.param_groups]
        counters = [self._fresh(group) for group in groups]
        known = self._numbers({})
        for key, value in known.items():
            put(groups if key.startswith("group.") else counters, key, read_number(state, key, value))
        resting: dict[int, _Resting] = {}
        i = 0
        for group, shared in zip(groups, counters, strict=True):
            try:
                self._check(group)
            except ConfigError as error:
                raise DataError(f"optimiser state: {error}") from error
            names = list(self._state(group))  # the options decide which arrays there are
            for parameter in group["params"]:
                rest = resting[id(parameter)] = _Resting(parameter, dict(shared))
                for name, value in shared.items():
                    key = f"counter.{i}.{name}"
                    if key in state:
                        rest.counters[name] = read_number(state, key, value)
                        known[key] = 0
                masters = [MASTER] if is_narrow(parameter.data.dtype) else []
                for name in (*names, *masters, *self.optional_state):
                    key = f"state.{i}.{name}"
                    if key in state or name not in self.optional_state or name in names:
                        rest.arrays[name] = read_array(state, key, parameter)
                        known[key] = 0
                i += 1
        unknown = [key for key in state if key not in known]
        if unknown:
            raise DataError(f"optimiser state: expected no {unknown[0]!r}; it was saved by another kind of optimiser")
        for mine, new in zip(self.param_groups, groups, strict=True):
            for name, value in new.items():
                mine[name] = value
        self._resting = resting
        for plan in self._plans:
            plan.kind = None
        self._lay_out(self._plans, park=False)
        self._follow()

    def __getstate__(self) -> dict[str, Any]:
        self.gather()
        saved = self._saved()
        rest = {name: value for name, value in vars(self).items() if name not in ("_plans", "_resting")}
        return rest | {"_resting": [saved[id(each)] for each in self.parameters() if id(each) in saved]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._resting = {id(rest.parameter): rest for rest in state["_resting"]}
        self._plans, self._groups_seen = [], []
        self._follow()

    # --- the buffers ------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Take in what has been edited in `param_groups` and in what is frozen since the last look."""
        groups = self.param_groups
        if [*map(id, groups)] != self._groups_seen:
            self._match(groups)
            self._groups_seen = [*map(id, groups)]
        changed = [plan for plan in self._plans if plan.is_outdated()]
        if changed:
            check_members(groups)
            self._lay_out(changed)
        for plan in self._plans:
            group = plan.group
            if plan.seen != group:
                unknown = group.keys() ^ {*self.defaults, "params"}
                if unknown:
                    raise ConfigError(
                        f"param_groups: expected the options {', '.join(sorted(self.defaults))}, "
                        f"got {sorted(unknown)[0]!r} {'added' if min(unknown) in group else 'missing'}"
                    )
                self._check(group)
                kind = self._update(group)
                if kind != plan.kind:
                    # Arrays that a new option needs (momentum that was 0) start at their initial value, or where they
                    # were when it was turned off.
                    if any(self._state(group).keys() != flat.state.keys() for flat in plan.flats):
                        self._lay_out([plan])
                    plan.kind = kind
                    plan.update = partial(kind[0], **kind[1])
                    self.generation += 1
                plan.seen = dict(group)

    def _match(self, groups: list[Group]) -> None:
        """Give each group its plan; the state of parameters whose group is gone is at rest."""
        for group in groups:
            if not isinstance(group, dict) or "params" not in group:
                raise ConfigError(f'param_groups: expected dicts such as {{"params": [...]}}, got {group!r:.80}')
        for i, group in enumerate(groups):
            if type(group) is not WatchedGroup:  # one that a user has put into the list
                list.__setitem__(groups, i, WatchedGroup(group))
        for group in groups:
            dict.__setitem__(
                group, "params", WatchedList(group["params"]) if type(group["params"]) is list else group["params"]
            )
            for name, value in self.defaults.items():
                if name not in group:
                    group[name] = value
            self._check(group)
        check_members(groups)
        old = {id(plan.group): plan for plan in self._plans}
        self._plans = [old.pop(id(group)) if id(group) in old else _Plan(group) for group in groups]
        for plan in old.values():
            self._park(plan)
            _let_go(plan.members)

    def _park(self, plan: _Plan) -> None:
        """Put the state of a plan's parameters to rest, and drop its buffers."""
        for flat in plan.flats:
            arrays = {name: flat.backend.to_numpy(array) for name, array in flat.kept().items()}
            master = None if flat.is_narrow else flat.backend.to_numpy(flat.master)
            for i, parameter in enumerate(flat.parameters):
                rest = self._resting.setdefault(id(parameter), _Resting(parameter, {}))
                rest.counters, rest.hyper = dict(flat.counters), flat.hyper_values
                rest.arrays.update({name: flat.part(array, i).copy() for name, array in arrays.items()})
                # Where parameters have just become float16, the float32 ones that they were go on as their masters.
                if master is not None and is_narrow(parameter.data.dtype):
                    rest.arrays[MASTER] = flat.part(master, i).copy()
        plan.flats = []

    def _lay_out(self, plans: list[_Plan], *, park: bool = True) -> None:
        """Make the flat buffers of plans anew where the parameters are now, with the state there is."""
        self.generation += 1
        before = [parameter for plan in plans for parameter in plan.members]
        for plan in plans if park else ():
            self._park(plan)
        placed: set[int] = set()
        for plan in plans:
            group = plan.group
            plan.note_members()
            kinds: dict[Any, list[Parameter]] = {}
            for parameter in plan.members:
                if not parameter.requires_grad:
                    continue
                rest = self._resting.get(id(parameter))
                counters = rest.counters if rest is not None and rest.counters else self._fresh(group)
                key = id(backend_of(parameter.data)), str(parameter.data.dtype), *counters.items()
                kinds.setdefault(key, []).append(parameter)
            plan.flats = [self._flat(group, key[2:], parameters) for key, parameters in kinds.items()]
            placed.update(id(parameter) for parameters in kinds.values() for parameter in parameters)
        _let_go(parameter for parameter in before if id(parameter) not in placed)

    def _flat(self, group: Group, counters: Iterable[tuple[str, Number]], parameters: list[Parameter]) -> Flat:
        """Return a buffer of parameters that have taken part in the same steps, with their state."""
        backend = backend_of(parameters[0].data)
        flat = Flat(parameters, backend, self._state(group), self.identity, self._guarded)
        flat.counters = dict(counters)
        first = self._resting.get(id(parameters[0]))
        if first is not None and first.hyper is not None:
            flat.write_hyper(first.hyper)
        for name, array in flat.kept().items():
            for i, parameter in enumerate(parameters):
                rest = self._resting.get(id(parameter))
                kept = None if rest is None else rest.arrays.pop(name, None)
                part = flat.part(array, i)
                if kept is not None and kept.shape == part.shape:
                    part[...] = backend.asarray(kept, flat.wide)
        for parameter in parameters:
            rest = self._resting.get(id(parameter))
            if rest is not None and not rest.arrays:
                del self._resting[id(parameter)]
        return flat

    # --- what is saved ----------------------------------------------------------------------------------------------

    def _saved(self) -> dict[int, _Resting]:
        """Return host copies of the state of every parameter that has one, by its id."""
        result = {
            key: _Resting(rest.parameter, dict(rest.counters), dict(rest.arrays)) for key, rest in self._resting.items()
        }
        for plan in self._plans:
            for flat in plan.flats:
                arrays = {name: flat.backend.to_numpy(array) for name, array in flat.kept().items()}
                for i, parameter in enumerate(flat.parameters):
                    rest = result.setdefault(id(parameter), _Resting(parameter, {}))
                    rest.counters = dict(flat.counters)
                    rest.arrays.update({name: flat.part(array, i).copy() for name, array in arrays.items()})
        return result

    def _numbers(self, saved: Mapping[int, _Resting]) -> dict[str, Number]:
        """Return options and counters by name."""
        result: dict[str, Number] = {}
        position = 0
        for i, group in enumerate(self.param_groups):
            for name, value in group.items():
                if isinstance(value, tuple):
                    result.update({f"group.{i}.{name}.{j}": part for j, part in enumerate(value)})
                elif name != "params":
                    result[f"group.{i}.{name}"] = value
            shared = fresh = self._fresh(group)
            for offset, parameter in enumerate(group["params"]):
                rest = saved.get(id(parameter))
                counters = rest.counters if rest is not None and rest.counters else fresh
                if offset == 0:
                    shared = counters
                elif counters != shared:
                    result.update({f"counter.{position + offset}.{name}": value for name, value in counters.items()})
            result.update({f"memory.{i}.{name}": value for name, value in shared.items()})
            position += len(group["params"])
        return result


class _Plan:
    """What a group's steps use again and again, and what the group was when it was made."""

    __slots__ = ("flats", "freezes", "group", "kind", "members", "seen", "trained", "update")

    def __init__(self, group: Group) -> None:
        self.group = group
        self.flats: list[Flat] = []
        self.members: list[Parameter] = []
        self.trained: list[bool] | None = None
        self.freezes = -1
        self.seen: Group = {}
        self.kind: tuple[Callable[..., None], dict[str, bool]] | None = None
        self.update: Callable[..., None] = _nothing

    def is_outdated(self) -> bool:
        """Whether the list of parameters is another, or others are frozen, than when the buffers were laid out."""
        members = self.group["params"]
        if members != self.members:
            return True
        if self.freezes != clock.freezes:
            self.freezes = clock.freezes
            return [each.requires_grad for each in members] != self.trained
        return False

    def note_members(self) -> None:
        """Remember the parameters as they are."""
        self.members = list(self.group["params"])
        self.trained = [each.requires_grad for each in self.members]


class _Resting:
    """State of a parameter outside of the buffers: counters, last hyperparameters, and host arrays by name."""

    __slots__ = ("arrays", "counters", "hyper", "parameter")

    def __init__(self, parameter: Parameter, counters: dict[str, Number], arrays: dict[str, Any] | None = None) -> None:
        self.parameter, self.counters = parameter, counters
        self.hyper: tuple[float, ...] | None = None
        self.arrays: dict[str, Any] = {} if arrays is None else arrays


def _let_go(parameters: Iterable[Parameter]) -> None:
    """Give parameters that no longer lie in a buffer arrays of their own, so that the buffer can go."""
    for parameter in parameters:
        backend = backend_of(parameter.data)
        is_zero = parameter.grad_is_zero
        gradient = backend.zeros(parameter.shape, parameter.data.dtype) if is_zero else backend.copy(parameter.grad)
        parameter.relocate(backend.place(backend.copy(parameter.data)), backend.place(gradient))


def _nothing(*arrays: Array) -> None:
    raise StateError("apply: call upload() before it")
