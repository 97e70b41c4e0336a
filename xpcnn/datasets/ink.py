"""The ink of one digit in a picture as people take them: uneven light, shadows, rules, bars, frames, any two colours.

Background is what stays when all that is narrow has been taken away: a running median along rows and then columns,
wide beside a stroke, keeps slopes and straight edges of light, of paper and of bars where they are. Ink is how far a
pixel's colour lies from it, in the direction in which most ink lies. Of what hangs together, one figure is taken.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import numpy as np

from xpcnn.datasets.components import Components, connected_components

_FAINTEST = 0.5  # of 255; less is rounding
_UNEVEN = 2.0  # of 255: a border that varies no more is of one colour
_MOST_ENDS, _MOST_ENDS_SHARE = 4, 0.1  # strokes that meet a border of one colour, and their share of it
_NOISE = 4.0  # ink fainter than so many standard deviations of the noise is background
_REACH = 0.25  # of each side: half the width of the running median; wider things are no strokes
_SHARE = 0.4  # of the ink's contrast: what is fainter, where light or paper is uneven, is a rule or a remnant
_SATURATED = 0.9  # of the ink's contrast: above it, differences are of the light, not of the pen
_DARKEST = 0.15  # of the brightest background: in a deeper shadow, ink is not raised any further
_SPECK = 0.03  # of the longer side of the picture: nothing smaller is part of a digit
_NEAR = 0.25  # of the longer side of a figure: its pieces lie no further apart
_PIECES = 8  # a figure in more pieces is a texture
_RIVAL_HEIGHT, _RIVAL_MASS = 0.5, 0.25  # of the figure's: something as large is a second one
_CUT = 0.35  # of the outline of a figure's box: one that touches the border over more of it is no digit
_FRAME_EDGE, _FRAME_AREA = 0.9, 0.08  # of a frame: the share of its box's outline, and of the picture
_RIM = 2  # pixels at the edge of a frame that are of neither colour
_SMALLEST = 12  # pixels a side that a digit needs within a frame
_ONLY_SPECKS = "nothing larger than a speck stands out from the background"
_MEDIAN_OF_NINE = (  # exchanges that bring the median of nine to the fifth place (N. Devillard, "Fast median search")
    (1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3),
    (5, 8), (4, 7), (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4), (4, 2),
)  # fmt: skip


class NoDigit(Exception):
    """There is no digit to be found; the message says why."""


class _Figure(NamedTuple):
    ink: np.ndarray  # cropped to its bounding box
    frame: np.ndarray | None  # top, left, bottom, right of the filled rectangle that it is, perhaps round the digit


def find_ink(colours: np.ndarray, noise: float = 0.0) -> np.ndarray:
    """Return the ink of a picture's one digit, cropped to its bounding box.

    Parameters
    ----------
    colours : numpy.ndarray
        float32 (C, H, W) from 0 to 255: grey levels, or red, green and blue.
    noise : float
        The least standard deviation that a channel's noise can have, of 255; where there is more, it is seen.

    Returns
    -------
    numpy.ndarray
        float32 (height, width), 0 where there is no ink, above 0 somewhere.

    Raises
    ------
    NoDigit
        Nothing stands out, or only specks do; what does is cut off by the border, or is more than one figure.
    """
    noise = max(noise, _noise(colours))
    colour = _border_colour(colours, noise)
    if colour is None:
        return _figure(colours, _slow_background(colours), noise, is_even=False).ink
    found = _figure(colours, np.broadcast_to(colour, colours.shape), noise, is_even=True)
    if found.frame is not None:
        top, left, bottom, right = found.frame + np.array([_RIM, _RIM, -_RIM, -_RIM])
        if min(bottom - top, right - left) >= _SMALLEST:
            with contextlib.suppress(NoDigit):
                return find_ink(np.ascontiguousarray(colours[:, top:bottom, left:right]), noise)
    return found.ink


def _border_colour(colours: np.ndarray, noise: float) -> np.ndarray | None:
    """Return the one colour of the border, (C, 1, 1), but for ends of strokes; None where it has several."""
    sides = (colours[:, 0], colours[:, 1:-1, -1], colours[:, -1, ::-1], colours[:, -2:0:-1, 0])
    border = np.concatenate(sides, axis=1)  # (C, pixels), once round
    colour = np.median(border, axis=1, keepdims=True)
    differs = abs(border - colour).max(axis=0) > max(_NOISE * noise, _UNEVEN)
    ends = np.count_nonzero(differs & ~np.roll(differs, 1))
    is_one = differs.mean() <= _MOST_ENDS_SHARE and ends <= _MOST_ENDS
    return colour[:, :, None] if is_one else None


def _noise(colours: np.ndarray) -> float:
    """Return the standard deviation of a channel's noise, from differences of neighbours, most of which are paper."""
    if min(colours.shape[1:]) < 2:
        return 0.0
    return float(1.4826 * np.median(abs(np.diff(colours, axis=2))) / np.sqrt(2))


def _slow_background(colours: np.ndarray) -> np.ndarray:
    """Return what is left of a picture without narrow things: the medians of nine pixels of a row, then of a column."""
    for axis in (2, 1):
        colours = _running_median(colours, axis, max(1, round(_REACH * colours.shape[axis])))
    return colours


def _running_median(array: np.ndarray, axis: int, reach: int) -> np.ndarray:
    size = array.shape[axis]
    padded = np.pad(array, [(reach, reach) if i == axis else (0, 0) for i in range(array.ndim)], mode="edge")
    starts = np.round(np.linspace(0, 2 * reach, 9)).astype(int).tolist()
    taps = [padded.take(range(start, start + size), axis) for start in starts]
    for low, high in _MEDIAN_OF_NINE:
        taps[low], taps[high] = np.minimum(taps[low], taps[high]), np.maximum(taps[low], taps[high])
    return taps[4]


def _figure(colours: np.ndarray, background: np.ndarray, noise: float, is_even: bool) -> _Figure:
    """Return the one figure that stands out from the background; `is_even` says that this is of one colour."""
    away = colours - background
    faintest = max(_NOISE * noise * np.sqrt(len(colours)), _FAINTEST if is_even else _UNEVEN)
    ink = _along_the_ink(away, faintest, noise)
    if not is_even:
        ink = _in_even_light(ink, away, background)
    contrast = float(np.quantile(ink[ink > 0.5 * ink.max()], 0.5))
    threshold = faintest if is_even else max(faintest, _SHARE * contrast)
    solid = (_smoothed(ink) if noise or not is_even else ink) > threshold
    found = connected_components(solid)
    chosen = _chosen(found, found.sums(ink), solid.shape, _SPECK if noise or not is_even else 0.0)
    top, left, bottom, right = (int(edge) for edge in _union(found.boxes[chosen]))
    others = solid & ~np.isin(found.labels, chosen + 1)
    digit = np.where((ink > threshold) & ~others, ink, 0)[top:bottom, left:right]
    if not digit.any():
        raise NoDigit("nothing but noise stands out from the background")
    if not is_even:
        digit = np.minimum(digit, _SATURATED * contrast)
    return _Figure(digit, _frame(ink > 0.5 * contrast) if is_even else None)


def _frame(solid: np.ndarray) -> np.ndarray | None:
    """Return the box of the largest thing in a mask where it is a filled rectangle."""
    found = connected_components(solid)
    largest = int(found.sums(solid).argmax())
    box: np.ndarray = found.boxes[largest]
    top, left, bottom, right = box
    shape = found.labels[top:bottom, left:right] == largest + 1
    outline = np.concatenate([shape[0], shape[-1], shape[:, 0], shape[:, -1]])
    return box if outline.mean() > _FRAME_EDGE and shape.size > _FRAME_AREA * solid.size else None


def _along_the_ink(away: np.ndarray, faintest: float, noise: float) -> np.ndarray:
    """Return how far each pixel lies from the background towards the colour of the ink, (H, W)."""
    distance = np.sqrt((away * away).sum(axis=0))
    strength = _smoothed(distance) if noise else distance
    if strength.max() <= faintest:
        if noise > _FAINTEST:
            raise NoDigit("nothing but noise stands out from the background")
        raise NoDigit("the picture has one plain colour, or colours that only fade or lie side by side")
    strong = strength > max(faintest, 0.5 * float(strength.max()))
    found = connected_components(strong)
    largest = found.sums(distance) * np.where(_touches(found, strong.shape), 1e-6, 1)
    pixels = away[:, found.labels == largest.argmax() + 1]  # (C, pixels)
    if not pixels.any():  # dots of one pixel stand most densely round a pixel that is none of them
        raise NoDigit(_ONLY_SPECKS)
    direction = np.linalg.eigh(pixels @ pixels.T)[1][:, -1]
    if (direction @ pixels).sum() < 0:
        direction = -direction
    ink: np.ndarray = np.tensordot(direction.astype(np.float32), away, axes=1)
    return ink


def _in_even_light(ink: np.ndarray, away: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Return the ink as if all paper were equally bright, where ink is dark: a shadow dims its contrast too."""
    light = np.sqrt((background * background).sum(axis=0))
    if (away.mean(axis=0)[ink > 0.5 * ink.max()]).mean() > 0:
        return ink
    darkest = max(_DARKEST * light.max(), 1.0)
    level = max(np.quantile(light, 0.9), darkest)  # a sheet may be a small part of a picture that is black elsewhere
    even: np.ndarray = ink * (level / np.maximum(light, darkest))
    return even


def _chosen(found: Components, mass: np.ndarray, shape: tuple[int, int], speck: float) -> np.ndarray:
    """Return the numbers, from 0, of the components that are the digit; `speck` is a share of the longer side."""
    boxes = found.boxes
    heights, widths = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    large = np.maximum(heights, widths) > speck * max(shape)
    if not large.any():
        raise NoDigit(_ONLY_SPECKS)
    touching = _touches(found, shape)
    main = int(np.where(large, mass, 0).argmax())
    inside = large & ~touching
    if touching[main] and inside.any():
        best = int(np.where(inside, mass, 0).argmax())
        if heights[best] >= _NEAR * heights[main] or _is_cut(found, main):
            main = best
    if touching[main] and _is_cut(found, main):
        raise NoDigit("what stands out runs into the border; leave some paper on all sides of the digit")
    candidates = large if touching[main] else inside
    chosen = _with_near_ones(boxes, main, candidates)
    rest = candidates.copy()
    rest[chosen] = False
    top, _, bottom, _ = _union(boxes[chosen])
    rivals = rest & (heights >= _RIVAL_HEIGHT * (bottom - top)) & (mass >= _RIVAL_MASS * mass[chosen].sum())
    if rivals.any() or len(chosen) > _PIECES:
        raise NoDigit("more than one thing stands out from the background; cut out a single digit")
    return chosen


def _with_near_ones(boxes: np.ndarray, main: int, candidates: np.ndarray) -> np.ndarray:
    """Return the numbers of a component and of those that lie near it, or near those."""
    chosen = np.zeros(len(boxes), bool)
    chosen[main] = True
    while True:
        top, left, bottom, right = _union(boxes[chosen])
        near = _NEAR * max(bottom - top, right - left)
        gaps = np.max([boxes[:, 0] - bottom, top - boxes[:, 2], boxes[:, 1] - right, left - boxes[:, 3]], axis=0)
        joined = chosen | (candidates & (gaps <= near))
        if (joined == chosen).all():
            return np.flatnonzero(chosen)
        chosen = joined


def _touches(found: Components, shape: tuple[int, int]) -> np.ndarray:
    top, left, bottom, right = found.boxes.T
    return np.asarray((top == 0) | (left == 0) | (bottom == shape[0]) | (right == shape[1]))


def _is_cut(found: Components, number: int) -> bool:
    """Say whether a component lies along the border, rather than meet it here and there as a digit cut out does."""
    top, left, bottom, right = found.boxes[number]
    labels = found.labels
    contact = sum(np.count_nonzero(line == number + 1) for line in (labels[0], labels[-1], labels[:, 0], labels[:, -1]))
    return bool(contact > _CUT * 2 * (bottom - top + right - left))


def _union(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])


def _smoothed(array: np.ndarray) -> np.ndarray:
    """Return the mean of each pixel and its eight neighbours: a speck of noise must not stretch a box."""
    padded = np.pad(array, 1, mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return np.asarray((rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9)
