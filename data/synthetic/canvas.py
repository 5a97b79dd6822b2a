"""What synthetic images are painted on: a canvas of colours, owners and light, its drawing primitives, and colours.

Positions are continuous image coordinates (see ``transforms``). OpenCV draws at pixel centres with ``SHIFT`` bits of
sub-pixel precision, so :func:`fixed_point` is the one place where the half pixel is taken off.
"""

from dataclasses import dataclass
from math import cos, tau

import cv2
import numpy as np

SHIFT = 4
"""Fractional bits of the coordinates handed to OpenCV."""

FLAT = 128
"""Value of the shade buffer where a surface is neither lit nor in shadow."""

DIM, LIT = 102, 144
"""Values of the shade buffer away from the light and towards it."""

Colour = tuple[int, int, int]
"""RGB, 0 to 255."""


def fixed_point(points: np.ndarray) -> np.ndarray:
    """Continuous (..., 2) image coordinates as the int32 that OpenCV draws with ``shift=SHIFT``."""
    fixed: np.ndarray = np.rint((points - 0.5) * (1 << SHIFT)).astype(np.int32)
    return fixed


@dataclass(frozen=True, slots=True)
class Canvas:
    """An unfinished image. Later fills cover earlier ones in all three buffers.

    Outlines are convex, (N, 2) int32 from :func:`fixed_point`.
    """

    colour: np.ndarray
    """(H, W, 3) uint8 RGB, anti-aliased."""
    owner: np.ndarray
    """(H, W) uint16: number of the owner of each pixel, 0 for none; not anti-aliased."""
    shade: np.ndarray
    """(H, W) uint8: brightness of the surface, ``FLAT`` is neutral."""

    @classmethod
    def over(cls, background: np.ndarray) -> "Canvas":
        """A canvas that starts as ``background``, (H, W, 3) uint8 RGB, and paints over that array."""
        return cls(background, np.zeros(background.shape[:2], np.uint16), np.full(background.shape[:2], FLAT, np.uint8))

    def fill(self, outline: np.ndarray, colour: Colour, owner: int = 0, shade: int = FLAT) -> None:
        """Set colour, owner and shade inside an outline."""
        self.paint(outline, colour)
        cv2.fillConvexPoly(self.owner, outline, owner, cv2.LINE_8, SHIFT)
        cv2.fillConvexPoly(self.shade, outline, shade, cv2.LINE_8, SHIFT)

    def paint(self, outline: np.ndarray, colour: Colour) -> None:
        """Set the colour inside an outline; owner and shade stay."""
        cv2.fillConvexPoly(self.colour, outline, colour, cv2.LINE_AA, SHIFT)

    def brighten(self, outline: np.ndarray) -> None:
        """Set the shade inside an outline to ``LIT``; colour and owner stay."""
        cv2.fillConvexPoly(self.shade, outline, LIT, cv2.LINE_8, SHIFT)

    def strokes(self, lines: np.ndarray, colour: Colour, width: float) -> None:
        """Draw (N, P, 2) continuous polylines, ``width`` pixels wide; owner and shade stay."""
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
    """Three channels rounded down and clipped to 0 to 255."""
    return min(255, max(0, int(red))), min(255, max(0, int(green))), min(255, max(0, int(blue)))
