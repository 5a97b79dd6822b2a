"""What a synthetic picture is painted on, and everything in it that is not a person: rooms, ground, things in the way.

Positions are continuous image coordinates (see ``transforms``). OpenCV draws at pixel centres with ``SHIFT`` bits of
sub-pixel precision, so :func:`fixed_point` is the one place where the half pixel is taken off.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import cos, tau

import cv2
import numpy as np

SHIFT = 4
"""Fractional bits of the coordinates handed to OpenCV."""

FLAT = 128
"""Value of the shade buffer where a surface is neither lit nor in shadow."""

DIM, LIT = 102, 144
"""Values of the shade buffer away from the light and towards it."""

TEXTURE_SIDE = 512

Colour = tuple[int, int, int]
"""RGB, 0 to 255."""


def fixed_point(points: np.ndarray) -> np.ndarray:
    """Continuous (..., 2) image coordinates as the int32 that OpenCV draws with ``shift=SHIFT``."""
    fixed: np.ndarray = np.rint((points - 0.5) * (1 << SHIFT)).astype(np.int32)
    return fixed


@dataclass(frozen=True, slots=True)
class Canvas:
    """A picture in the making. Later fills cover earlier ones, in all three buffers."""

    colour: np.ndarray
    """(H, W, 3) uint8 RGB, anti-aliased."""
    owner: np.ndarray
    """(H, W) uint16: whose pixel it is, 0 for nobody's; not anti-aliased."""
    shade: np.ndarray
    """(H, W) uint8: brightness of the surface, ``FLAT`` is neutral."""

    @classmethod
    def over(cls, background: np.ndarray) -> "Canvas":
        """A canvas that starts as ``background`` (H, W, 3), which it paints over."""
        return cls(background, np.zeros(background.shape[:2], np.uint16), np.full(background.shape[:2], FLAT, np.uint8))

    def fill(self, outline: np.ndarray, colour: Colour, owner: int = 0, shade: int = FLAT) -> None:
        """Fill a convex outline, (N, 2) int32 from :func:`fixed_point`; ``owner`` gets its pixels."""
        self.paint(outline, colour)
        cv2.fillConvexPoly(self.owner, outline, owner, cv2.LINE_8, SHIFT)
        cv2.fillConvexPoly(self.shade, outline, shade, cv2.LINE_8, SHIFT)

    def paint(self, outline: np.ndarray, colour: Colour) -> None:
        """Colour a convex outline, (N, 2) int32 from :func:`fixed_point`, of what is there already."""
        cv2.fillConvexPoly(self.colour, outline, colour, cv2.LINE_AA, SHIFT)

    def brighten(self, lit: np.ndarray) -> None:
        """Let light fall on a convex outline, (N, 2) int32 from :func:`fixed_point`."""
        cv2.fillConvexPoly(self.shade, lit, LIT, cv2.LINE_8, SHIFT)

    def strokes(self, lines: np.ndarray, colour: Colour, width: float) -> None:
        """Draw (N, P, 2) continuous polylines of a width in pixels; only the colour changes, the owner stays."""
        cv2.polylines(self.colour, list(fixed_point(lines)), False, colour, max(1, round(width)), cv2.LINE_AA, SHIFT)


def random_colour(rng: np.random.Generator) -> Colour:
    """A colour as of clothes and paint: often saturated, sometimes grey, black or white."""
    hue, saturation, value, purity = rng.random(4).tolist()
    saturation *= 0.25 if purity < 0.3 else 0.95
    bright = 25 + 225 * value
    return rgb(*[bright * (1 - saturation * (0.5 - 0.5 * cos(tau * (hue - third)))) for third in (0, 1 / 3, 2 / 3)])


def tinted(colour: Colour, factor: float) -> Colour:
    """The colour made darker (factor below 1) or lighter."""
    red, green, blue = colour
    return rgb(red * factor, green * factor, blue * factor)


def rgb(red: float, green: float, blue: float) -> Colour:
    """The nearest colour that a pixel can hold."""
    return min(255, max(0, int(red))), min(255, max(0, int(green))), min(255, max(0, int(blue)))


# ---------------------------------------------------------------------------------------------------- backgrounds


def paint_background(width: int, height: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """A place: outdoors, a room, or just a texture.

    Returns:
        (H, W, 3) uint8 RGB, and the y of the horizon, where the ground begins.
    """
    horizon = height * rng.uniform(0.25, 0.65)
    edge = min(height - 1, max(1, round(horizon)))
    kind = rng.random()
    if kind < 0.15:
        return _textured(width, height, rng, zoom=rng.uniform(0.3, 2.0)), horizon
    image = np.empty((height, width, 3), np.uint8)
    if kind < 0.55:
        image[:edge] = _sky(width, edge, rng)
        if rng.random() < 0.7:
            _skyline(image[:edge], rng)
    else:
        image[:edge] = _textured(width, edge, rng, zoom=rng.uniform(0.6, 2.0), calm=rng.random() < 0.5)
    image[edge:] = _ground(width, height - edge, rng)
    return image, horizon


def _textured(width: int, height: int, rng: np.random.Generator, zoom: float, calm: bool = False) -> np.ndarray:
    """A random window of a random texture, coloured by a random ramp."""
    return cv2.applyColorMap(_window(_texture(rng), width, height, rng, zoom), _ramp(rng, 0.25 if calm else 0.8))


def _texture(rng: np.random.Generator) -> np.ndarray:
    textures = _textures()
    return textures[int(rng.integers(len(textures)))]


def _window(texture: np.ndarray, width: int, height: int, rng: np.random.Generator, zoom: float) -> np.ndarray:
    """A random part of a texture, resized to (height, width)."""
    side = TEXTURE_SIDE / zoom / max(1.0, max(width, height) / 512)
    w, h = (max(8, min(TEXTURE_SIDE, int(side * extent / max(width, height)))) for extent in (width, height))
    x, y = rng.integers(0, TEXTURE_SIDE - w + 1), rng.integers(0, TEXTURE_SIDE - h + 1)
    return cv2.resize(texture[y : y + h, x : x + w], (width, height), interpolation=cv2.INTER_LINEAR)


def _ramp(rng: np.random.Generator, contrast: float) -> np.ndarray:
    """(256, 1, 3) colours from one random colour towards another, ``contrast`` in [0, 1] of the way."""
    start, end = np.array(_paint(rng), float), np.array(_paint(rng), float)
    ramp: np.ndarray = (start + contrast * (end - start) * _STEPS).astype(np.uint8)
    return ramp[:, None]


_STEPS = np.linspace(0, 1, 256)[:, None]


def _paint(rng: np.random.Generator) -> Colour:
    """A colour of walls and ground: mostly grass, earth, sand, stone or plaster, sometimes anything."""
    natural = ((95, 130, 60), (130, 100, 70), (190, 170, 135), (125, 125, 128), (205, 200, 190))
    if rng.random() < 0.35:
        return random_colour(rng)
    return tinted(natural[int(rng.integers(len(natural)))], rng.uniform(0.5, 1.25))


def _sky(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    top = np.array([95, 145, 210]) + rng.uniform(-45, 45) + rng.uniform(-15, 15, 3)
    bottom = np.array([205, 215, 228]) + rng.uniform(-40, 25) + rng.uniform(-12, 12, 3)
    column = np.linspace(top, bottom, height).clip(0, 255).astype(np.uint8)
    sky = np.ascontiguousarray(np.broadcast_to(column[:, None], (height, width, 3)))
    if rng.random() < 0.4:
        return sky
    clouds = _window(_textures()[0], width, height, rng, zoom=1.0)
    return cv2.addWeighted(sky, 1.0, cv2.cvtColor(clouds, cv2.COLOR_GRAY2RGB), rng.uniform(0, 0.4), -20)


def _skyline(image: np.ndarray, rng: np.random.Generator) -> None:
    """Hills, buildings or a hedge along the lower edge of ``image``."""
    height, width = image.shape[:2]
    colour = random_colour(rng) if rng.random() < 0.5 else rgb(*rng.uniform((20, 60, 10), (90, 140, 70)))
    steps = int(rng.integers(4, 14))
    tops = height * (1 - rng.uniform(0.1, 0.6) * rng.random(steps))
    if rng.random() < 0.5:  # buildings with windows
        for left, top in zip(np.linspace(0, width, steps), tops, strict=True):
            right = left + width / steps * rng.uniform(0.7, 1.5)
            shade = tinted(colour, rng.uniform(0.6, 1.3))
            cv2.rectangle(image, (int(left), int(top)), (int(right), height), shade, -1)
            for y in range(int(top) + 3, height - 3, 8):
                cv2.line(image, (int(left) + 2, y), (int(right) - 2, y), tinted(shade, 1.4), 2)
    else:
        points = np.stack([np.linspace(0, width, steps), tops], 1)
        cv2.fillPoly(image, [fixed_point(np.vstack([points, [width, height], [0, height]]))], colour, 8, SHIFT)


def _ground(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """A texture seen in perspective, as a floor is."""
    rows = max(height, width // 2)
    flat = _window(_texture(rng), width, rows, rng, zoom=rng.uniform(0.5, 1.2))
    spread = width * rng.uniform(0.5, 2.0)
    corners = np.array([[0, 0], [width, 0], [width, rows], [0, rows]], np.float32)
    target = np.array([[0, 0], [width, 0], [width + spread, height], [-spread, height]], np.float32)
    matrix = cv2.getPerspectiveTransform(corners, target)
    floor = cv2.warpPerspective(flat, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
    return cv2.applyColorMap(floor, _ramp(rng, 0.25 if rng.random() < 0.4 else 0.8))


@cache
def _textures() -> tuple[np.ndarray, ...]:
    """Grey (512, 512) uint8 textures, always the same ones; the first is clouds."""
    rng = np.random.default_rng(17)
    side = TEXTURE_SIDE
    y, x = np.mgrid[:side, :side]
    soft = [_fractal(rng, roughness) for roughness in (0.45, 0.6, 0.75)]
    tiles = (((x % 64) > 2) & ((y % 64) > 2)) * 150 + rng.integers(0, 60, (8, 8)).repeat(64, 0).repeat(64, 1)
    brick_row = y // 24
    joint = ((y % 24) > 2) & (((x + (brick_row % 2) * 30) % 60) > 2)
    bricks = joint * (110 + rng.integers(0, 90, (22, 10))[brick_row, (x + (brick_row % 2) * 30) // 60 % 10])
    checks = ((x // 32 + y // 32) % 2) * 190 + 30
    planks = ((y % 40) > 1) * (70 + rng.integers(0, 100, 13)[y // 40]) + 30 * np.sin(x / 9 + 3 * soft[0] / 40)
    stripes = 128 + 100 * np.sign(np.sin(x / 14))
    waves = 128 + 60 * np.sin(x / 10 + 4 * soft[1] / 64) + 50 * np.sin(y / 17)
    grain = cv2.GaussianBlur(rng.integers(0, 256, (side, side)).astype(np.float32), (0, 0), 1.2) * 3 - 256
    leaves = cv2.dilate(rng.integers(0, 256, (side, side), np.uint8), np.ones((5, 5), np.uint8))
    foliage = leaves.astype(np.float32) * 2 - 255 - (255 - soft[2]) * 0.6
    patterned = [np.asarray(t, np.float32) + 0.25 * (soft[1] - 128) for t in (tiles, bricks, checks, planks, stripes)]
    return tuple(t.clip(0, 255).astype(np.uint8) for t in [*soft, *patterned, waves, grain, foliage])


def _fractal(rng: np.random.Generator, roughness: float) -> np.ndarray:
    """(512, 512) float32 in [0, 255]: octaves of smooth noise, each ``roughness`` times as strong as the one before."""
    total = np.zeros((TEXTURE_SIDE, TEXTURE_SIDE), np.float32)
    for octave in range(2, 9):
        layer = rng.random((2**octave, 2**octave), np.float32)
        total += roughness**octave * cv2.resize(layer, (TEXTURE_SIDE, TEXTURE_SIDE), interpolation=cv2.INTER_CUBIC)
    stretched: np.ndarray = (total - total.min()) * (255 / np.ptp(total))
    return stretched


def develop(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """The photograph of a canvas: shaded, softly lit, slightly blurred and noisy; (H, W, 3) uint8 RGB."""
    height, width = canvas.owner.shape
    radius = max(1, round(max(width, height) / 100))
    shade = cv2.blur(canvas.shade, (2 * radius + 1, 2 * radius + 1))
    folds = _window(_textures()[2], width, height, rng, zoom=rng.uniform(0.5, 1.5))
    strength = rng.uniform(0.05, 0.2)
    shade = cv2.addWeighted(shade, 1.0, folds, strength, -FLAT * strength)
    contrast = rng.uniform(0.75, 1.15)
    image = cv2.multiply(canvas.colour, cv2.cvtColor(shade, cv2.COLOR_GRAY2RGB), scale=contrast / FLAT)
    if rng.random() < 0.35:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.9) * max(1.0, max(width, height) / 512))
    lift = rng.uniform(0, 255) * max(0.0, 1 - contrast)  # of the darkest
    noise = _noise()
    if max(width, height) > noise.shape[0]:
        noise = cv2.resize(noise, (max(width, height),) * 2)
    x, y = rng.integers(0, noise.shape[1] - width + 1), rng.integers(0, noise.shape[0] - height + 1)
    amount = 0.3 * rng.random() ** 2
    return cv2.addWeighted(image, 1.0, noise[y : y + height, x : x + width], amount, lift - FLAT * amount)


@cache
def _noise() -> np.ndarray:
    """(1024, 1024, 3) uint8 around 128, deviation 30."""
    return np.random.default_rng(5).normal(FLAT, 30, (1024, 1024, 3)).clip(0, 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------- things


def paint_thing(canvas: Canvas, x: float, ground: float, size: float, rng: np.random.Generator) -> None:
    """Paint a random thing that stands at (x, ground) and is about ``size`` pixels high."""
    things: tuple[Callable[..., None], ...] = (_pole, _tree, _table, _crate, _ball, _sign, _blob)
    things[int(rng.integers(len(things)))](canvas, x, ground, size, rng)


def _box(canvas: Canvas, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
    canvas.fill(fixed_point(np.array([[left, top], [right, top], [right, bottom], [left, bottom]])), colour)


def _round(canvas: Canvas, x: float, y: float, rx: float, ry: float, colour: Colour, turn: float = 0.0) -> None:
    axes = np.array([[rx * np.cos(turn), rx * np.sin(turn)], [-ry * np.sin(turn), ry * np.cos(turn)]])
    outline, centre = _CIRCLE @ axes, np.array([x, y])
    lit = outline * 0.6 + centre - 0.2 * np.array([rx, ry])
    canvas.fill(fixed_point(outline + centre), colour, shade=DIM)
    canvas.brighten(fixed_point(lit))


_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 20)[:-1]), np.sin(np.linspace(0, 2 * np.pi, 20)[:-1])], 1)


def _pole(canvas: Canvas, x: float, ground: float, size: float, rng: np.random.Generator) -> None:
    half, colour = size * rng.uniform(0.015, 0.05), random_colour(rng)
    top = ground - size * rng.uniform(1.0, 2.5)
    _box(canvas, x - half, top, x + half, ground, colour)
    _box(canvas, x - half, top, x - half * 0.3, ground, tinted(colour, 1.25))
    if rng.random() < 0.5:
        _round(canvas, x, top, 4 * half, 4 * half, random_colour(rng))


def _tree(canvas: Canvas, x: float, ground: float, size: float, rng: np.random.Generator) -> None:
    half = size * rng.uniform(0.04, 0.09)
    top = ground - size * rng.uniform(0.6, 1.2)
    _box(canvas, x - half, top, x + half, ground, rgb(*rng.uniform((60, 40, 20), (130, 95, 70))))
    leaf = rgb(*rng.uniform((20, 70, 10), (120, 160, 70)))
    for dx, dy, radius in rng.uniform((-0.25, -0.4, 0.08), (0.25, 0.05, 0.2), (9, 3)) * size:
        _round(canvas, x + dx, top + dy, radius, radius * 0.8, tinted(leaf, rng.uniform(0.7, 1.25)))


def _table(canvas: Canvas, x: float, ground: float, size: float, rng: np.random.Generator) -> None:
    half, top, colour = size * rng.uniform(0.2, 0.6), ground - size * rng.uniform(0.25, 0.5), random_colour(rng)
    thick = size * 0.03
    for leg in (-0.9, -0.7, 0.7, 0.9)[:: int(rng.integers(1, 3))]:
        _box(canvas, x + leg * half - thick * 0.6, top, x + leg * half + thick * 0.6, ground, tinted(colour, 0.7))
    _box(canvas, x - half, top, x + half, top + thick * 1.6, colour)
    if rng.random() < 0.5:  # the back of a chair
        _box(canvas, x - half, top - size * 0.3, x - half + 2 * thick, top, tinted(colour, 0.85))


def _crate(canvas: Canvas, x: float, ground: float, size: float, rng: np.random.Generator) -> None:
    width, height = size * rng.uniform(0.1, 0.35), size * rng.uniform(0.15, 0.6)
    colour, depth = random_colour(rng), size * rng.uniform(0.05, 0.15)
    _box(canvas, x - width, ground - height, x + width, ground, colour)
    roof = [[x - width, ground - height], [x + width, ground - height]]
    lifted = [[x + width + depth, ground - height - depth], [x - width + depth, ground - height - depth]]
    canvas.fill(fixed_point(np.array(roof + lifted)), tinted(colour, 1.3))
    for shelf in np.linspace(ground - height, ground, int(rng.integers(2, 6)))[1:-1]:
        canvas.strokes(np.array([[[x - width, shelf], [x + width, shelf]]]), tinted(colour, 0.6), size * 0.012)


def _ball(canvas: Canvas, x: float, ground: float, size: float, rng: np.random.Generator) -> None:
    radius = size * rng.uniform(0.04, 0.13)
    _round(canvas, x, ground - radius - size * rng.uniform(0, 0.9), radius, radius, random_colour(rng))


def _sign(canvas: Canvas, x: float, ground: float, size: float, rng: np.random.Generator) -> None:
    half, top = size * rng.uniform(0.08, 0.25), ground - size * rng.uniform(0.7, 1.3)
    _box(canvas, x - size * 0.015, top, x + size * 0.015, ground, (90, 90, 95))
    _box(canvas, x - half, top - half, x + half, top + half * 0.6, random_colour(rng))
    lines = [[[x - half * 0.8, top + half * row], [x + half * 0.7, top + half * row]] for row in (-0.7, -0.3, 0.1)]
    canvas.strokes(np.array(lines), random_colour(rng), half * 0.14)


def _blob(canvas: Canvas, x: float, ground: float, size: float, rng: np.random.Generator) -> None:
    """Coloured like a person, shaped like nobody: limbs, heads and coats that belong to no one."""
    for _ in range(int(rng.integers(2, 6))):
        skin = rgb(*(np.array([225, 170, 135]) * rng.uniform(0.35, 1.08)))
        colour = skin if rng.random() < 0.5 else random_colour(rng)
        rx, ry = size * rng.uniform(0.02, 0.12), size * rng.uniform(0.04, 0.2)
        dx, dy = size * rng.uniform(-0.25, 0.25), size * rng.uniform(0.0, 0.9)
        _round(canvas, x + dx, ground - dy, rx, ry, colour, turn=rng.uniform(0, np.pi))
