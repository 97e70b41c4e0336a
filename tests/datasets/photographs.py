"""Pictures of digits as people take them: a digit of MNIST drawn large, and what happens to it on the way.

Each distortion is a function of (ink, rng): `ink` is float32 (H, W), the share of a pixel that is covered with ink; the
result is uint8 (H, W, 3). Paper is light and ink dark unless the distortion says otherwise.
"""

import numpy as np

SIDE = 160
INK, PAPER = np.float32([40, 40, 50]), np.float32([225, 222, 214])


def coverage(digit, rng, side=SIDE):
    """Return a digit drawn large, anti-aliased, somewhere near the middle of a square, as a share of ink."""
    from PIL import Image

    size = int(rng.integers(round(0.5 * side), round(0.75 * side)))
    large = np.asarray(Image.fromarray(digit).resize((size, size), Image.Resampling.BICUBIC)) / np.float32(255)
    slack = side - size
    top, left = (int(slack / 2 + slack / 3 * rng.uniform(-1, 1)) for _ in range(2))
    return np.pad(large, ((top, slack - top), (left, slack - left)))


def _mixed(ink, paper=PAPER, colour=INK):
    return paper + (colour - paper) * ink[..., None]


def _taken(picture, rng, noise=3.0):
    """Return what the camera makes of it: some noise, and bytes."""
    return np.clip(np.round(picture + rng.normal(0, noise, picture.shape)), 0, 255).astype(np.uint8)


def _axis(ink, rng):
    """Return how far each pixel lies along a random direction, from 0 to 1."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[: ink.shape[0], : ink.shape[1]]
    along = x * np.cos(angle) + y * np.sin(angle)
    return ((along - along.min()) / np.ptp(along)).astype(np.float32)


def plain(ink, rng):
    return np.round(_mixed(ink)).astype(np.uint8)


def light_across(ink, rng):
    """Light from one side: the far end of the paper is at a third to a half of the near end."""
    light = 1 - _axis(ink, rng) * rng.uniform(0.5, 0.67)
    return _taken(_mixed(ink) * light[..., None], rng)


def vignette(ink, rng):
    """Corners at 35 to 55 % of the middle."""
    y, x = np.linspace(-1, 1, ink.shape[0])[:, None], np.linspace(-1, 1, ink.shape[1])
    light = 1 - rng.uniform(0.45, 0.65) * (x**2 + y**2) / 2
    return _taken(_mixed(ink) * light[..., None], rng)


def shadow(ink, rng):
    """The shadow of hand or head over one side, often across the digit: 40 to 60 % of the light, with a soft edge."""
    along, edge, width = _axis(ink, rng), rng.uniform(0.25, 0.65), rng.uniform(0.01, 0.08)
    covered = np.clip((edge - along) / width + 0.5, 0, 1)
    return _taken(_mixed(ink) * (1 - rng.uniform(0.4, 0.6) * covered)[..., None], rng)


def dark_edge(ink, rng):
    """The table beside the paper, along one side, a little askew."""
    side, depth, skew = int(rng.integers(4)), rng.uniform(0.04, 0.14), rng.uniform(-0.05, 0.05)
    picture = np.rot90(_mixed(ink), side).copy()
    reach = (depth + skew * np.linspace(-0.5, 0.5, picture.shape[1])) * picture.shape[0]
    table = np.arange(picture.shape[0])[:, None] < reach
    picture[table] = rng.uniform(20, 70, 3)
    return _taken(np.rot90(picture, -side), rng)


def status_bar(ink, rng):
    """A screenshot of a phone: a bar in another colour with the time and small icons in it."""
    picture = _mixed(ink, np.float32([255, 255, 255]), np.float32([0, 0, 0]))
    height = int(ink.shape[0] * rng.uniform(0.05, 0.09))
    bar, text = (np.float32(30), 250) if rng.random() < 0.5 else (np.float32(235), 20)
    picture[:height] = bar
    for start, end in ((0.05, 0.18), (0.8, 0.84), (0.87, 0.95)):
        left, right = (int(ink.shape[1] * share) for share in (start, end))
        inside = picture[height // 4 : -(-3 * height // 4), left:right]
        inside[rng.random(inside.shape[:2]) < 0.5] = text
    return np.round(picture).astype(np.uint8)


def canvas_on_a_page(ink, rng):
    """A screenshot of a drawing program: a light digit on a black canvas, within a white page."""
    canvas = np.round(_mixed(ink, np.float32([0, 0, 0]), np.float32([255, 255, 255])))
    margins = [(int(size * rng.uniform(0.05, 0.4)), int(size * rng.uniform(0.05, 0.4))) for size in ink.shape]
    return np.pad(canvas, (*margins, (0, 0)), constant_values=255).astype(np.uint8)


def ruled_paper(ink, rng):
    """Ruled or squared paper, a little askew, its lines at 15 to 45 % of the ink's darkness."""
    y, x = np.mgrid[: ink.shape[0], : ink.shape[1]].astype(np.float32)
    tilt, pitch, offset = rng.uniform(-0.02, 0.02), rng.uniform(12, 26), rng.uniform(0, 14)
    lines = _line((y + tilt * x + offset) % pitch)
    if rng.random() < 0.5:
        lines = np.maximum(lines, _line((x - tilt * y + offset) % pitch))
    colour = np.float32([130, 150, 200])
    paper = PAPER + (colour - PAPER) * (lines * rng.uniform(0.4, 1.0))[..., None]
    return _taken(paper + (INK - paper) * ink[..., None], rng)


def _line(distance):
    return np.clip(1.5 - abs(distance - 2), 0, 1)


def red_on_green(ink, rng):
    """Red ink on green paper that is equally bright, so that a grey picture shows nothing."""
    red, green = np.float32([200, 60, 60]), np.float32([60, 0, 70])
    green[1] = (np.float32([299, 587, 114]) @ (red - green)) / 587
    return _taken(_mixed(ink, green, red), rng)


DISTORTIONS = (
    plain, light_across, vignette, shadow, dark_edge, status_bar, canvas_on_a_page, ruled_paper, red_on_green,
)  # fmt: skip
