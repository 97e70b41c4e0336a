"""A running average of the weights, which is often a better model than the last weights are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from xpcnn.backend import Array, Backend, backend_of, graph
from xpcnn.backend.graph.guards import version
from xpcnn.errors import DataError
from xpcnn.functional.precision import cast, wide
from xpcnn.nn import Module
from xpcnn.optim.groups import check_count, check_flag, check_range
from xpcnn.training.callbacks import Callback

if TYPE_CHECKING:
    from xpcnn.training.trainer import Trainer

CHUNK = 1 << 16  # elements that one thread averages at a time, so that its second and third pass find them in cache


class ModelAverage(Callback):
    """Keeps an exponential moving average of the weights: average = decay * average + (1 - decay) * weights.

    The first update copies the weights. Validation sees the averaged weights, and so does `EarlyStopping`; after the
    last step of `fit` the model has them, unless `EarlyStopping` has put its best ones there. A later `fit` goes on
    from the weights that were trained.

    Parameters
    ----------
    decay : float
        From 0 to below 1; 1 / (1 - decay) updates are what the average looks back.
    every : int
        Steps from one update to the next.
    start : int
        Steps before the first one.
    warmup : bool
        Whether the decay of the n-th update is (1 + n) / (10 + n) while that is lower, so that the first weights are
        soon forgotten.
    use_buffers : bool
        Whether running statistics (floating persistent buffers) are averaged too, with the same decay; else the
        model's own go with the averaged weights. Buffers of integers are never averaged.
    validate : bool
        Whether the validation of a `Trainer` sees the averaged weights.
    apply_at_end : bool
        Whether the model has them when `fit` has ended, by itself or by `stop`.

    Attributes
    ----------
    count : int
        Updates so far.
    averages : dict of str to array
        By the names of `state_dict`, in float32 for a float16 model.

    Raises
    ------
    ConfigError
        A value is not allowed.

    References
    ----------
    Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; Tarvainen and Valpola 2017,
    arXiv:1703.01780; `torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn` computes the same numbers.

    Examples
    --------
    >>> from xpcnn import training
    >>> average = training.ModelAverage(0.9)
    >>> model = nn.Sequential(nn.Linear(4, 3))
    >>> optimizer = optim.SGD(model.parameters(), 0.1)
    >>> trainer = training.Trainer(model, optimizer, nn.CrossEntropyLoss(), callbacks=[average])
    >>> batches = [(np.ones((8, 4), "float32"), np.arange(8) % 3)]
    >>> history = trainer.fit(batches, epochs=3)
    >>> average.count, sorted(average.averages)
    (3, ['0.bias', '0.weight'])
    """

    def __init__(
        self,
        decay: float = 0.999,
        *,
        every: int = 1,
        start: int = 0,
        warmup: bool = False,
        use_buffers: bool = True,
        validate: bool = True,
        apply_at_end: bool = True,
    ) -> None:
        check_range("decay", decay, 0.0, 1.0)
        for name, value, least in (("every", every, 1), ("start", start, 0)):
            check_count(name, value, least)
        for name, flag in (("warmup", warmup), ("use_buffers", use_buffers), ("validate", validate)):
            check_flag(name, flag)
        check_flag("apply_at_end", apply_at_end)
        self.decay, self.every, self.start, self.warmup = decay, every, start, warmup
        self.use_buffers, self.validate, self.apply_at_end = use_buffers, validate, apply_at_end
        self._reset()

    def _reset(self) -> None:
        self._steps = self._count = 0
        self._averages: dict[str, Array] = {}
        self._trained: dict[str, Array] | None = None  # the weights whose place the averaged ones have taken at the end
        self._pieces: dict[Any, list[tuple[Array, Array]]] = {}  # live and average by dtype, in parts for threads
        self._followed: Any = None

    @property
    def count(self) -> int:
        """Updates so far."""
        return self._count

    @property
    def averages(self) -> dict[str, Array]:
        """The averages by name, the live arrays."""
        return self._averages

    # --- averaging ------------------------------------------------------------------------------------------------

    def update(self, model: Module) -> None:
        """Count a step, and take the model's weights into the average where one is due: for a loop of one's own."""
        self._steps += 1
        if self._steps <= self.start or (self._steps - self.start - 1) % self.every:
            return
        self._follow(model)
        if self._count:
            decay = min(self.decay, (1 + self._count) / (10 + self._count)) if self.warmup else self.decay
            self._blend(model.backend, 1.0 - decay)
        self._count += 1

    def _follow(self, model: Module) -> None:
        """Find the model's arrays; those without an average begin one."""
        now = model, version[0]
        if self._count and self._followed is not None and self._followed[0] is model and self._followed[1] == now[1]:
            return
        state = dict(self._averaged(model))
        fresh: dict[str, Array] = {}
        for name, live in state.items():
            backend = backend_of(live)
            average = self._averages.get(name) if self._count else None
            if average is None or tuple(average.shape) != tuple(live.shape):
                average = backend.place(cast(backend, backend.copy(live), wide(live.dtype)))
            elif not backend.owns(average):
                average = backend.place(backend.asarray(backend_of(average).to_numpy(average), average.dtype))
            fresh[name] = average
        self._averages, self._followed = fresh, now
        self._pieces = {}
        for name, live in state.items():
            parts = self._pieces.setdefault(fresh[name].dtype, [])
            parts += _parts(backend_of(live), live, fresh[name])
        self._replay: Any = None

    def _averaged(self, model: Module) -> Iterator[tuple[str, Array]]:
        parameters = {name for name, _ in model.named_parameters()}
        for name, array in model.state_dict().items():
            if array.dtype.kind == "f" and (self.use_buffers or name in parameters):
                yield name, array

    def _blend(self, backend: Backend, share: float) -> None:
        if backend.immediate:
            with backend.errstate():
                for parts in self._pieces.values():
                    work = 3.0 * sum(live.size for live, _ in parts)
                    backend.parallel(lambda pair: _move(backend, pair[0], pair[1], share), parts, work, products=False)
            return
        if self._replay is None:  # one launch in the place of three for each array
            self._shares = {dtype: backend.place(backend.zeros((1,), dtype)) for dtype in self._pieces}
            self._share = math.nan
            self._replay = graph.Compiled(self._blend_all, backend)
        if share != self._share:
            self._share = share
            for weight in self._shares.values():
                weight[...] = share
        self._replay()

    def _blend_all(self) -> None:
        for dtype, parts in self._pieces.items():
            for live, average in parts:
                _move(backend_of(average), live, average, self._shares[dtype])

    # --- using it ---------------------------------------------------------------------------------------------------

    def copy_to(self, model: Module) -> None:
        """Give a model the averaged weights, for good; before the first update it keeps its own."""
        if self._count:
            _load(model, self._averages)

    @contextmanager
    def applied(self, model: Module) -> Iterator[Module]:
        """Let a model have the averaged weights for the length of a `with` block.

        Examples
        --------
        >>> from xpcnn import nn, training
        >>> model, average = nn.Sequential(nn.Linear(4, 3)), training.ModelAverage(0.99)
        >>> average.update(model)
        >>> with average.applied(model) as averaged:
        ...     weights = averaged[0].weight.data.copy()
        """
        if not self._count:
            yield model
            return
        state = model.state_dict()
        trained = {name: backend_of(state[name]).copy(state[name]) for name in self._averages if name in state}
        try:
            self.copy_to(model)
            yield model
        finally:
            _load(model, trained)

    # --- the trainer's events ---------------------------------------------------------------------------------------

    def validation_weights(self, trainer: Trainer) -> AbstractContextManager[Any]:
        """Put the averaged weights in place for a validation."""
        return self.applied(trainer.model) if self.validate else nullcontext()

    def on_fit_start(self, trainer: Trainer) -> None:
        """Go on from the weights that were trained, unless others have been put in place since."""
        trained, self._trained = self._trained, None
        if trained is not None and self._is_in_place(trainer.model):
            _load(trainer.model, trained)

    def on_step(self, trainer: Trainer) -> None:
        """Take in the weights after a step."""
        self.update(trainer.model)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Leave the averaged weights in the model."""
        if not (self.apply_at_end and trainer.completed and self._count):
            return
        if any(getattr(callback, "restores", False) for callback in trainer.callbacks):
            return
        state = trainer.model.state_dict()
        self._trained = {name: backend_of(state[name]).copy(state[name]) for name in self._averages}
        self.copy_to(trainer.model)

    def _is_in_place(self, model: Module) -> bool:
        state = model.state_dict()
        for name, average in self._averages.items():
            if name not in state or tuple(state[name].shape) != tuple(average.shape):
                return False
            live = state[name]
            backend = backend_of(live)
            there = backend.asarray(backend_of(average).to_numpy(average), average.dtype)
            if not bool(backend.to_numpy(backend.xp.all(cast(backend, there, live.dtype) == live))):
                return False
        return True

    # --- what is saved ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the averages, how many updates they are of, and weights whose place they have taken."""
        arrays = {f"average.{name}": array for name, array in self._averages.items()} if self._count else {}
        arrays |= {f"trained.{name}": array for name, array in (self._trained or {}).items()}
        return {"count": self._count, "steps": self._steps, **arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises
        ------
        DataError
            It is not the state of a `ModelAverage`.
        """
        numbers = [state.get("count"), state.get("steps")]
        if any(isinstance(each, bool) or not isinstance(each, int) or each < 0 for each in numbers):
            raise DataError(f"average state: expected count and steps of 0 or more, got {numbers!s:.60}")
        parts: dict[str, dict[str, Array]] = {"average": {}, "trained": {}}
        for name, array in state.items():
            part, _, rest = name.partition(".")
            if name not in ("count", "steps"):
                if part not in parts or not hasattr(array, "shape"):
                    raise DataError(f"average state: expected arrays of average and trained, got {name!r:.60}")
                parts[part][rest] = array
        self._reset()
        self._count, self._steps = state["count"], state["steps"]
        self._averages, self._trained = parts["average"], parts["trained"] or None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_pieces": {}, "_followed": None, "_replay": None}


def _parts(backend: Backend, live: Array, average: Array) -> list[tuple[Array, Array]]:
    """Return an array and its average in pieces that fit into a cache; on a device whole."""
    if backend.slab_bytes is None or live.size <= CHUNK or not live.flags.c_contiguous:
        return [(live, average)]
    live, average = live.reshape(-1), average.reshape(-1)
    return [(live[start : start + CHUNK], average[start : start + CHUNK]) for start in range(0, live.size, CHUNK)]


def _move(backend: Backend, live: Array, average: Array, share: Any) -> None:
    """Move an average a share of the way to the live numbers."""
    xp = backend.xp
    with backend.errstate():
        way = backend.scratch("average", average.shape, average.dtype)
        xp.subtract(live, average, out=way)
        xp.multiply(way, share, out=way)
        xp.add(average, way, out=average)


def _load(model: Module, arrays: Mapping[str, Array]) -> None:
    """Copy some of a model's state into it."""
    state = model.state_dict()
    for name, array in arrays.items():
        if name in state:
            live = state[name]
            backend = backend_of(array)
            state[name] = array if array.dtype == live.dtype else cast(backend, array, live.dtype)
    model.load_state_dict(state)
