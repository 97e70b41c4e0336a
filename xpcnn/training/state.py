"""All that a training needs to go on bit by bit: taken out of a trainer, and put back, whole or not at all."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from xpcnn import __version__, random
from xpcnn.backend import backend_of, use_backend
from xpcnn.errors import ConfigError, DataError, XpcnnError
from xpcnn.training.arrays import host_state, load_host_state
from xpcnn.training.callbacks import stateful
from xpcnn.training.checkpoint import State
from xpcnn.training.history import History

if TYPE_CHECKING:
    from xpcnn.training.trainer import Trainer

PARTS = ("model", "buffer", "optimizer", "history", "callback")
COUNTERS = ("step", "epoch", "batch", "first_epoch", "skipped")


def capture_state(trainer: Trainer, train: Any = None) -> State:
    """Return copies of everything; `train` is the loader, whose position belongs to it.

    Raises
    ------
    ConfigError
        A callback's state holds what no file takes.
    """
    optimizer = trainer.optimizer.state_dict()
    arrays = {f"model.{name}": value for name, value in host_state(trainer.model).items()}
    arrays |= {f"buffer.{name}": value for name, value in _other_buffers(trainer).items()}
    arrays |= {f"optimizer.{name}": value for name, value in optimizer.items() if hasattr(value, "shape")}
    callbacks = []
    for i, callback in enumerate(stateful(trainer.callbacks)):
        state = callback.state_dict()
        held = {name: value for name, value in state.items() if hasattr(value, "shape") and hasattr(value, "dtype")}
        arrays |= {f"callback.{i}.{name}": backend_of(value).to_numpy(value).copy() for name, value in held.items()}
        rest = {name: value for name, value in state.items() if name not in held}
        kind = type(callback).__name__
        try:
            json.dumps(rest)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"callbacks: expected arrays, numbers, strings, lists and dicts in {kind}.state_dict(), {error!s:.80}"
            ) from error
        callbacks.append({"kind": kind, "state": rest})
    with use_backend("numpy") as host:
        for table in ("steps", "epochs"):
            for name, column in getattr(trainer.history, table).items():
                arrays[f"history.{table}.{name}"] = host.xp.array(column, "float64")
    numbers = {name: getattr(trainer, name) for name in COUNTERS}
    totals = [trainer.average.total, trainer.average.weight, trainer.hits.total, trainer.hits.weight, trainer.seconds]
    return State(
        arrays,
        {
            **numbers,
            "totals": totals,
            "optimizer": {name: value for name, value in optimizer.items() if not hasattr(value, "shape")},
            "schedule": trainer.schedule.state_dict() if trainer.schedule is not None else None,
            "schedule_every": trainer.schedule_every,
            "scaler": trainer.scaler.state_dict() if trainer.scaler is not None else None,
            "callbacks": callbacks,
            "random": random.get_state(),
            "loader": train.state_dict() if hasattr(train, "state_dict") else None,
            "backend": trainer.model.backend.name,
            "xpcnn": __version__,
        },
    )


def restore_state(trainer: Trainer, state: State, train: Any = None) -> None:
    """Put a state back into a trainer of the same model, optimiser, schedule and loader.

    Raises
    ------
    DataError
        Something is missing, damaged or belongs to another training; the trainer is as before.
    """
    before = capture_state(trainer, train)
    try:
        _restore(trainer, state, train)
    except (XpcnnError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        _restore(trainer, before, train)
        reason = str(error) if isinstance(error, XpcnnError) else f"{type(error).__name__}: {error}"
        raise DataError(f"checkpoint: expected one of this training, got a different one ({reason})") from error


def _restore(trainer: Trainer, state: State, train: Any) -> None:
    numbers, parts = state.numbers, _split(state.arrays)
    counters = {name: _count(numbers, name) for name in COUNTERS}
    totals = numbers.get("totals")
    if not isinstance(totals, list) or len(totals) != 5 or not all(_is_number(value) for value in totals):
        raise DataError("totals: expected five numbers")
    history = _history(parts["history"])
    if len(history) != counters["step"]:
        raise DataError(f"history: expected {counters['step']} steps, got {len(history)}")
    if (numbers.get("schedule") is None) != (trainer.schedule is None):
        raise DataError("schedule: expected one in both the checkpoint and the trainer, or in neither")
    unit = numbers.get("schedule_every", "batch")
    if unit != trainer.schedule_every:
        raise DataError(f"schedule_every: expected {trainer.schedule_every!r} as the trainer has it, got {unit!r:.40}")
    if (numbers.get("scaler") is None) != (trainer.scaler is None):
        raise DataError("scaler: expected one in both the checkpoint and the trainer, or in neither")
    callbacks = _callback_states(trainer, numbers.get("callbacks", []), parts["callback"])
    if not isinstance(numbers.get("optimizer"), Mapping) or parts["optimizer"].keys() & numbers["optimizer"].keys():
        raise DataError("optimizer: expected its arrays and its numbers by name")
    optimizer = {**parts["optimizer"], **numbers["optimizer"]}
    own = trainer.model.state_dict()
    for name, saved in parts["model"].items():  # a model's own `load_state_dict` would widen them
        if name in own and saved.dtype != own[name].dtype:
            raise DataError(f"{name}: expected {own[name].dtype} as the trainer has it, got {saved.dtype}")
    load_host_state(trainer.model, parts["model"], "model")
    _load_other_buffers(trainer, parts["buffer"])
    trainer.optimizer.load_state_dict(optimizer)
    if trainer.schedule is not None:
        trainer.schedule.load_state_dict(numbers["schedule"])
        # A schedule writes rates; what a user has changed beside it is the optimiser's to say.
        trainer.optimizer.load_state_dict(optimizer)
    if trainer.scaler is not None:
        trainer.scaler.load_state_dict(numbers["scaler"])
    for callback, its_state in callbacks:
        callback.load_state_dict(its_state)
    if hasattr(train, "load_state_dict"):
        train.load_state_dict(numbers.get("loader"))
    random.set_state(numbers["random"])
    for name, value in counters.items():
        setattr(trainer, name, value)
    trainer.average.total, trainer.average.weight, trainer.hits.total, trainer.hits.weight, trainer.seconds = totals
    trainer.history = history


def _split(arrays: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    parts: dict[str, dict[str, Any]] = {name: {} for name in PARTS}
    for name, value in arrays.items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise DataError(f"expected arrays of {', '.join(parts)}, got {name!r:.80}")
        parts[part][rest] = value
    return parts


def _callback_states(trainer: Trainer, saved: Any, arrays: Mapping[str, Any]) -> list[tuple[Any, dict[str, Any]]]:
    """Return the callbacks that have a state, each with the one that was saved of it."""
    mine = stateful(trainer.callbacks)
    kinds = [type(callback).__name__ for callback in mine]
    if not isinstance(saved, list) or not all(
        isinstance(each, Mapping) and isinstance(each.get("state"), Mapping) for each in saved
    ):
        raise DataError(f"callbacks: expected their states, got {saved!r:.60}")
    if [each.get("kind") for each in saved] != kinds:
        found = ", ".join(str(each.get("kind")) for each in saved)
        raise DataError(f"callbacks: expected {', '.join(kinds) or 'none with a state'}, got {found or 'none'}")
    states: list[dict[str, Any]] = [dict(each["state"]) for each in saved]
    for name, value in arrays.items():
        number, _, rest = name.partition(".")
        if not number.isdecimal() or int(number) >= len(states):
            raise DataError(f"callback.{name}: expected an array of one of {len(states)} callbacks")
        states[int(number)][rest] = value
    return list(zip(mine, states, strict=True))


def _history(arrays: Mapping[str, Any]) -> History:
    tables: dict[str, dict[str, Any]] = {"steps": {}, "epochs": {}}
    for name, value in arrays.items():
        table, _, column = name.partition(".")
        if table not in tables or value.ndim != 1 or str(value.dtype) != "float64":
            raise DataError(f"history.{name}: expected a column of float64, got {value.dtype} {value.shape}")
        tables[table][column] = array("d", value.tobytes())
    history = History.from_dict(tables)
    history.epochs["step"] = [int(step) for step in history.epochs["step"]]
    return history


def _other_buffers(trainer: Trainer) -> dict[str, Any]:
    """Return copies of the buffers that `state_dict` leaves out, such as the keys of dropout."""
    persistent = trainer.model.state_dict()
    buffers = {name: value for name, value in trainer.model.named_buffers() if name not in persistent}
    return {name: backend_of(value).to_numpy(value).copy() for name, value in buffers.items()}


def _load_other_buffers(trainer: Trainer, arrays: Mapping[str, Any]) -> None:
    mine = _other_buffers(trainer)
    for name in mine.keys() | arrays.keys():
        there, here = arrays.get(name), mine.get(name)
        if there is None or here is None or there.shape != here.shape or there.dtype != here.dtype:
            raise DataError(
                f"buffer {name!r}: expected it in both the checkpoint and the model, of one shape and dtype"
            )
    for name, value in trainer.model.named_buffers():
        if name in arrays:
            value[...] = backend_of(value).asarray(arrays[name])


def _count(numbers: Mapping[str, Any], name: str) -> int:
    value = numbers.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise DataError(f"{name}: expected an integer of 0 or more, got {value!r:.40}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
