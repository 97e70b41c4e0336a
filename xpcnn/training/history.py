"""What happened during training: numbers per step and per epoch."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xpcnn.datasets.source import read_file
from xpcnn.errors import DataError
from xpcnn.training.files import write_text

STEP_COLUMNS = ("loss", "accuracy", "lr")
EPOCH_COLUMNS = ("step", "loss", "accuracy", "validation_loss", "validation_accuracy", "seconds", "images_per_second")
LARGEST_FILE = 1 << 30  # bytes; a billion is a history of ten million steps


class History:
    """Per-step and per-epoch lists.

    Attributes
    ----------
    steps : dict of str to sequence of float
        "loss", "accuracy" (of the batch; nan where the targets are no classes) and "lr" of every step.
    epochs : dict of str to list
        "step" (steps so far), "loss", "accuracy" (over the epoch's batches, as they were trained on),
        "validation_loss", "validation_accuracy" (nan without validation data), "seconds", "images_per_second".
    """

    def __init__(self) -> None:
        # 8 bytes a number: a long run keeps millions.
        self.steps: dict[str, array[float]] = {name: array("d") for name in STEP_COLUMNS}
        self.epochs: dict[str, list[float]] = {name: [] for name in EPOCH_COLUMNS}

    def __len__(self) -> int:
        return len(self.steps["loss"])

    def __repr__(self) -> str:
        epochs = len(self.epochs["loss"])
        said = f"{epochs} epoch{'s' * (epochs != 1)}, {len(self)} step{'s' * (len(self) != 1)}"
        names = ("loss", "accuracy", "validation_loss", "validation_accuracy")
        last = [(name.replace("_", " "), self.epochs[name][-1]) for name in names if epochs]
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in last if not math.isnan(value))
        return f"History({said}{'; last: ' * bool(numbers)}{numbers})"

    def add_step(self, loss: float, accuracy: float, lr: float) -> None:
        """Append a step."""
        self.steps["loss"].append(loss)
        self.steps["accuracy"].append(accuracy)
        self.steps["lr"].append(lr)

    def add_epoch(self, **numbers: float) -> None:
        """Append an epoch; what is not given is nan."""
        for name, column in self.epochs.items():
            column.append(numbers.get(name, math.nan))

    # --- files ----------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, dict[str, list[float | None]]]:
        """Return both tables as lists, with None for nan and infinities (JSON has neither)."""
        return {
            "steps": {name: _plain(column) for name, column in self.steps.items()},
            "epochs": {name: _plain(column) for name, column in self.epochs.items()},
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the history: `NAME.json` holds all of it, `NAME.csv` the steps; a bare `NAME` writes both.

        Raises
        ------
        DataError
            The file cannot be written; what was there before is untouched.
        """
        target = Path(path)
        if target.suffix not in (".json", ".csv", ""):
            raise DataError(f"path: expected a name that ends in .json or .csv, or neither, got {target.name!r}")
        if target.suffix != ".csv":
            write_text(target.with_suffix(".json"), json.dumps(self.to_dict(), allow_nan=False) + "\n")
        if target.suffix != ".json":
            write_text(target.with_suffix(".csv"), self._csv())

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["step", *self.steps])
        writer.writerows([i, *row] for i, row in enumerate(zip(*self.steps.values(), strict=True), 1))
        return text.getvalue()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> History:
        """Read what `save` wrote to a .json file.

        Raises
        ------
        DataError
            The file is not there, is damaged, or is not a history.
        """
        source = Path(path)
        source = source if source.suffix == ".json" else source.with_suffix(".json")
        try:
            content = json.loads(read_file(source, "history", LARGEST_FILE).decode())
        except DataError:
            raise
        except (ValueError, RecursionError) as error:
            raise DataError(f"{source}: expected JSON, got {str(error).splitlines()[0]}") from error
        try:
            return cls.from_dict(content)
        except DataError as error:
            raise DataError(f"{source}: {error}") from error

    @classmethod
    def from_dict(cls, content: Any) -> History:
        """Return the history of which `content` is the `to_dict`.

        Raises
        ------
        DataError
            A table is missing, a column has another length, or something in it is no number.
        """
        history = cls()
        if not isinstance(content, Mapping):
            raise DataError(f"history: expected the tables steps and epochs, got {type(content).__name__}")
        for name, columns in (("steps", history.steps), ("epochs", history.epochs)):
            table = content.get(name)
            if not isinstance(table, Mapping) or set(table) != set(columns):
                raise DataError(f"history: expected the columns {', '.join(columns)} in {name}")
            lengths = set()
            for key, column in columns.items():
                if not isinstance(table[key], Sequence) or isinstance(table[key], str):
                    raise DataError(f"history: expected a list as {name}.{key}, got {type(table[key]).__name__}")
                column.extend(_number(value) for value in table[key])
                lengths.add(len(column))
            if len(lengths) > 1:
                raise DataError(f"history: expected columns of one length in {name}, got {sorted(lengths)}")
        return history

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw loss and accuracy over the steps to a PNG (`xpcnn.plot.history`; needs matplotlib)."""
        from xpcnn import plot

        plot.history(self, path)


def _plain(column: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in column]


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(f"history: expected numbers, got {value!r:.40}")
    try:
        float(value)
    except OverflowError:
        raise DataError("history: expected numbers, got an integer beyond the range of a float") from None
    return value
