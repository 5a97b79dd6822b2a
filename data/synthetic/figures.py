"""Painted people: body, clothes, hair and face, seen from any side.

Parts are painted from the farthest to the nearest, so limbs cover each other as they should from every side, and the
canvas remembers which part of whom owns each pixel.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from math import hypot, inf
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from posefleet.data.schemas.shipped import COCO17
from posefleet.data.synthetic.bodies import ELLIPSOIDS, Body, Figure
from posefleet.data.synthetic.canvas import DIM, FLAT, Canvas, Colour, fixed_point, rgb, tinted
from posefleet.data.synthetic.postures import POINTS, SIDES, Vector

PARTS_PER_PERSON = 32
"""Owner numbers that one person takes: owner // PARTS_PER_PERSON is the person (from 1), the rest the ``Part``."""


class Part(IntEnum):
    """What a pixel of a person belongs to."""

    TRUNK = 1
    NECK = 2
    FACE = 3
    HAIR = 4
    LEFT_EAR = 5
    RIGHT_EAR = 6
    SKIRT = 7
    LEFT_UPPER_ARM = 8
    RIGHT_UPPER_ARM = 9
    LEFT_FOREARM = 10
    RIGHT_FOREARM = 11
    LEFT_THIGH = 12
    RIGHT_THIGH = 13
    LEFT_SHIN = 14
    RIGHT_SHIN = 15
    LEFT_FOOT = 16
    RIGHT_FOOT = 17
    SEAT = 18


@dataclass(frozen=True, slots=True)
class Painted:
    """Where the keypoints of a painted figure are."""

    keypoints: np.ndarray
    """(K, 2) float64 continuous image coordinates, inside the image or not."""
    turned: np.ndarray
    """(K,) uint8: best visibility (0, 1, 2) that the side shown to the viewer allows."""
    parts: np.ndarray = field(default_factory=lambda: KEYPOINT_PARTS)
    """(K, PARTS_PER_PERSON) bool: the parts on which a keypoint counts as visible. Default: those of people."""


def paint_figure(canvas: Canvas, figure: Figure, person: int, light: float = -0.6, detailed: bool = True) -> Painted:
    """Paint a person and tell where the keypoints are.

    Args:
        person: Number of this person on the canvas, from 1.
        light: Where the light comes from, -1 (left) to 1 (right).
        detailed: Without it, patterns, light and the face are left out: enough for people a few pixels high.
    """
    body = Body(figure, light)
    layers = sorted(_layers(body, detailed), key=attrgetter("depth"))
    hulls = iter(body.hulls([names for layer in layers for names in layer.hulls]))
    for layer in layers:
        outlines = [next(hulls) for _ in layer.hulls]
        if layer.flat:
            canvas.paint(outlines[0][0], layer.colour)
            continue
        owner = 0 if layer.part == Part.SEAT else person * PARTS_PER_PERSON + layer.part
        for outline, _ in outlines:
            canvas.fill(outline, layer.colour, owner, DIM if detailed else FLAT)
        if not detailed:
            continue
        for _, lit in outlines:
            canvas.brighten(lit)
        if layer.part == Part.TRUNK:
            _paint_shirt(canvas, body)
        elif layer.rings:
            _paint_rings(canvas, body, layer.hulls[0])
    return Painted(body.keypoints(), _best_visibility(body))


# ---------------------------------------------------------------------------------------------------- layers


class _Layer(NamedTuple):
    depth: float
    part: Part
    colour: Colour
    hulls: tuple[tuple[str, ...], ...]
    """Ellipsoids of each convex piece."""
    rings: bool = False
    """Whether the shirt's stripes go on round this part."""
    flat: bool = False
    """Only colour, on a part that is there already."""


def _layers(body: Body, detailed: bool) -> Iterator[_Layer]:
    """All parts, with depths that sort them from the farthest to the nearest."""
    look, front = body.look, body.face[2, 2] > 0
    trunk = (("pelvis", "waist"), ("waist", "chest"), ("chest", "collar"))
    yield _Layer(body.depth("waist", "chest"), Part.TRUNK, look.shirt, trunk)
    yield _Layer(body.depth("throat", "nape") - 0.03, Part.NECK, tinted(look.skin, 0.88), (("throat", "nape"),))
    for side in SIDES:
        yield from _limb_layers(body, side)
    if look.legwear == "skirt":
        depth = max(body.depth(f"{side}_hip", f"{side}_knee") for side in SIDES) + 0.012
        yield _Layer(depth, Part.SKIRT, look.bottom, (("waist", "pelvis"), ("pelvis", "left_hem", "right_hem")))
    if body.figure.seated:
        yield _Layer(-1.0, Part.SEAT, tinted(look.accent, 0.7), (tuple(f"seat_{i}" for i in range(8)),))
    if look.haircut == "long":
        yield _Layer(body.depth("locks") + (-0.03 if front else 0.03), Part.HAIR, look.hair, (("hair", "locks"),))
    head = body.depth("skull") + (0.02 if front else 0.0)
    for order, (name, part, colour) in enumerate(_head_layers(body, detailed)):
        names = ("skull", "jaw") if name == "skull" else (name,)
        yield _Layer(head + 1e-4 * order, part, colour, (names,), flat=name.endswith(_FLAT))


def _limb_layers(body: Body, side: str) -> Iterator[_Layer]:
    """An arm and a leg."""
    look = body.look
    bare_arms, long_sleeves = look.sleeves == "none", look.sleeves == "long"
    skirt, trousers = look.legwear == "skirt", look.legwear == "trousers"
    striped = look.pattern in ("rings", "checks")
    forearm = ("elbow", "wrist") if long_sleeves else ("bare_elbow", "bare_wrist")
    shin = ("knee" if trousers else "bare_knee", "ankle")
    toes = 1e-3 if body.figure.view[2, 2] > 0 else -1e-3  # toes come before the shin only from the front
    # Arms that hang beside the trunk come before it, the shirt hangs over the hips, the cuff covers the hand's end.
    # Each row: part, its ellipsoids, colour, whose depth it has, how much nearer it is, whether it can have rings.
    for name, ends, colour, bone, nearer, shirt in (
        ("UPPER_ARM", ("shoulder", "elbow"), look.skin if bare_arms else look.shirt, None, 0.03, not bare_arms),
        ("FOREARM", ("bare_wrist", "hand"), look.skin, forearm, 0.031, False),
        ("FOREARM", forearm, look.shirt if long_sleeves else look.skin, None, 0.032, long_sleeves),
        ("THIGH", ("hip", "knee"), look.skin if skirt else look.bottom, None, -0.06, False),
        ("SHIN", shin, look.bottom if trousers else look.skin, None, -0.061, False),
        ("FOOT", ("heel", "toe"), look.shoes, shin, -0.061 + toes, False),
    ):
        hull = (f"{side}_{ends[0]}", f"{side}_{ends[1]}")
        depth = body.depth(*hull) if bone is None else body.depth(f"{side}_{bone[0]}", f"{side}_{bone[1]}")
        yield _Layer(depth + nearer, Part[f"{side}_{name}".upper()], colour, (hull,), rings=striped and shirt)


def _head_layers(body: Body, detailed: bool) -> Iterator[tuple[str, Part, Colour]]:
    """Ellipsoid, part and colour of what makes a head, in painting order."""
    look, front = body.look, body.face[2, 2] > -0.15
    hairy, long = look.haircut != "bald", look.haircut == "long"
    hair = ("thick_hair" if long else "hair", Part.HAIR, look.hair)
    ears = {side: (f"{side}_ear", Part[f"{side.upper()}_EAR"], tinted(look.skin, 0.86)) for side in SIDES}
    near = {side: sign * body.face[2, 0] > 0.2 for side, sign in SIDES.items()}
    if hairy and front:
        yield hair
    yield from (ears[side] for side in SIDES if not near[side])
    yield "skull", Part.FACE, look.skin
    if front and detailed:
        for name, colour in _features(body):
            yield name, Part.FACE, colour
    if hairy and not front:
        yield hair
    if look.haircut == "bun":
        yield "bun", Part.HAIR, tinted(look.hair, 1.15)
    if look.haircut == "cap":
        yield "crown", Part.HAIR, look.accent
        if front:
            yield "brim", Part.HAIR, tinted(look.accent, 0.8)
    elif hairy and front:
        yield "fringe", Part.HAIR, tinted(look.hair, 1.08)
    if front or not long:  # long hair covers the ears from behind
        yield from (ears[side] for side in SIDES if near[side])


_FLAT = ("beard", "mouth", "lens", "eye", "pupil", "brow", "fringe")
"""Endings of what lies on the skull and never sticks out of it."""


def _features(body: Body) -> Iterator[tuple[str, Colour]]:
    """Ellipsoids and colours of beard, mouth, eyes, brows and nose, as far as they look towards the viewer."""
    look = body.look
    right, up, ahead = body.face[2].tolist()

    def facing(name: str) -> bool:
        x, y, z = ELLIPSOIDS[name].offset
        return bool(right * x + up * y + ahead * z > 0.12)

    red, green, blue = look.skin
    if look.beard and facing("beard"):
        yield "beard", look.hair
    if facing("mouth"):
        yield "mouth", rgb(0.62 * red + 50, 0.4 * green + 10, 0.4 * blue + 15)
    for side in SIDES:
        if not facing(f"{side}_eye"):
            continue
        if look.glasses:
            yield f"{side}_lens", (30, 30, 35)
        yield f"{side}_eye", (238, 236, 232)
        yield f"{side}_pupil", (35, 28, 26)
        yield f"{side}_brow", tinted(look.hair, 0.8)
    if ahead > -0.1:
        yield "nose", tinted(look.skin, 0.82)


# ---------------------------------------------------------------------------------------------------- patterns

_LEVELS = np.linspace(0, 1, 6)
"""Levels of a line up the trunk, see ``Body.trunk_surface``."""


def _paint_shirt(canvas: Canvas, body: Body) -> None:
    """Stripes, bars and dots that go round the trunk, and what only the front has."""
    look, height = body.look, body.figure.height
    round_trunk = np.arange(0, 360, 30) - body.towards_viewer()
    if look.pattern in ("rings", "checks"):
        rings = body.trunk_surface(np.linspace(0.03, 0.97, 8)[:, None], np.linspace(-82, 82, 9))
        canvas.strokes(rings, look.accent, height * 0.014)
    if look.pattern in ("bars", "checks"):
        angles = round_trunk + 15
        angles = angles[np.cos(np.deg2rad(angles)) > 0.1]
        canvas.strokes(body.trunk_surface(_LEVELS, angles[:, None]), look.accent, height * 0.01)
    if look.pattern == "dots":
        angles = (round_trunk + 180) % 360 - 180
        _paint_dots(canvas, body, np.linspace(0.06, 0.95, 7)[:, None], angles[np.abs(angles) < 75], look.accent, 0.016)
    ahead = 90.0 - body.towards_viewer()  # the middle of the chest
    if np.cos(np.deg2rad(ahead)) > 0.25:
        _paint_front(canvas, body, ahead)


def _paint_dots(
    canvas: Canvas, body: Body, levels: np.ndarray, angles: np.ndarray, colour: Colour, width: float
) -> None:
    """Dots on the trunk, ``width`` body heights wide."""
    dots = body.trunk_surface(levels, angles).reshape(-1, 1, 2)
    canvas.strokes(dots.repeat(2, 1), colour, width * body.figure.height)


def _paint_front(canvas: Canvas, body: Body, ahead: float) -> None:
    """What only the front of the shirt has, round the angle ``ahead``."""
    look, height = body.look, body.figure.height
    if look.front == "jacket":
        canvas.strokes(body.trunk_surface(_LEVELS, np.array([[ahead - 7], [ahead + 7]])), look.accent, height * 0.028)
        canvas.strokes(body.trunk_surface(_LEVELS, np.array([[ahead]])), tinted(look.accent, 0.6), height * 0.006)
    elif look.front == "buttons":
        _paint_dots(canvas, body, np.linspace(0.1, 0.95, 6), np.array([ahead]), tinted(look.accent, 0.7), 0.012)
        canvas.strokes(body.trunk_surface(_LEVELS, np.array([[ahead + 5]])), tinted(look.shirt, 0.7), 1)
    elif look.front in ("logo", "bib"):
        low, high = (0.55, 0.8) if look.front == "logo" else (0.15, 0.95)
        corners = body.trunk_surface(np.array([low, low, high, high]), np.array([-28, 28, 28, -28]) + ahead)
        canvas.paint(fixed_point(corners), look.accent)
        rows = np.array([[low + 0.08], [high - 0.08]])
        canvas.strokes(body.trunk_surface(rows, np.array([-15, 15]) + ahead), look.shirt, height * 0.01)


_STRIPES = np.linspace(0.12, 0.9, 5)[:, None]
"""Shares of a sleeve's length in the middle of each stripe."""


def _paint_rings(canvas: Canvas, body: Body, names: tuple[str, ...]) -> None:
    """Stripes across a sleeve."""
    joints = body.bones.points[[POINTS[ELLIPSOIDS[name].point] for name in names]]
    start, end = body.place(joints @ body.figure.view.T)
    x, y = (end - start).tolist()
    length = hypot(x, y)
    half = 0.027 * body.figure.height / max(length, 1.0)
    across = np.array([[y * half, -x * half], [-y * half, x * half]])
    canvas.strokes((start + _STRIPES * (end - start))[:, None] + across, body.look.accent, length / 11)


# ---------------------------------------------------------------------------------------------------- visibility


class _Seen(NamedTuple):
    """When a keypoint counts as visible."""

    parts: tuple[str, ...]
    """Parts on which it shows, those of a limb without the side."""
    frame: str = "hips"
    """Whose axes ``outward`` has: hips, trunk or face."""
    outward: Vector = (0, 0, 0)
    """Direction that a left keypoint faces."""
    hidden: float = -inf
    """It is hidden while ``outward`` points at the viewer by no more than this (1 straight at, -1 away)."""
    absent: float = -inf
    """It is not labelled while ``outward`` points at the viewer by no more than this."""


_SEEN = {
    "nose": _Seen(("FACE",), "face", (0, 0, 1.06), -0.2, -0.45),  # sticks out
    "eye": _Seen(("FACE",), "face", (0.4, 0, 0.9), 0.1, -0.35),
    "ear": _Seen(("EAR", "FACE"), "face", (1, 0, 0), -0.25, -0.85),
    "shoulder": _Seen(("UPPER_ARM", "TRUNK"), "trunk", (1, 0, 0), -0.75),
    "elbow": _Seen(("UPPER_ARM", "FOREARM")),
    "wrist": _Seen(("FOREARM",)),
    "hip": _Seen(("THIGH", "TRUNK", "SKIRT"), "hips", (1, 0, 0), -0.75),
    "knee": _Seen(("THIGH", "SHIN", "SKIRT")),
    "ankle": _Seen(("SHIN", "FOOT", "SKIRT")),
}
_RULES = [(name.rpartition("_")[0], _SEEN[name.rpartition("_")[2]]) for name in COCO17.keypoints]
"""Side and rule of each keypoint."""
_FRAMES = [("hips", "trunk", "face").index(seen.frame) for _, seen in _RULES]
_OUTWARD = np.array([np.multiply(seen.outward, (SIDES.get(side, 1.0), 1, 1)) for side, seen in _RULES])
_HIDDEN = np.array([seen.hidden for _, seen in _RULES])
_ABSENT = np.array([seen.absent for _, seen in _RULES])


def _keypoint_parts() -> np.ndarray:
    table = np.zeros((len(COCO17), PARTS_PER_PERSON), bool)
    for row, (side, seen) in zip(table, _RULES, strict=True):
        for name in seen.parts:
            sided = f"{side}_{name}".upper()
            row[Part[sided if sided in Part.__members__ else name]] = True
    return table


KEYPOINT_PARTS: np.ndarray = _keypoint_parts()
"""(17, PARTS_PER_PERSON) bool: the parts on which a keypoint counts as visible."""


def _best_visibility(body: Body) -> np.ndarray:
    """(17,) uint8: 2 on the side that the viewer sees, 1 on the far side, 0 for a face seen from behind."""
    towards = np.stack([body.figure.view[2], body.trunk[2], body.face[2]])[_FRAMES]  # (17, 3)
    nearness = np.einsum("ki,ki->k", towards, _OUTWARD)
    best: np.ndarray = (nearness > _ABSENT).astype(np.uint8) + (nearness > _HIDDEN)
    return best
