"""What a trainer is made of, checked before it is made and before it begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xpcnn.errors import ConfigError
from xpcnn.nn import Module
from xpcnn.optim import GradScaler, Optimizer
from xpcnn.optim.groups import check_count
from xpcnn.training.checkpoint import Checkpointer
from xpcnn.training.monitor import check_monitor

if TYPE_CHECKING:
    from xpcnn.training.trainer import Trainer


def check_parts(model: Any, optimizer: Any, criterion: Any, schedule: Any, checkpoint: Any, scaler: Any) -> None:
    """Raise ConfigError unless all are what they must be and belong together."""
    if not isinstance(model, Module):
        raise ConfigError(f"model: expected an nn.Module, got {type(model).__name__}")
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"optimizer: expected an optim.Optimizer, got {type(optimizer).__name__}")
    own = {id(parameter) for parameter in model.parameters()}
    theirs = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if own and theirs and not any(id(parameter) in own for parameter in theirs):
        raise ConfigError(
            "optimizer: expected parameters of the model, got those of another alone; make it with model.parameters()"
        )
    if isinstance(criterion, type) or not (callable(criterion) and hasattr(criterion, "backward")):
        got = f"the class {criterion.__name__}" if isinstance(criterion, type) else type(criterion).__name__
        raise ConfigError(f"criterion: expected a loss such as nn.CrossEntropyLoss(), got {got}")
    if schedule is not None and getattr(schedule, "optimizer", None) is not optimizer:
        raise ConfigError("schedule: expected one made with this trainer's optimizer")
    if checkpoint is not None and not isinstance(checkpoint, Checkpointer):
        raise ConfigError(f"checkpoint: expected a Checkpointer, got {type(checkpoint).__name__}")
    if scaler is not None and not isinstance(scaler, GradScaler):
        raise ConfigError(f"scaler: expected an optim.GradScaler, got {type(scaler).__name__}")


def check_options(compile: Any, nonfinite: Any, clip_norm: Any, read_every: Any, accumulate: Any) -> None:
    """Raise ConfigError where an option has a value that is not allowed."""
    if compile not in ("auto", True, False):
        raise ConfigError(f'compile: expected "auto", True or False, got {compile!r}')
    if nonfinite not in ("stop", "skip"):
        raise ConfigError(f'nonfinite: expected "stop" or "skip", got {nonfinite!r}')
    if clip_norm is not None and not (isinstance(clip_norm, (int, float)) and clip_norm > 0):
        raise ConfigError(f"clip_norm: expected a number above 0, got {clip_norm!r}")
    for name, value in (("read_every", read_every), ("accumulate", accumulate)):
        check_count(name, value)


def what_it_counts(schedule: Any, schedule_every: Any) -> str:
    """Return "batch" or "epoch"; raise ConfigError where a schedule leaves open which, or cannot count it."""
    if schedule_every not in (None, "batch", "epoch"):
        raise ConfigError(f'schedule_every: expected "batch" or "epoch", got {schedule_every!r}')
    if getattr(schedule, "monitors", False):
        if schedule_every == "batch":
            raise ConfigError(f'schedule_every: expected "epoch" with {type(schedule).__name__}, got "batch"')
        check_monitor(getattr(schedule, "monitor", None))
        return "epoch"
    if schedule_every is None and getattr(schedule, "asks_unit", False):
        raise ConfigError(
            f'schedule_every: expected "batch" or "epoch" with {type(schedule).__name__}, got none; say what its '
            "numbers count"
        )
    return schedule_every or "batch"


def check_it_lasts(trainer: Trainer) -> None:
    """Raise ConfigError where the schedule of a training ends before its last step."""
    schedule, most = trainer.schedule, getattr(trainer.schedule, "total_steps", None)
    if schedule is None or most is None:
        return
    steps = trainer.epochs - trainer.epoch
    if trainer.schedule_every == "batch":
        if trainer.batches_per_epoch is None:
            return
        per_epoch, left = trainer.batches_per_epoch, trainer.batches_per_epoch - trainer.batch
        steps = (steps - 1) * -(-per_epoch // trainer.accumulate) + -(-left // trainer.accumulate)
    needed = schedule.last_step + steps
    if needed > most:
        plural = "batches" if trainer.schedule_every == "batch" else "epochs"
        raise ConfigError(f"total_steps: expected {needed} or more {plural} for this training, got {most}")
