"""The run folder: what a training leaves, and how it is read again. Nothing in it is trusted."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from xpcnn.datasets.source import look_at, read_file, shown
from xpcnn.errors import DataError
from xpcnn.training.files import check_format, explained, write_text

SETTINGS, MODEL, HISTORY, CHECKPOINTS = "run.json", "model.safetensors", "history", "checkpoints"
FORMAT = "xpcnn run 1"
LARGEST_JSON = 1 << 26  # bytes
PRECISIONS = ("float32", "float16")

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Settings:
    """What fixes a training, as plain values; without epochs or batch size until the data is known that they fit."""

    recipe: str
    data: str | None
    epochs: int | None
    batch_size: int | None
    seed: int
    as_written: bool
    precision: str = "float32"
    image_size: int | None = None
    augment: str | None = None
    patience: int | None = None
    skip_broken: bool = False
    lr: float | None = None


_TYPES: dict[str, tuple[type, ...]] = {
    "recipe": (str,),
    "data": (str, type(None)),
    "epochs": (int,),
    "batch_size": (int,),
    "seed": (int,),
    "as_written": (bool,),
    "precision": (str,),
    "image_size": (int, type(None)),
    "augment": (str, type(None)),
    "patience": (int, type(None)),
    "skip_broken": (bool,),
    "lr": (float, type(None)),
}


def check_free(folder: PathLike) -> None:
    """Check, without making anything, that a new run may begin in a folder.

    Raises
    ------
    DataError
        It is there and not empty, or is no folder.
    """
    place = Path(folder)
    if is_run(place):
        raise DataError(f"{shown(place)}: holds a run already; go on with it with --resume, or name another folder")
    if not look_at(place):
        return
    with explained(place):
        # A run that ended before it began leaves an empty folder for checkpoints.
        if {entry.name for entry in place.iterdir()} - {CHECKPOINTS} or any((place / CHECKPOINTS).glob("step-*")):
            raise DataError(f"{shown(place)}: expected a new or empty folder, got one with files in it; name another")


def make_new(folder: PathLike) -> Path:
    """Make a folder that was not there, under this name or with the first free number behind it, and return it.

    Raises
    ------
    DataError
        It cannot be made.
    """
    place = Path(folder)
    with explained(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            made = place if number == 1 else place.with_name(f"{place.name}-{number}")
            with contextlib.suppress(FileExistsError):
                made.mkdir()
                return made
    raise AssertionError("unreachable")


def write(folder: PathLike, settings: Settings, results: Mapping[str, Any]) -> None:
    """Write the settings and what else there is to say, into a folder that is made where it is not there.

    Raises
    ------
    DataError
        The file cannot be written.
    """
    with explained(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, "settings": asdict(settings), **results}
    write_text(Path(folder) / SETTINGS, json.dumps(content, indent=1, allow_nan=False) + "\n")


def is_run(folder: PathLike) -> bool:
    """Say whether a run was begun in a folder."""
    return bool(look_at(Path(folder) / SETTINGS))


def read(folder: PathLike) -> tuple[Settings, dict[str, Any]]:
    """Read the settings of a run, and all that its run.json holds.

    Raises
    ------
    DataError
        The folder or the file is not there, or the file is damaged.
    """
    place = Path(folder)
    source = place / SETTINGS
    if look_at(place) != "folder":
        raise DataError(f"{shown(place)}: no such run folder; `xpcnn train --out {shown(place)}` makes one")
    if not look_at(source):
        raise DataError(f"{shown(place)}: not a run folder: {SETTINGS} is missing; `xpcnn train` makes one")
    try:
        content = json.loads(read_file(source, "run.json", LARGEST_JSON).decode())
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: damaged: {str(error).splitlines()[0]:.80}; train again") from error
    found = content.get("settings") if isinstance(content, dict) else None
    if isinstance(content, dict):
        check_format(source, content.get("format"), FORMAT)
    if not isinstance(found, dict):
        raise DataError(f"{source}: damaged: expected format {FORMAT!r} and settings; train again")
    for each in fields(Settings):
        value = found.setdefault(each.name, ... if each.default is MISSING else each.default)
        if type(value) not in _TYPES[each.name] or (type(value) in (int, float) and not 0 <= value < math.inf):
            raise DataError(f"{source}: damaged: expected {each.name} of a run, got {value!r:.40}; train again")
    if found["precision"] not in PRECISIONS:
        raise DataError(f"{source}: damaged: expected precision of a run, got {found['precision']!r:.40}; train again")
    return Settings(**{each.name: found[each.name] for each in fields(Settings)}), content


def commit() -> str | None:
    """Return the git commit that the package's source is at; None where it lies in no repository."""
    git = Path(__file__).resolve().parents[2] / ".git"
    try:
        if git.is_file():  # a linked work tree
            git = (git.parent / git.read_text().removeprefix("gitdir:").strip()).resolve()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        common = git / (git / "commondir").read_text().strip() if (git / "commondir").exists() else git
        for base in (git, common):
            if (base / name).exists():
                return (base / name).read_text().strip()
        for line in (common / "packed-refs").read_text().splitlines():
            if line.endswith(f" {name}"):
                return line.split(" ")[0]
    except OSError:
        pass
    return None
