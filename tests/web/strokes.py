"""A digit of MNIST as a hand would draw it: the skeleton of its ink, walked in strokes."""

import numpy as np

AROUND = [(-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)]  # (row, column), once round
STRAIGHT_FIRST = sorted(AROUND, key=lambda step: abs(step[0]) + abs(step[1]))


def thinned(ink):
    """Return the skeleton of a mask: T. Y. Zhang, C. Y. Suen 1984, A fast parallel algorithm for thinning patterns."""
    ink = np.pad(np.asarray(ink, bool), 1)
    while True:
        before = ink.copy()
        for turn in (0, 1):
            ring = np.stack([np.roll(ink, (-row, -column), (0, 1)) for row, column in AROUND])
            north, east, south, west = ring[0], ring[2], ring[4], ring[6]
            count = ring.sum(axis=0)
            rises = (~ring & np.roll(ring, -1, axis=0)).sum(axis=0)
            if turn == 0:
                spare = ~(north & east & south) & ~(east & south & west)
            else:
                spare = ~(north & east & west) & ~(north & south & west)
            ink = ink & ~((count >= 2) & (count <= 6) & (rises == 1) & spare)
        if (ink == before).all():
            return ink[1:-1, 1:-1]


def strokes(image):
    """Return strokes, lists of (x, y) from 0 to 1, that draw a digit (28, 28)."""
    left = {(int(row), int(column)) for row, column in np.argwhere(thinned(image > 100))}
    all_pixels = set(left)

    def neighbours(pixel, of):
        return [
            (pixel[0] + row, pixel[1] + column)
            for row, column in STRAIGHT_FIRST
            if (pixel[0] + row, pixel[1] + column) in of
        ]

    found = []
    while left:
        ends = [pixel for pixel in left if len(neighbours(pixel, left)) == 1]
        pixel = min(ends or left)
        touching = neighbours(pixel, all_pixels - left)
        path = [*touching[:1], pixel]  # a branch begins on the stroke that it leaves
        left.discard(pixel)
        while ahead := neighbours(pixel, left):
            pixel = ahead[0]
            left.discard(pixel)
            path.append(pixel)
        closing = [each for each in neighbours(pixel, all_pixels) if each not in path[-3:]]
        path += closing[:1]
        if len(path) > 2 or not found:
            found.append([((column + 0.5) / 28, (row + 0.5) / 28) for row, column in path])
    return found
