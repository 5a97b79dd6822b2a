"""Everything in a synthetic image that is not a person: sky, rooms, ground, things, and what the camera adds."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np

from posefleet.data.synthetic.canvas import DIM, FLAT, SHIFT, Canvas, Colour, fixed_point, random_colour, rgb, tinted

TEXTURE_SIDE = 512
"""Pixels."""


# ---------------------------------------------------------------------------------------------------- backgrounds


def paint_background(width: int, height: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """An outdoor scene, a room, or a texture without a scene.

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
            _draw_skyline(image[:edge], rng)
    else:
        image[:edge] = _textured(width, edge, rng, zoom=rng.uniform(0.6, 2.0), calm=rng.random() < 0.5)
    image[edge:] = _ground(width, height - edge, rng)
    return image, horizon


def _textured(width: int, height: int, rng: np.random.Generator, zoom: float, calm: bool = False) -> np.ndarray:
    """A random part of a random texture in random colours, (height, width, 3); ``calm`` has less contrast."""
    return cv2.applyColorMap(_window(_texture(rng), width, height, rng, zoom), _ramp(rng, calm))


def _texture(rng: np.random.Generator) -> np.ndarray:
    textures = _textures()
    return textures[int(rng.integers(len(textures)))]


def _window(texture: np.ndarray, width: int, height: int, rng: np.random.Generator, zoom: float) -> np.ndarray:
    """A random part of a texture, resized to (height, width)."""
    side = TEXTURE_SIDE / zoom / max(1.0, max(width, height) / 512)
    w, h = (max(8, min(TEXTURE_SIDE, int(side * extent / max(width, height)))) for extent in (width, height))
    x, y = rng.integers(0, TEXTURE_SIDE - w + 1), rng.integers(0, TEXTURE_SIDE - h + 1)
    return cv2.resize(texture[y : y + h, x : x + w], (width, height), interpolation=cv2.INTER_LINEAR)


def _ramp(rng: np.random.Generator, calm: bool) -> np.ndarray:
    """(256, 1, 3) uint8 colours, from a random colour part of the way to another one."""
    start, end = np.array(_wall_colour(rng), float), np.array(_wall_colour(rng), float)
    steps = np.linspace(0, 1, 256)[:, None, None]
    ramp: np.ndarray = (start + (0.25 if calm else 0.8) * (end - start) * steps).astype(np.uint8)
    return ramp


_NATURAL: tuple[Colour, ...] = ((95, 130, 60), (130, 100, 70), (190, 170, 135), (125, 125, 128), (205, 200, 190))
"""Grass, earth, sand, stone, plaster."""


def _wall_colour(rng: np.random.Generator) -> Colour:
    """A colour of walls and ground: mostly natural, sometimes any."""
    if rng.random() < 0.35:
        return random_colour(rng)
    return tinted(_NATURAL[int(rng.integers(len(_NATURAL)))], rng.uniform(0.5, 1.25))


def _sky(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """(height, width, 3) uint8: a gradient, with or without clouds."""
    top = np.array([95, 145, 210]) + rng.uniform(-45, 45) + rng.uniform(-15, 15, 3)
    bottom = np.array([205, 215, 228]) + rng.uniform(-40, 25) + rng.uniform(-12, 12, 3)
    column = np.linspace(top, bottom, height).clip(0, 255).astype(np.uint8)
    sky = np.ascontiguousarray(np.broadcast_to(column[:, None], (height, width, 3)))
    if rng.random() < 0.4:
        return sky
    clouds = _window(_textures()[0], width, height, rng, zoom=1.0)
    return cv2.addWeighted(sky, 1.0, cv2.cvtColor(clouds, cv2.COLOR_GRAY2RGB), rng.uniform(0, 0.4), -20)


def _draw_skyline(image: np.ndarray, rng: np.random.Generator) -> None:
    """Draw buildings, or hills and hedges, along the lower edge of ``image``."""
    height, width = image.shape[:2]
    colour = random_colour(rng) if rng.random() < 0.5 else rgb(*rng.uniform((20, 60, 10), (90, 140, 70)))
    steps = int(rng.integers(4, 14))
    lefts, tops = np.linspace(0, width, steps), height * (1 - rng.uniform(0.1, 0.6) * rng.random(steps))
    if rng.random() < 0.5:
        for left, top in zip(lefts, tops, strict=True):
            right = left + width / steps * rng.uniform(0.7, 1.5)
            wall = tinted(colour, rng.uniform(0.6, 1.3))
            cv2.rectangle(image, (int(left), int(top)), (int(right), height), wall, -1)
            for y in range(int(top) + 3, height - 3, 8):  # rows of windows
                cv2.line(image, (int(left) + 2, y), (int(right) - 2, y), tinted(wall, 1.4), 2)
    else:
        outline = np.vstack([np.stack([lefts, tops], 1), [width, height], [0, height]])
        cv2.fillPoly(image, [fixed_point(outline)], colour, 8, SHIFT)


def _ground(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """(height, width, 3) uint8: a texture in the perspective of a floor."""
    rows = max(height, width // 2)
    flat = _window(_texture(rng), width, rows, rng, zoom=rng.uniform(0.5, 1.2))
    spread = width * rng.uniform(0.5, 2.0)
    corners = np.array([[0, 0], [width, 0], [width, rows], [0, rows]], np.float32)
    target = np.array([[0, 0], [width, 0], [width + spread, height], [-spread, height]], np.float32)
    matrix = cv2.getPerspectiveTransform(corners, target)
    floor = cv2.warpPerspective(flat, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
    return cv2.applyColorMap(floor, _ramp(rng, calm=rng.random() < 0.4))


@cache
def _textures() -> tuple[np.ndarray, ...]:
    """Grey (512, 512) uint8 textures, always the same ones; the first is clouds."""
    rng = np.random.default_rng(17)
    side = TEXTURE_SIDE
    y, x = np.mgrid[:side, :side]
    soft = [_fractal(rng, roughness) for roughness in (0.45, 0.6, 0.75)]
    tiles = (((x % 64) > 2) & ((y % 64) > 2)) * 150 + rng.integers(0, 60, (8, 8)).repeat(64, 0).repeat(64, 1)
    row, shifted = y // 24, x + (y // 24 % 2) * 30
    joints = ((y % 24) > 2) & ((shifted % 60) > 2)
    bricks = joints * (110 + rng.integers(0, 90, (22, 10))[row, shifted // 60 % 10])
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


# ---------------------------------------------------------------------------------------------------- camera


def develop(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """The photograph of a canvas: shaded, sometimes blurred, noisy; (H, W, 3) uint8 RGB."""
    height, width = canvas.owner.shape
    longer = max(width, height)
    radius = max(1, round(longer / 100))
    shade = cv2.blur(canvas.shade, (2 * radius + 1, 2 * radius + 1))
    folds = _window(_textures()[2], width, height, rng, zoom=rng.uniform(0.5, 1.5))
    strength = rng.uniform(0.05, 0.2)
    shade = cv2.addWeighted(shade, 1.0, folds, strength, -FLAT * strength)
    contrast = rng.uniform(0.75, 1.15)
    image = cv2.multiply(canvas.colour, cv2.cvtColor(shade, cv2.COLOR_GRAY2RGB), scale=contrast / FLAT)
    if rng.random() < 0.35:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.9) * max(1.0, longer / 512))
    lift = rng.uniform(0, 255) * max(0.0, 1 - contrast)  # less contrast: black becomes grey
    noise = _noise()
    if longer > noise.shape[0]:
        noise = cv2.resize(noise, (longer, longer))
    x, y = rng.integers(0, noise.shape[1] - width + 1), rng.integers(0, noise.shape[0] - height + 1)
    amount = 0.3 * rng.random() ** 2
    return cv2.addWeighted(image, 1.0, noise[y : y + height, x : x + width], amount, lift - FLAT * amount)


@cache
def _noise() -> np.ndarray:
    """(1024, 1024, 3) uint8 around 128, deviation 30."""
    return np.random.default_rng(5).normal(FLAT, 30, (1024, 1024, 3)).clip(0, 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------- things


def paint_thing(canvas: Canvas, x: float, ground: float, size: float, rng: np.random.Generator) -> None:
    """Paint a random thing that stands at (x, ground) and is about ``size`` pixels high; it has no owner."""
    _THINGS[int(rng.integers(len(_THINGS)))](_Spot(canvas, x, ground, size), rng)


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a thing stands. Its coordinates: x to the right, y up from the ground, in units of ``size`` pixels."""

    canvas: Canvas
    x: float
    ground: float
    size: float

    def pixels(self, points: Any) -> np.ndarray:
        """(..., 2) coordinates of the thing as continuous image coordinates."""
        placed: np.ndarray = np.asarray(points, float) * (self.size, -self.size) + (self.x, self.ground)
        return placed

    def polygon(self, corners: Any, colour: Colour) -> None:
        """A convex polygon from (N, 2) corners."""
        self.canvas.fill(fixed_point(self.pixels(corners)), colour)

    def box(self, left: float, bottom: float, right: float, top: float, colour: Colour) -> None:
        """An upright rectangle."""
        self.polygon([[left, top], [right, top], [right, bottom], [left, bottom]], colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour, turn: float = 0.0) -> None:
        """An ellipse, shaded as a ball; ``turn`` is in radians clockwise."""
        cos, sin = np.cos(turn), np.sin(turn)
        outline = _CIRCLE @ (self.size * np.array([[rx * cos, rx * sin], [-ry * sin, ry * cos]]))
        centre = self.pixels((x, y))
        self.canvas.fill(fixed_point(outline + centre), colour, shade=DIM)
        self.canvas.brighten(fixed_point(outline * 0.6 + centre - 0.2 * self.size * np.array([rx, ry])))

    def lines(self, lines: Any, colour: Colour, width: float) -> None:
        """(N, P, 2) polylines on a thing that is there already."""
        self.canvas.strokes(self.pixels(lines), colour, width * self.size)


_ANGLES = np.linspace(0, 2 * np.pi, 20)[:-1]
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)


def _pole(spot: _Spot, rng: np.random.Generator) -> None:
    half, colour, top = rng.uniform(0.015, 0.05), random_colour(rng), rng.uniform(1.0, 2.5)
    spot.box(-half, 0, half, top, colour)
    spot.box(-half, 0, -0.3 * half, top, tinted(colour, 1.25))
    if rng.random() < 0.5:
        spot.ellipse(0, top, 4 * half, 4 * half, random_colour(rng))


def _tree(spot: _Spot, rng: np.random.Generator) -> None:
    half, top = rng.uniform(0.04, 0.09), rng.uniform(0.6, 1.2)
    spot.box(-half, 0, half, top, rgb(*rng.uniform((60, 40, 20), (130, 95, 70))))
    leaf = rgb(*rng.uniform((20, 70, 10), (120, 160, 70)))
    for x, drop, radius in rng.uniform((-0.25, -0.4, 0.08), (0.25, 0.05, 0.2), (9, 3)):
        spot.ellipse(x, top - drop, radius, 0.8 * radius, tinted(leaf, rng.uniform(0.7, 1.25)))


def _table(spot: _Spot, rng: np.random.Generator) -> None:
    half, top, colour = rng.uniform(0.2, 0.6), rng.uniform(0.25, 0.5), random_colour(rng)
    for leg in (-0.9, -0.7, 0.7, 0.9)[:: int(rng.integers(1, 3))]:
        spot.box(leg * half - 0.018, 0, leg * half + 0.018, top, tinted(colour, 0.7))
    spot.box(-half, top - 0.048, half, top, colour)
    if rng.random() < 0.5:  # the back of a chair
        spot.box(-half, top, 0.06 - half, top + 0.3, tinted(colour, 0.85))


def _crate(spot: _Spot, rng: np.random.Generator) -> None:
    half, top, colour, depth = (
        rng.uniform(0.1, 0.35),
        rng.uniform(0.15, 0.6),
        random_colour(rng),
        rng.uniform(0.05, 0.15),
    )
    spot.box(-half, 0, half, top, colour)
    lid = [[-half, top], [half, top], [half + depth, top + depth], [depth - half, top + depth]]
    spot.polygon(lid, tinted(colour, 1.3))
    for shelf in np.linspace(top, 0, int(rng.integers(2, 6)))[1:-1]:
        spot.lines([[[-half, shelf], [half, shelf]]], tinted(colour, 0.6), 0.012)


def _ball(spot: _Spot, rng: np.random.Generator) -> None:
    radius = rng.uniform(0.04, 0.13)
    spot.ellipse(0, radius + rng.uniform(0, 0.9), radius, radius, random_colour(rng))


def _sign(spot: _Spot, rng: np.random.Generator) -> None:
    half, top = rng.uniform(0.08, 0.25), rng.uniform(0.7, 1.3)
    spot.box(-0.015, 0, 0.015, top, (90, 90, 95))
    spot.box(-half, top - 0.6 * half, half, top + half, random_colour(rng))
    writing = [[[-0.8 * half, top - row * half], [0.7 * half, top - row * half]] for row in (-0.7, -0.3, 0.1)]
    spot.lines(writing, random_colour(rng), 0.14 * half)


def _decoy(spot: _Spot, rng: np.random.Generator) -> None:
    """Limbs, heads and coats that belong to nobody: the colours of people, not their shape."""
    for _ in range(int(rng.integers(2, 6))):
        skin = tinted((225, 170, 135), rng.uniform(0.35, 1.08))
        colour = skin if rng.random() < 0.5 else random_colour(rng)
        rx, ry = rng.uniform(0.02, 0.12), rng.uniform(0.04, 0.2)
        x, y = rng.uniform(-0.25, 0.25), rng.uniform(0.0, 0.9)
        spot.ellipse(x, y, rx, ry, colour, turn=rng.uniform(0, np.pi))


_THINGS: tuple[Callable[[_Spot, np.random.Generator], None], ...] = (
    _pole, _tree, _table, _crate, _ball, _sign, _decoy
)  # fmt: skip
