"""The random transforms as plain loops over images, channels and pixels, from the same draws: slow, and right."""

import math

import numpy as np


def crop(x, draws, size, padding, fill=0.0, mode="constant"):
    """Return the windows of (N, C, H, W)."""
    out = np.empty((*x.shape[:2], *size), x.dtype)
    for n, (top, left) in enumerate(zip(*draws, strict=True)):
        for c in range(x.shape[1]):
            for i in range(size[0]):
                for j in range(size[1]):
                    out[n, c, i, j] = bordered(x[n, c], top + i - padding[0], left + j - padding[1], fill, mode)
    return out


def bordered(image, i, j, fill, mode):
    """Return a pixel of an image that goes on behind its border."""
    height, width = image.shape
    if mode == "constant" and not (0 <= i < height and 0 <= j < width):
        return fill
    i, j = (reach(k, size, mode) for k, size in ((i, height), (j, width)))
    return image[i, j]


def reach(i, size, mode):
    if mode == "edge":
        return min(max(i, 0), size - 1)
    return -i if i < 0 else 2 * (size - 1) - i if i >= size else i


def flip(x, draws):
    out = x.copy()
    for n in draws[0]:
        for j in range(x.shape[3]):
            out[n, :, :, j] = x[n, :, :, x.shape[3] - 1 - j]
    return out


def erase(x, draws, value):
    out = x.copy()
    for n, (top, bottom, left, right) in enumerate(zip(*draws, strict=True)):
        for i in range(top, bottom):
            for j in range(left, right):
                out[n, :, i, j] = value
    return out


def affine(x, draws, fill=0.0):
    """Turn about the centre: in coordinates right and down, a positive angle is clockwise."""
    _, channels, height, width = x.shape
    out = np.empty_like(x)
    for n, (angle, right, down, factor) in enumerate(zip(*(np.float64(each) for each in draws), strict=True)):
        for i in range(height):
            for j in range(width):
                across, along = j - (width - 1) / 2 - right, i - (height - 1) / 2 - down
                column = (math.cos(angle) * across + math.sin(angle) * along) / factor + (width - 1) / 2
                row = (-math.sin(angle) * across + math.cos(angle) * along) / factor + (height - 1) / 2
                for c in range(channels):
                    out[n, c, i, j] = bilinear(x[n, c], row, column, fill)
    return out


def bilinear(image, row, column, fill):
    top, left = math.floor(row), math.floor(column)
    total = 0.0
    for i, share in ((top, top + 1 - row), (top + 1, row - top)):
        for j, part in ((left, left + 1 - column), (left + 1, column - left)):
            total += share * part * bordered(image, i, j, fill, "constant")
    return total


def jitter(x, draws):
    """Brightness, contrast, saturation and hue one after the other, in float64."""
    out = np.empty_like(x)
    weights = np.array([0.299, 0.587, 0.114])
    for n, (bright, contrast, saturation, hue) in enumerate(zip(*(np.float64(each) for each in draws), strict=True)):
        image = x[n] * bright
        grey = np.tensordot(weights, image, 1) if len(image) == 3 else image[0]
        image = contrast * image + (1 - contrast) * grey.mean()
        if len(image) == 3:
            grey = np.tensordot(weights, image, 1)
            image = saturation * image + (1 - saturation) * grey
            image = np.tensordot(hue_matrix(2 * math.pi * hue), image, 1)
        out[n] = np.clip(image, 0, 1)
    return out


def hue_matrix(angle):
    """Return the matrix of W3C's hueRotate, as the specification prints it."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array(
        [
            [0.213 + c * 0.787 - s * 0.213, 0.715 - c * 0.715 - s * 0.715, 0.072 - c * 0.072 + s * 0.928],
            [0.213 - c * 0.213 + s * 0.143, 0.715 + c * 0.285 + s * 0.140, 0.072 - c * 0.072 - s * 0.283],
            [0.213 - c * 0.213 - s * 0.787, 0.715 - c * 0.715 + s * 0.715, 0.072 + c * 0.928 + s * 0.072],
        ]
    )


def mix(x, rows, share, order):
    images, labels = np.empty_like(x), np.empty_like(rows)
    for n, other in enumerate(order):
        images[n] = share * x[n] + (1 - share) * x[other]
        labels[n] = share * rows[n] + (1 - share) * rows[other]
    return images, labels
