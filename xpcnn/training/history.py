"""What happened during training: numbers per step and per epoch."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import os
from array import array
from collections.abc import Mapping, MutableSequence, Sequence
from pathlib import Path
from typing import Any

from xpcnn.datasets.source import read_file
from xpcnn.errors import ConfigError, DataError
from xpcnn.extras import install_line
from xpcnn.training.files import write_text

STEP_COLUMNS = ("loss", "accuracy", "lr")
EPOCH_COLUMNS = ("step", "loss", "accuracy", "validation_loss", "validation_accuracy", "seconds", "images_per_second")
SHOWN = 10  # epochs at each end that a notebook shows
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

    Examples
    --------
    >>> from xpcnn import training
    >>> model = nn.Sequential(nn.Linear(4, 3))
    >>> optimizer = optim.SGD(model.parameters(), 0.1)
    >>> trainer = training.Trainer(model, optimizer, nn.CrossEntropyLoss())
    >>> batches = [(np.ones((8, 4), "float32"), np.arange(8) % 3)]
    >>> history = trainer.fit(batches, epochs=2)
    >>> len(history.steps["loss"]), len(history.epochs["loss"]), history.epochs["loss"][1] < history.epochs["loss"][0]
    (2, 2, True)
    """

    def __init__(self) -> None:
        # 8 bytes a number: a long run keeps millions.
        self.steps: dict[str, MutableSequence[float]] = {name: array("d") for name in STEP_COLUMNS}
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

    def plot(self, path: str | os.PathLike[str] | None = None, *, title: str = "", ax: Any = None) -> Any:
        """Return a figure of loss and accuracy over the steps, also as a PNG (`xpcnn.plot.history`; matplotlib)."""
        from xpcnn import plot

        return plot.history(self, path, title=title, ax=ax)

    # --- notebooks and tables ---------------------------------------------------------------------------------------

    def to_pandas(self, table: str = "epochs") -> Any:
        """Return a table as a `pandas.DataFrame`, a row for each epoch or step.

        Parameters
        ----------
        table : "epochs" or "steps"
            The index counts from 1; "steps" has the columns "loss", "accuracy" and "lr".

        Raises
        ------
        ConfigError
            There is no such table, or pandas is not installed.
        """
        if table not in ("epochs", "steps"):
            raise ConfigError(f'table: expected "epochs" or "steps", got {table!r:.40}')
        try:
            from pandas import DataFrame, RangeIndex
        except ImportError:
            raise ConfigError(f"to_pandas: needs pandas, which is not installed: {install_line('pandas')}") from None
        columns = getattr(self, table)
        index = RangeIndex(1, len(columns["loss"]) + 1, name=table[:-1])
        return DataFrame({name: list(column) for name, column in columns.items()}, index=index)

    def _repr_html_(self) -> str:
        """Return the epochs as a table, for notebooks; of many, the first and the last."""
        count = len(self.epochs["loss"])
        names = [name for name, column in self.epochs.items() if not all(math.isnan(value) for value in column)]
        rows = list(range(count)) if count <= 2 * SHOWN else [*range(SHOWN), None, *range(count - SHOWN, count)]
        head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in ["epoch", *names])
        body = ""
        for row in rows:
            cells = ["…"] * (len(names) + 1) if row is None else [f"{row + 1}"]
            cells += [] if row is None else [_shown(name, self.epochs[name][row]) for name in names]
            body += "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if count else ""
        return f"<p>{html.escape(repr(self))}</p>{table}"


def _shown(name: str, value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.0f}" if name in ("step", "images_per_second") else f"{value:.4f}"


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
