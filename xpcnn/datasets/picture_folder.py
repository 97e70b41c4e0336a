"""`load_folder`: one's own pictures, one sub-folder a class, as a set of images of one size."""

from __future__ import annotations

import functools
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from xpcnn.datasets.dataset import Dataset
from xpcnn.datasets.lazy import LazyImages, usable_cores
from xpcnn.datasets.pictures import BrokenPicture, Header, check_options, decode, peek, pillow
from xpcnn.datasets.source import PathLike, look_at, shown
from xpcnn.datasets.tree import EXTENSIONS, UNREAD, Tree, find_parts, find_pictures
from xpcnn.errors import ConfigError, DataError

AUTO = "auto"
_BROKEN = ("raise", "skip")
_LISTED = 10  # broken files of an error
_LARGEST = 1 << 36  # bytes of a set that is read whole: beyond, memory has surely run out

T = TypeVar("T")
Pairs = list[tuple[str, int]]  # paths and labels


def load_folder(
    path: PathLike,
    *,
    size: Any = None,
    mode: str = "RGB",
    extensions: Sequence[str] = EXTENSIONS,
    lazy: bool = False,
    fit: str = "crop",
    broken: str = "raise",
    part: str | None = None,
    progress: bool = True,
) -> Dataset | tuple[Dataset, ...]:
    """Load a folder of pictures with one sub-folder a class, as torchvision's ImageFolder takes it.

    Parameters
    ----------
    path : str or os.PathLike
        The folder. Instead of sub-folders a `metadata.csv` with columns file_name and label may tell the classes. A
        folder with sub-folders `train` and `test` (or `val`), each such a folder, is a set in parts.
    size : int or (height, width), optional
        Pixels of all images; a number is a square. Not needed where all pictures have one size.
    mode : str
        "RGB", "L" (grey), "RGBA", or "auto": "L" where every picture is grey, else "RGB". What is transparent is put
        on white, 16 bits become 8, palettes and CMYK become colours.
    extensions : sequence of str
        Of the files that count as pictures. By default those that are read, and those of HEIC, AVIF, camera raw and the
        like, which are not: `broken` says what becomes of them.
    lazy : bool
        Leave the pictures on the disk: `images` is a sequence (`LazyImages`) that a `DataLoader` reads batch by batch.
    fit : str
        How a picture of another shape is brought to `size`: "crop" cuts its middle out, "pad" puts it on black,
        "stretch" changes its shape.
    broken : str
        "raise" lists all files that cannot be read in one error, "skip" leaves them out.
    part : str, optional
        "train", "validation" or "test": return that part alone.
    progress : bool
        Show a bar on a terminal, where tqdm is installed.

    Returns
    -------
    Dataset, or tuple of Dataset
        `images` uint8 (N, 3, H, W), (N, 4, H, W) or (N, H, W) for "L"; `labels` int64 (N,), numbers of `classes`, the
        sub-folders' names in their order; `paths`, the files. Of a set in parts: (train, test), (train, validation) or
        (train, validation, test), with the classes of the first.

    Raises
    ------
    ConfigError
        An option is wrong.
    DataError
        The folder is missing or of another form; a class is empty; there is one class only; pictures cannot be read;
        they have several sizes and `size` is not given; Pillow is not installed.

    Notes
    -----
    Pictures are turned as their EXIF data says, and decoded by Pillow in as many threads as there are cores. A JPEG
    much larger than `size` is decoded at a fraction of its sides, which saves half of the time and more.

    Examples
    --------
    >>> from xpcnn import datasets
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> with TemporaryDirectory() as folder:
    ...     for name in ("cat", "dog"):
    ...         Path(folder, name).mkdir()
    ...         Image.new("RGB", (48, 40)).save(f"{folder}/{name}/1.png")
    ...     pictures = datasets.load_folder(folder, size=(32, 32))
    ...
    >>> pictures.classes, pictures.images.shape
    (['cat', 'dog'], (2, 3, 32, 32))
    """
    options = Options(path, size, mode, tuple(extensions), lazy, fit, broken, progress)
    if look_at(path) != "folder":
        raise DataError(f"{shown(path)}: expected a folder of pictures, got {look_at(path) or 'nothing there'}")
    parts = find_parts(path)
    if part is not None and part not in parts:
        there = f"one of {', '.join(parts)}" if parts else "none, for the set has no parts"
        raise DataError(f"part: expected {there}, got {part!r}")
    if not parts:
        return options.load([path], [find_pictures(path, options.extensions)])[0]
    train = find_pictures(parts["train"], options.extensions)
    trees = {"train": train}
    for name in [part] if part else list(parts)[1:]:
        trees.setdefault(name, find_pictures(parts[name], options.extensions, train.classes))
    if part is not None:
        trees = {part: trees[part]}
    loaded = options.load([parts[name] for name in trees], list(trees.values()))
    return loaded[0] if part else tuple(loaded)


def survey(path: PathLike, extensions: Sequence[str] = EXTENSIONS) -> tuple[int, tuple[int, int] | None]:
    """Return how many pictures `load_folder` would find, and their common (height, width); None where they differ.

    What cannot be read is left out.

    Raises
    ------
    DataError
        As for `load_folder`.
    """
    options = Options(path, None, AUTO, tuple(extensions), True, "crop", "skip", False)
    places: Iterable[PathLike] = find_parts(path).values() or [path]
    paths = [each for place in places for each in find_pictures(place, options.extensions).paths]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        headers = [found for found in options.tried(peek, paths, "") if isinstance(found, Header)]
    sizes = {(header.height, header.width) for header in headers}
    return len(paths), next(iter(sizes)) if len(sizes) == 1 else None


class Options:
    """What `load_folder` was asked for, checked."""

    def __init__(
        self,
        root: PathLike,
        size: Any,
        mode: str,
        extensions: tuple[str, ...],
        lazy: bool,
        fit: str,
        broken: str,
        progress: bool,
    ) -> None:
        self.root, self.lazy, self.progress, self.mode = root, bool(lazy), bool(progress), mode
        self.size, _, self.fit = check_options(size, "RGB" if mode == AUTO else mode, fit)
        if not extensions or not all(isinstance(each, str) and each.startswith(".") for each in extensions):
            raise ConfigError(f'extensions: expected names such as ".png", got {extensions!r}')
        # Somebody's photos in a format that is not read are to be told of; whoever names extensions wants no others.
        self.extensions = (*extensions, *UNREAD) if extensions == EXTENSIONS else tuple(map(str.lower, extensions))
        if broken not in _BROKEN:
            raise ConfigError(f"broken: expected {' or '.join(_BROKEN)}, got {broken!r}")
        self.broken = broken
        pillow()

    def load(self, places: Sequence[PathLike], trees: Sequence[Tree]) -> list[Dataset]:
        """Return a set for each tree, all of one size and mode."""
        with warnings.catch_warnings():  # Pillow warns of sizes and oddities that are refused or harmless here
            warnings.simplefilter("ignore")
            sound = self._looked_through([(path, label) for tree in trees for path, label in _pairs(tree)])
            mode, size = self._form({path: header for path, _, header in sound})
            how: dict[str, Any] = {"size": size, "mode": mode, "fit": self.fit}
            form = size if mode == "L" else ({"RGB": 3, "RGBA": 4}[mode], *size)
            kept = {path for path, _, _ in sound}
            sets = [[(path, label) for path, label in _pairs(tree) if path in kept] for tree in trees]
            if self.lazy:
                read = functools.partial(_read, **how)
                images: list[Any] = [LazyImages(read, [path for path, _ in each], form) for each in sets]
            else:
                images, sets = self._decoded(sets, functools.partial(decode, **how), form)
        for place, tree, pairs in zip(places, trees, sets, strict=True):
            self._check_classes(place, tree, pairs)
        return [
            Dataset(
                pixels,
                np.array([label for _, label in pairs], np.int64),
                list(tree.classes),
                [path for path, _ in pairs],
            )
            for pixels, pairs, tree in zip(images, sets, trees, strict=True)
        ]

    def _looked_through(self, pairs: Pairs) -> list[tuple[str, int, Header]]:
        """Return path, label and header of each picture that has one."""
        results = self.tried(peek, [path for path, _ in pairs], "looking at pictures")
        self._refuse({path: found for (path, _), found in zip(pairs, results, strict=True)})
        return [(*pair, found) for pair, found in zip(pairs, results, strict=True) if isinstance(found, Header)]

    def _form(self, headers: dict[str, Header]) -> tuple[str, tuple[int, int]]:
        """Return the mode and size of all images."""
        mode = self.mode
        if mode == AUTO:
            mode = "L" if all(header.is_grey for header in headers.values()) else "RGB"
        if self.size is not None:
            return mode, self.size
        sizes = Counter((header.height, header.width) for header in headers.values())
        if len(sizes) > 1:
            common = ", ".join(f"{count:,} of {h}x{w}" for (h, w), count in sizes.most_common(3))
            raise DataError(
                f"{shown(self.root)}: expected pictures of one size (height x width), got {common}"
                f"{', ...' if len(sizes) > 3 else ''}; say to what they are to be brought, such as size=32"
            )
        return mode, next(iter(sizes))

    def _decoded(
        self, sets: list[Pairs], read: Callable[[str], np.ndarray], form: tuple[int, ...]
    ) -> tuple[list[Any], list[Pairs]]:
        """Return the images of each set, and the sets without what is broken."""
        paths = [path for pairs in sets for path, _ in pairs]
        if len(paths) * np.prod(form) > _LARGEST:
            raise DataError(
                f"{shown(self.root)}: {len(paths):,} images of {form} do not fit into memory; lazy=True leaves them on "
                "the disk, and a smaller size= makes them fit"
            )
        pixels = np.empty((len(paths), *form), np.uint8)

        def decode_into(index: int) -> bool:
            pixels[index] = read(paths[index])
            return True

        results = self.tried(decode_into, range(len(paths)), "reading pictures")
        self._refuse(dict(zip(paths, results, strict=True)))
        images, sound, start = [], [], 0
        for pairs in sets:
            part = slice(start, start + len(pairs))
            good = np.array([found is True for found in results[part]], bool)
            images.append(pixels[part] if good.all() else pixels[part][good])
            sound.append([pair for pair, is_good in zip(pairs, good, strict=True) if is_good])
            start += len(pairs)
        return images, sound

    def tried(self, function: Callable[[Any], T], items: Iterable[Any], what: str) -> list[T | BrokenPicture]:
        """Return what the function makes of each item, in threads: its result, or why there is none."""

        def attempt(item: Any) -> T | BrokenPicture:
            try:
                return function(item)
            except BrokenPicture as reason:
                return reason

        listed = list(items)
        with ThreadPoolExecutor(usable_cores()) as pool:
            try:
                return list(_bar(pool.map(attempt, listed), len(listed), what, self.progress))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _refuse(self, results: dict[str, Any]) -> None:
        """Raise one error that lists what is broken, unless it is to be skipped."""
        wrong = {path: found for path, found in results.items() if isinstance(found, BrokenPicture)}
        if not wrong or (self.broken == "skip" and len(wrong) < len(results)):
            return
        by_reason: dict[str, list[str]] = {}
        for path, why in list(wrong.items())[:_LISTED]:
            by_reason.setdefault(str(why), []).append(os.path.relpath(path, self.root))
        listed = "; ".join(f"{', '.join(paths)}: {why}" for why, paths in by_reason.items())
        more = f"; and {len(wrong) - _LISTED:,} more" if len(wrong) > _LISTED else ""
        advice = (
            ""
            if self.broken == "skip"
            else '; repair or remove them, or leave them out with broken="skip" (--skip-broken)'
        )
        raise DataError(
            f"{shown(self.root)}: {len(wrong):,} of {len(results):,} pictures cannot be read: {listed}{more}{advice}"
        )

    def _check_classes(self, place: PathLike, tree: Tree, pairs: Pairs) -> None:
        if not pairs:
            raise DataError(f"{shown(place)}: expected pictures, got none that can be read")
        gone = [tree.classes[number] for number in sorted(set(tree.labels) - {label for _, label in pairs})]
        if gone:
            raise DataError(f"{shown(place)}: no picture of class {gone[0]!r} can be read; repair some of its pictures")


def _pairs(tree: Tree) -> Pairs:
    return list(zip(tree.paths, tree.labels, strict=True))


def _read(path: str, size: tuple[int, int], mode: str, fit: str) -> np.ndarray:
    try:
        return decode(path, size, mode, fit)
    except BrokenPicture as reason:
        raise DataError(f"{shown(path)}: cannot be read: {reason}") from reason


def _bar(results: Iterator[T], count: int, what: str, progress: bool) -> Iterable[T]:
    """Return the results behind a bar: on a terminal, where tqdm is there, after half a second."""
    if not progress:
        return results
    try:
        from tqdm import tqdm
    except ImportError:
        return results
    bar: Iterable[T] = tqdm(results, what, count, unit="", leave=False, disable=None, delay=0.5)
    return bar
