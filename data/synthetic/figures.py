"""Painted people: body, clothes, hair and face, seen from any side.

Parts are painted from the farthest to the nearest, so limbs cover each other as they should from every side, and the
canvas remembers which part of whom owns each pixel.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from math import hypot
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from posefleet.data.keypoints import COCO17
from posefleet.data.synthetic.bodies import HEAD_BLOBS, Body, Figure
from posefleet.data.synthetic.canvas import DIM, FLAT, Canvas, Colour, fixed_point, rgb, tinted
from posefleet.data.synthetic.postures import POINTS, SIDES

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
    """(17, 2) float64 continuous image coordinates, inside the picture or not."""
    turned: np.ndarray
    """(17,) uint8: best visibility (0, 1, 2) that the side shown to the viewer allows."""


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
            _paint_shirt_pattern(canvas, body)
        elif layer.rings:
            _paint_rings(canvas, body, layer.hulls[0])
    return Painted(body.keypoints(), body.best_visibility())


# ---------------------------------------------------------------------------------------------------- layers


class _Layer(NamedTuple):
    depth: float
    part: Part
    colour: Colour
    hulls: tuple[tuple[str, ...], ...]
    rings: bool = False
    """The shirt's stripes go on round this part."""
    flat: bool = False
    """Only colour: what lies on a part that is there already."""


def _layers(body: Body, detailed: bool) -> Iterator[_Layer]:
    """All parts, with depths that sort them from the farthest to the nearest."""
    look = body.look
    trunk = (("pelvis", "waist"), ("waist", "chest"), ("chest", "collar"))
    yield _Layer(body.depth("waist", "chest"), Part.TRUNK, look.shirt, trunk)
    yield _Layer(body.depth("throat", "nape") - 0.03, Part.NECK, tinted(look.skin, 0.88), (("throat", "nape"),))
    for side in SIDES:
        yield from _limb_layers(body, side)
    if look.legwear == "skirt":
        hulls = (("waist", "pelvis"), ("pelvis", "left_hem", "right_hem"))
        depth = max(body.depth(f"{side}_hip", f"{side}_knee") for side in SIDES) + 0.012
        yield _Layer(depth, Part.SKIRT, look.bottom, hulls)
    if body.figure.seated:
        seat = tuple(f"seat_{i}" for i in range(8))
        yield _Layer(-1.0, Part.SEAT, tinted(look.accent, 0.7), (seat,))
    depth = body.depth("skull") + (0.02 if body.face[2, 2] > 0 else 0.0)
    if look.haircut == "long":
        behind = -0.03 if body.face[2, 2] > 0 else 0.03
        yield _Layer(body.depth("locks") + behind, Part.HAIR, look.hair, (("hair", "locks"),))
    for order, (part, colour, name) in enumerate(_head_parts(body, detailed)):
        names = ("skull", "jaw") if name == "skull" else (name,)
        yield _Layer(depth + 1e-4 * order, part, colour, (names,), flat=name.endswith(_FLAT))


def _limb_layers(body: Body, side: str) -> Iterator[_Layer]:
    """An arm and a leg."""
    look, depth = body.look, body.depth
    prefix = side.upper()
    sleeve = look.skin if look.sleeves == "none" else look.shirt
    cuff, wrist = (look.shirt, "wrist") if look.sleeves == "long" else (look.skin, "bare_wrist")
    elbow = "elbow" if look.sleeves == "long" else "bare_elbow"
    upper, fore = (Part[f"{prefix}_UPPER_ARM"], Part[f"{prefix}_FOREARM"])
    striped = look.pattern in ("rings", "checks")
    over = 0.03  # an arm that hangs beside the trunk is painted after it
    arm = depth(f"{side}_shoulder", f"{side}_elbow") + over
    lower = depth(f"{side}_elbow", f"{side}_wrist") + over
    names = (f"{side}_shoulder", f"{side}_elbow")
    yield _Layer(arm, upper, sleeve, (names,), rings=striped and look.sleeves != "none")
    # The hand and a bare forearm come before the cuff that covers their ends.
    yield _Layer(lower + 1e-3, fore, look.skin, ((f"{side}_bare_wrist", f"{side}_hand"),))
    names = (f"{side}_{elbow}", f"{side}_{wrist}")
    yield _Layer(lower + 2e-3, fore, cuff, (names,), rings=striped and look.sleeves == "long")
    thigh, shin, foot = (Part[f"{prefix}_{name}"] for name in ("THIGH", "SHIN", "FOOT"))
    knee = "knee" if look.legwear == "trousers" else "bare_knee"
    upper_leg = look.skin if look.legwear == "skirt" else look.bottom
    lower_leg = look.bottom if look.legwear == "trousers" else look.skin
    under = 0.06  # the shirt hangs over the hips
    leg = depth(f"{side}_hip", f"{side}_knee") - under
    calf = depth(f"{side}_knee", f"{side}_ankle") - under - 1e-3
    yield _Layer(leg, thigh, upper_leg, ((f"{side}_hip", f"{side}_knee"),))
    yield _Layer(calf, shin, lower_leg, ((f"{side}_{knee}", f"{side}_ankle"),))
    sole = calf + (1e-3 if body.figure.view[2, 2] > 0 else -1e-3)  # toes come before the shin only from the front
    yield _Layer(sole, foot, look.shoes, ((f"{side}_heel", f"{side}_toe"),))


def _head_parts(body: Body, detailed: bool) -> Iterator[tuple[Part, Colour, str]]:
    """Part, colour and ellipsoid of what makes a head, in painting order."""
    look, front, leftness = body.look, body.face[2, 2] > -0.15, body.face[2, 0]
    sides = {"left": leftness, "right": -leftness}
    crop = "thick_hair" if look.haircut == "long" else "hair"
    hairy = look.haircut != "bald"
    if hairy and front:
        yield Part.HAIR, look.hair, crop
    for side, nearness in sides.items():
        if nearness <= 0.2:
            yield Part[f"{side.upper()}_EAR"], tinted(look.skin, 0.86), f"{side}_ear"
    yield Part.FACE, look.skin, "skull"
    if front and detailed:
        yield from _features(body)
    if hairy and not front:
        yield Part.HAIR, look.hair, crop
    if look.haircut == "bun":
        yield Part.HAIR, tinted(look.hair, 1.15), "bun"
    if look.haircut == "cap":
        yield Part.HAIR, look.accent, "crown"
        if front:
            yield Part.HAIR, tinted(look.accent, 0.8), "brim"
    elif hairy and front:
        yield Part.HAIR, tinted(look.hair, 1.08), "fringe"
    for side, nearness in sides.items():
        if nearness > 0.2 and not (look.haircut == "long" and not front):
            yield Part[f"{side.upper()}_EAR"], tinted(look.skin, 0.86), f"{side}_ear"


_FLAT = ("beard", "mouth", "lens", "eye", "pupil", "brow", "fringe")
"""What lies on the skull and never sticks out of it."""


def _features(body: Body) -> Iterator[tuple[Part, Colour, str]]:
    """Eyes, brows, nose and mouth, as far as they look towards the viewer."""
    look = body.look
    right, up, ahead = body.face[2].tolist()

    def facing(name: str) -> bool:
        x, y, z = HEAD_BLOBS[name][0]
        return bool(right * x + up * y + ahead * z > 0.12)

    if look.beard and facing("beard"):
        yield Part.FACE, look.hair, "beard"
    if facing("mouth"):
        yield Part.FACE, rgb(0.62 * look.skin[0] + 50, 0.4 * look.skin[1] + 10, 0.4 * look.skin[2] + 15), "mouth"
    for side in SIDES:
        if not facing(f"{side}_eye"):
            continue
        if look.glasses:
            yield Part.FACE, (30, 30, 35), f"{side}_lens"
        yield Part.FACE, (238, 236, 232), f"{side}_eye"
        yield Part.FACE, (35, 28, 26), f"{side}_pupil"
        yield Part.FACE, tinted(look.hair, 0.8), f"{side}_brow"
    if ahead > -0.1:
        yield Part.FACE, tinted(look.skin, 0.82), "nose"


# ---------------------------------------------------------------------------------------------------- patterns


def _paint_shirt_pattern(canvas: Canvas, body: Body) -> None:
    """Stripes, bars and dots that go round the trunk, and what only the front has."""
    look, height = body.look, body.figure.height
    if look.pattern in ("rings", "checks"):
        canvas.strokes(body.trunk_surface(_RING_LEVELS, _RING_ANGLES), look.accent, height * 0.014)
    if look.pattern in ("bars", "checks"):
        angles = np.arange(0, 360, 30) + 15.0 - body.towards_viewer()
        angles = angles[np.cos(np.deg2rad(angles)) > 0.1]
        canvas.strokes(body.trunk_surface(_UPWARDS, angles[:, None]), look.accent, height * 0.01)
    if look.pattern == "dots":
        angles = (np.arange(0, 360, 30) - body.towards_viewer() + 180) % 360 - 180
        angles = angles[np.abs(angles) < 75]
        dots = body.trunk_surface(_DOT_LEVELS, angles).reshape(-1, 1, 2)
        canvas.strokes(np.repeat(dots, 2, 1), look.accent, height * 0.016)
    ahead = 90.0 - body.towards_viewer()  # the middle of the chest
    if np.cos(np.deg2rad(ahead)) > 0.25 and look.front != "nothing":
        _paint_front(canvas, body, ahead)


_RING_LEVELS, _RING_ANGLES = np.linspace(0.03, 0.97, 8)[:, None], np.linspace(-82, 82, 9)
_DOT_LEVELS, _BUTTON_LEVELS, _UPWARDS = (
    np.linspace(0.06, 0.95, 7)[:, None],
    np.linspace(0.1, 0.95, 6),
    np.linspace(0, 1, 6),
)


def _paint_front(canvas: Canvas, body: Body, ahead: float) -> None:
    look, height = body.look, body.figure.height
    if look.front == "jacket":
        canvas.strokes(body.trunk_surface(_UPWARDS, np.array([[ahead - 7], [ahead + 7]])), look.accent, height * 0.028)
        canvas.strokes(body.trunk_surface(_UPWARDS, np.array([[ahead]])), tinted(look.accent, 0.6), height * 0.006)
    elif look.front == "buttons":
        dots = body.trunk_surface(_BUTTON_LEVELS, np.array([ahead]))
        canvas.strokes(np.repeat(dots[:, None], 2, 1), tinted(look.accent, 0.7), height * 0.012)
        canvas.strokes(body.trunk_surface(_UPWARDS, np.array([[ahead + 5]])), tinted(look.shirt, 0.7), 1)
    else:
        low, high = (0.55, 0.8) if look.front == "logo" else (0.15, 0.95)
        levels, angles = np.array([low, low, high, high]), np.array([-28, 28, 28, -28]) + ahead
        canvas.paint(fixed_point(body.trunk_surface(levels, angles)), look.accent)
        rows = np.array([[low + 0.08], [high - 0.08]])
        canvas.strokes(body.trunk_surface(rows, np.array([-15, 15]) + ahead), look.shirt, height * 0.01)


def _paint_rings(canvas: Canvas, body: Body, names: tuple[str, ...]) -> None:
    """Stripes across a sleeve."""
    joints = body.bones.points[[POINTS[name.replace("bare_", "")] for name in names]]
    ends = body.place(joints @ body.figure.view.T)
    x, y = (ends[1] - ends[0]).tolist()
    length = hypot(x, y)
    half = 0.027 * body.figure.height / max(length, 1.0)
    across = np.array([[y * half, -x * half], [-y * half, x * half]])
    canvas.strokes((_STRIPES @ ends)[:, None] + across, body.look.accent, length / 11)


_STRIPES = np.stack([1 - np.linspace(0.12, 0.9, 5), np.linspace(0.12, 0.9, 5)], 1)
"""Shares of a sleeve's start and end in the middle of each stripe."""


# ---------------------------------------------------------------------------------------------------- visibility


def _keypoint_parts() -> np.ndarray:
    shown_on = {
        "nose": ("FACE",), "eye": ("FACE",), "ear": ("{side}_EAR", "FACE"),
        "shoulder": ("{side}_UPPER_ARM", "TRUNK"), "elbow": ("{side}_UPPER_ARM", "{side}_FOREARM"),
        "wrist": ("{side}_FOREARM",), "hip": ("{side}_THIGH", "TRUNK", "SKIRT"),
        "knee": ("{side}_THIGH", "{side}_SHIN", "SKIRT"), "ankle": ("{side}_SHIN", "{side}_FOOT", "SKIRT"),
    }  # fmt: skip
    table = np.zeros((len(COCO17), PARTS_PER_PERSON), bool)
    for i, name in enumerate(COCO17.keypoints):
        side, _, kind = name.rpartition("_")
        for part in shown_on[kind]:
            table[i, Part[part.format(side=side.upper())]] = True
    return table


KEYPOINT_PARTS = _keypoint_parts()
"""(17, PARTS_PER_PERSON) bool: the parts on which a keypoint counts as visible."""
