"""Where the pictures of a folder lie, and of which class each is: told by sub-folders, or by a metadata.csv."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from xpcnn.datasets.source import PathLike, look_at, read_file, shown
from xpcnn.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
UNREAD = (  # of pictures too, as phones, cameras and programs write them
    ".heic", ".heif", ".avif", ".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2",
    ".psd", ".svg", ".tga",
)  # fmt: skip
PARTS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "validation", "valid": "validation", "validation": "validation",
}  # fmt: skip
_ORDER = ("train", "validation", "test")
_TABLE, _NAME = "metadata.csv", "file_name"  # the convention of Hugging Face's `imagefolder`
_TABLE_BYTES = 1 << 28
_TOO_MANY = 1000  # classes: a folder of so many sub-folders is something else
_LISTED = 5


class Tree(NamedTuple):
    """Pictures in the order of their classes and names, with the number of each one's class."""

    classes: list[str]
    paths: list[str]
    labels: list[int]


def find_parts(folder: PathLike) -> dict[str, Path]:
    """Return the sub-folders that are parts of a set, "train", "validation" and "test" in this order.

    Empty where the folder is a set itself: where other sub-folders lie there too, or only one of these names.
    """
    names = [entry.name for entry in _sub_folders(Path(folder))]
    kinds = {PARTS.get(name.lower(), ""): Path(folder) / name for name in names}
    if len(kinds) != len(names) or len(kinds) < 2 or "" in kinds or "train" not in kinds:
        return {}
    return {kind: kinds[kind] for kind in _ORDER if kind in kinds}


def has_pictures(folder: PathLike) -> bool:
    """Say whether a folder has what could be a set of pictures: sub-folders, or a metadata.csv."""
    return look_at(Path(folder) / _TABLE) == "file" or bool(_sub_folders(Path(folder)))


def find_pictures(folder: PathLike, extensions: Sequence[str], known: Sequence[str] | None = None) -> Tree:
    """Return the pictures of a folder with one sub-folder a class, or with a metadata.csv.

    Parameters
    ----------
    folder : str or os.PathLike
    extensions : sequence of str
        Of what counts as a picture, lower case, with the dot.
    known : sequence of str, optional
        The classes of the training part, which are this one's too, whether it has pictures of all or not.

    Raises
    ------
    DataError
        There are no pictures, or fewer than two classes; a class has none; a class is not among the known.
    """
    place = Path(folder)
    if look_at(place / _TABLE) == "file":
        return _from_table(place, known)
    found = {entry.name: _pictures_below(entry.path, extensions) for entry in _sub_folders(place)}
    if not found:
        raise DataError(
            f"{shown(place)}: expected a folder with one sub-folder of pictures a class; {_contents(place)}"
        )
    empty = [name for name, paths in found.items() if not paths]
    if empty and (known is None or len(empty) == len(found)):
        inside = _contents(place / empty[0])
        raise DataError(
            f"{shown(place)}: expected pictures ({', '.join(extensions[:3])}, ...) of every class, got none of "
            f"{_list(empty)}: {inside}; put some in, or take the sub-folder away"
        )
    return _numbered(place, [(name, path) for name in sorted(found) for path in found[name]], known)


def _numbered(place: Path, pairs: list[tuple[str, str]], known: Sequence[str] | None) -> Tree:
    """Return (class, path) pairs as a tree, in the order given."""
    classes = sorted({name for name, _ in pairs}) if known is None else list(known)
    if len(classes) < 2:
        inner = [entry.name for entry in _sub_folders(place / classes[0])] if look_at(place / classes[0]) else []
        advice = f"it has sub-folders itself: name {classes[0]} instead" if len(inner) > 1 else "add another"
        raise DataError(f"{shown(place)}: expected two or more classes, got one, {classes[0]!r}; {advice}")
    if len(classes) > _TOO_MANY:
        raise DataError(f"{shown(place)}: expected at most {_TOO_MANY} classes, got {len(classes)}")
    numbers = {name: number for number, name in enumerate(classes)}
    strange = sorted({name for name, _ in pairs} - numbers.keys())
    if strange:
        raise DataError(
            f"{shown(place)}: expected the training part's classes, {_list(classes)}, got also {_list(strange)}"
        )
    return Tree(classes, [path for _, path in pairs], [numbers[name] for name, _ in pairs])


def _sub_folders(place: Path) -> list[os.DirEntry[str]]:
    """Return the sub-folders that somebody made, by name."""
    try:
        with os.scandir(place) as entries:
            found = [entry for entry in entries if entry.is_dir() and not _is_hidden(entry.name)]
    except OSError as error:
        raise DataError(f"{shown(place)}: cannot be read: {error.strerror or error}") from error
    return sorted(found, key=lambda entry: entry.name)


def _pictures_below(folder: str, extensions: Sequence[str]) -> list[str]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{shown(error.filename)}: cannot be read: {error.strerror}") from error

    found = []
    for here, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        wanted = [name for name in sorted(names) if name.lower().endswith(tuple(extensions)) and not _is_hidden(name)]
        found += [path for path in (os.path.join(here, name) for name in wanted) if look_at(path) == "file"]
    return found


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _from_table(place: Path, known: Sequence[str] | None) -> Tree:
    """Read metadata.csv: a column file_name and a column label (or one column besides)."""
    source = place / _TABLE
    try:
        text = read_file(source, "table", _TABLE_BYTES).decode("utf-8-sig")
        heading, *rows = [row for row in csv.reader(io.StringIO(text)) if row] or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{shown(source)}: not a table of text: {error!s:.80}") from error
    others = [name for name in heading if name != _NAME]
    label = "label" if "label" in others else others[0] if len(others) == 1 else None
    if _NAME not in heading or label is None:
        raise DataError(f"{shown(source)}: expected columns {_NAME} and label, got {_list(heading)}")
    at_name, at_label = heading.index(_NAME), heading.index(label)
    pairs = []
    for number, row in enumerate(rows, 2):
        name = row[at_name] if len(row) == len(heading) else ""
        path = os.path.normpath(os.path.join(place, name))
        if not name or os.path.isabs(name) or not path.startswith(os.path.join(os.path.normpath(place), "")):
            raise DataError(
                f"{shown(source)}: row {number}: expected the name of a picture in the folder, got {row!r:.80}"
            )
        pairs.append((row[at_label], path))
    if not pairs:
        raise DataError(f"{shown(source)}: expected a row for each picture, got none")
    return _numbered(place, sorted(pairs), known)


def _contents(place: Path) -> str:
    """Say what a folder holds, without its names."""
    kinds: Counter[str] = Counter()
    with os.scandir(place) as entries:
        for entry, _ in zip(entries, range(10_000), strict=False):
            kind = os.path.splitext(entry.name)[1].lower() or "other"
            kinds["sub-folders" if entry.is_dir() else f"{kind} files"] += 1
    if not kinds:
        return "the folder is empty"
    return "it holds " + ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(4))


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(map(repr, names[:_LISTED])) + more
