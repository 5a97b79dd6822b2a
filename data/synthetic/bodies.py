"""The bodies of synthetic people: ellipsoids on a skeleton, as the viewer sees them, and where their keypoints are.

Every part of a person (a sleeve, a shin, the skull) is the convex hull of the outlines of one to three ellipsoids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import atan2, degrees
from typing import NamedTuple

import numpy as np

from posefleet.data.schemas.shipped import COCO17
from posefleet.data.synthetic.canvas import Colour, random_colour, tinted
from posefleet.data.synthetic.postures import (
    POINTS,
    SIDES,
    Build,
    Posture,
    Skeleton,
    Vector,
    pick,
    random_build,
    random_posture,
    skeleton,
    upright_posture,
    view_axes,
)
from posefleet.data.synthetic.projection import Projection


@dataclass(frozen=True, slots=True)
class Look:
    """What a person wears and looks like."""

    skin: Colour
    hair: Colour
    shirt: Colour
    accent: Colour
    """Colour of the shirt's pattern and front."""
    bottom: Colour
    shoes: Colour
    sleeves: str
    """none, short, long."""
    legwear: str
    """trousers, shorts, skirt."""
    pattern: str
    """plain, rings, bars, checks, dots."""
    front: str
    """What only the front of the shirt has: nothing, logo, buttons, jacket, bib."""
    haircut: str
    """bald, short, long, bun, cap."""
    hem: float
    """Length of the skirt in thighs."""
    beard: bool
    glasses: bool


@dataclass(frozen=True, slots=True)
class Figure:
    """One person, ready to be painted at a place of the image."""

    bones: Skeleton
    build: Build
    look: Look
    seated: bool
    view: np.ndarray
    """(3, 3), see ``view_axes``."""
    height: float
    """Pixels that the person would measure standing."""
    origin: tuple[float, float]
    """Where the point between the hips is, pixels."""


_SKINS: tuple[Colour, ...] = (
    (244, 208, 177), (231, 180, 143), (210, 153, 108), (165, 114, 80), (120, 80, 56), (88, 58, 42)
)  # fmt: skip
_HAIRS: dict[Colour, float] = {
    (28, 22, 20): 0.27, (60, 40, 26): 0.24, (110, 72, 40): 0.17, (190, 150, 90): 0.14, (150, 70, 35): 0.08,
    (170, 168, 165): 0.07, (90, 60, 120): 0.03,
}  # fmt: skip
_JEANS: Colour = (45, 60, 95)


def random_look(rng: np.random.Generator) -> Look:
    """Clothes, skin and hair."""
    skin = tinted(_SKINS[int(rng.integers(len(_SKINS)))], rng.uniform(0.9, 1.06))
    jeans = tinted(_JEANS, rng.uniform(0.5, 1.7))
    legwear = pick(rng, {"trousers": 0.6, "shorts": 0.22, "skirt": 0.18})
    haircut = pick(rng, {"bald": 0.08, "short": 0.4, "long": 0.27, "bun": 0.12, "cap": 0.13})
    return Look(
        skin=skin,
        hair=pick(rng, _HAIRS),
        shirt=random_colour(rng),
        accent=random_colour(rng),
        bottom=jeans if rng.random() < 0.35 else random_colour(rng),
        shoes=random_colour(rng),
        sleeves=pick(rng, {"none": 0.15, "short": 0.45, "long": 0.4}),
        legwear=legwear,
        pattern=pick(rng, {"plain": 0.42, "rings": 0.2, "bars": 0.12, "checks": 0.14, "dots": 0.12}),
        front=pick(rng, {"nothing": 0.25, "logo": 0.25, "buttons": 0.15, "jacket": 0.25, "bib": 0.1}),
        haircut=haircut,
        hem=rng.uniform(0.6, 1.7),
        beard=haircut in ("bald", "short", "cap") and legwear != "skirt" and rng.random() < 0.3,
        glasses=rng.random() < 0.15,
    )


def random_figure(rng: np.random.Generator, height: float, variety: float = 1.0) -> Figure:
    """A random person with the hips at (0, 0).

    Args:
        height: Pixels that the person would measure standing.
        variety: Probability of any posture seen from anywhere, mostly from the front; the others are upright and face
            the viewer.
    """
    varied = rng.random() < variety
    kind = rng.random()
    yaw = rng.normal(0, 35) if kind < 0.5 else rng.normal(180, 30) if kind < 0.72 else rng.uniform(-180, 180)
    posture = random_posture(rng) if varied else upright_posture(rng)
    yaw = yaw if varied else rng.normal(0, 20)
    return make_figure(posture, random_build(rng), random_look(rng), height, yaw, rng.uniform(-3, 20))


def make_figure(
    posture: Posture, build: Build, look: Look, height: float, yaw: float = 0.0, pitch: float = 0.0
) -> Figure:
    """A person with the hips at (0, 0); see ``view_axes`` for the angles."""
    bones = skeleton(posture, build)
    return Figure(bones, build, look, posture.seated, view_axes(yaw, pitch, posture.roll), height, (0.0, 0.0))


def extent(figure: Figure) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the skeleton relative to the figure's origin, pixels."""
    seen = figure.bones.points @ figure.view[:2].T * (figure.height, -figure.height)
    (left, top), (right, bottom) = seen.min(0).tolist(), seen.max(0).tolist()
    return left, top - 0.08 * figure.height * figure.build.head, right, bottom + 0.02 * figure.height


# ---------------------------------------------------------------------------------------------------- ellipsoids


class Ellipsoid(NamedTuple):
    """One ellipsoid of a body. Lengths are in units of ``size``."""

    point: str
    """Point of the skeleton on which it sits."""
    half_axes: Vector
    size: str = "fixed"
    """A key of ``_sizes``: body heights, or body heights that depend on build and clothes."""
    offset: Vector = (0.0, 0.0, 0.0)
    """From the point to the centre, along the axes of ``frame``."""
    frame: str = "hips"
    """Whose axes it has: hips, trunk or face."""


def _ball(point: str, radius: float, size: str = "fixed", offset: Vector = (0, 0, 0), frame: str = "hips") -> Ellipsoid:
    return Ellipsoid(point, (radius,) * 3, size, offset, frame)


def _on_head(offset: Vector, half_axes: Vector) -> Ellipsoid:
    return Ellipsoid("head", half_axes, "head", offset, "face")


_CENTRAL = {
    "pelvis": Ellipsoid("pelvis", (0.093, 0.055, 0.066), "lower_trunk"),  # does not lean with the rest
    "waist": Ellipsoid("waist", (0.083, 0.05, 0.058), "lower_trunk", frame="trunk"),
    "chest": Ellipsoid("chest", (0.1, 0.06, 0.066), "upper_trunk", frame="trunk"),
    "collar": Ellipsoid("collar", (0.09, 0.035, 0.048), "upper_trunk", frame="trunk"),
    "throat": _ball("neck", 0.03, offset=(0, -0.02, 0), frame="trunk"),
    "nape": _ball("neck", 0.028, offset=(0, 0.03, 0), frame="trunk"),
    "skull": _on_head((0, 0, 0), (1, 1, 1)),
    "jaw": _on_head((0, -0.45, 0.25), (0.72, 0.55, 0.65)),
    "hair": _on_head((0, 0.17, -0.24), (1.03, 0.98, 0.98)),
    "thick_hair": _on_head((0, 0.12, -0.2), (1.22, 1.05, 1.02)),
    "locks": _on_head((0, -1.0, -0.5), (1.05, 0.6, 0.45)),
    "bun": _on_head((0, 0.75, -1.0), (0.5, 0.45, 0.5)),
    "fringe": _on_head((0, 0.66, 0.16), (0.84, 0.4, 0.8)),
    "crown": _on_head((0, 0.5, -0.02), (1.08, 0.65, 1.04)),
    "brim": _on_head((0, 0.42, 1.05), (0.75, 0.1, 0.6)),
    "beard": _on_head((0, -0.62, 0.42), (0.66, 0.42, 0.62)),
    "mouth": _on_head((0, -0.55, 0.9), (0.33, 0.07, 0.12)),
    "nose": _on_head((0, -0.16, 1.0), (0.17, 0.24, 0.2)),
}
_LEFT = {  # mirrored for the right side
    "shoulder": _ball("shoulder", 0.036, "sleeve"),
    "elbow": _ball("elbow", 0.026, "sleeve"),
    "bare_elbow": _ball("elbow", 0.026, "flesh"),
    "wrist": _ball("wrist", 0.019, "cuff"),
    "bare_wrist": _ball("wrist", 0.017),
    "hand": _ball("hand", 0.018),
    "hip": _ball("hip", 0.06, "legwear"),
    "knee": _ball("knee", 0.04, "legwear"),
    "bare_knee": _ball("knee", 0.036, "flesh"),
    "ankle": _ball("ankle", 0.025, "trouser_end"),
    "heel": _ball("heel", 0.026),
    "toe": _ball("toe", 0.02),
    "hem": _ball("hip", 0.055, "girth"),  # moved to the end of the skirt by ``_ellipsoids``
    "ear": _on_head((1.08, -0.02, -0.1), (0.16, 0.28, 0.22)),
    "eye": _on_head((0.4, 0.12, 0.86), (0.2, 0.12, 0.12)),
    "pupil": _on_head((0.4, 0.12, 0.9), (0.1, 0.11, 0.1)),
    "brow": _on_head((0.42, 0.36, 0.84), (0.28, 0.06, 0.12)),
    "lens": _on_head((0.42, 0.1, 0.92), (0.34, 0.26, 0.12)),
}
_SEAT = {  # corners of a seat, moved below the knees by ``_ellipsoids``
    f"seat_{i}": _ball("pelvis", 0.01, offset=corner)
    for i, corner in enumerate(product((-0.13, 0.13), (-0.06, -0.26), (-0.12, 0.14)))
}


def _mirrored(left: Ellipsoid, side: str) -> Ellipsoid:
    """An ellipsoid of the left side on either side."""
    x, y, z = left.offset
    point = f"{side}_{left.point}"
    return left._replace(point=point if point in POINTS else left.point, offset=(SIDES[side] * x, y, z))


ELLIPSOIDS = (
    _CENTRAL | _SEAT | {f"{side}_{name}": _mirrored(left, side) for side in SIDES for name, left in _LEFT.items()}
)
"""All ellipsoids of a body by name; what a person does not wear is never painted."""

_INDEX = {name: i for i, name in enumerate(ELLIPSOIDS)}
_POINT_ROWS = [POINTS[ellipsoid.point] for ellipsoid in ELLIPSOIDS.values()]
_HALF_AXES = np.array([ellipsoid.half_axes for ellipsoid in ELLIPSOIDS.values()], float)
_OFFSETS = np.array([ellipsoid.offset for ellipsoid in ELLIPSOIDS.values()], float)
_FRAMES = [("hips", "trunk", "face").index(ellipsoid.frame) for ellipsoid in ELLIPSOIDS.values()]
_SEAT_ROWS = [_INDEX[name] for name in _SEAT]
_HEM_ROWS = [_INDEX[f"{side}_hem"] for side in SIDES]
_LEG_ROWS = [[POINTS[f"{side}_{joint}"] for side in SIDES] for joint in ("hip", "knee", "ankle")]
_RINGS = [_INDEX[name] for name in ("pelvis", "waist", "chest", "collar")]

_SKULL = np.array([0.052, 0.072, 0.06])
"""Half axes of the head, body heights."""


def _sizes(build: Build, look: Look) -> dict[str, Sequence[float]]:
    """Units of the ellipsoids along their three axes, body heights."""
    girth, trousers = build.girth, look.legwear == "trousers"
    return {
        "fixed": (1.0,) * 3,
        "girth": (girth,) * 3,
        "flesh": (girth**0.5,) * 3,
        "sleeve": ({"none": 0.95, "short": 1.15, "long": 1.1}[look.sleeves] * girth**0.6,) * 3,
        "cuff": (1.25 if look.sleeves == "long" else 1.0,) * 3,
        "legwear": ({"trousers": 1.12, "shorts": 1.25, "skirt": 1.0}[look.legwear] * girth**0.8,) * 3,
        "trouser_end": (1.35 if trousers else 1.0,) * 3,
        "lower_trunk": (girth**0.7, 1.0, girth),
        "upper_trunk": (build.shoulders, 1.0, girth),
        "head": (build.head * _SKULL).tolist(),
    }


def _ellipsoids(figure: Figure) -> tuple[np.ndarray, np.ndarray]:
    """Centres (E, 3) and half axes (E, 3, 3; columns) in the order of ``ELLIPSOIDS``, body frame."""
    bones, look, points = figure.bones, figure.look, figure.bones.points
    sizes = _sizes(figure.build, look)
    size = np.array([sizes[ellipsoid.size] for ellipsoid in ELLIPSOIDS.values()])
    frames = np.stack([np.eye(3), bones.trunk, bones.face])[_FRAMES]
    centres = points[_POINT_ROWS] + np.einsum("eij,ej->ei", frames, size * _OFFSETS)
    hip, knee, ankle = points[_LEG_ROWS]
    centres[_HEM_ROWS] = hip + min(look.hem, 1.0) * (knee - hip) + max(0.0, look.hem - 1.0) * (ankle - knee)
    centres[_SEAT_ROWS, 1] += min(float(points[POINTS["left_knee"], 1]), -0.02)
    return centres, frames * (size * _HALF_AXES)[:, None]


# ---------------------------------------------------------------------------------------------------- projection

_FACE_KEYPOINTS = {
    "nose": (0, -0.12, 1.06), "left_eye": (0.4, 0.12, 0.9), "right_eye": (-0.4, 0.12, 0.9),
    "left_ear": (1.1, -0.02, -0.1), "right_ear": (-1.1, -0.02, -0.1),
}  # fmt: skip
"""Places on the head, in its half axes; COCO17 begins with them."""
_FACE_PLACES = np.array([_FACE_KEYPOINTS[name] for name in COCO17.keypoints[: len(_FACE_KEYPOINTS)]])
_JOINTS = [POINTS[name] for name in COCO17.keypoints[len(_FACE_KEYPOINTS) :]]


class Body:
    """The ellipsoids of a figure, projected into the image."""

    def __init__(self, figure: Figure, light: float) -> None:
        self.figure, self.look, self.bones = figure, figure.look, figure.bones
        self.trunk = figure.view @ self.bones.trunk
        """(3, 3) axes of the trunk as the viewer sees them."""
        self.face = figure.view @ self.bones.face
        """(3, 3) axes of the head as the viewer sees them."""
        centres, axes = _ellipsoids(figure)
        self._seen = seen = Projection(centres, axes, figure.view, figure.height, figure.origin, light)
        self._rings = np.concatenate([seen.places[_RINGS], seen.axes[_RINGS, :, 0], seen.axes[_RINGS, :, 2]], 1)
        """(4, 6) pixels: for each of the trunk's ellipsoids the centre, its left and its front half axis."""

    def place(self, seen: np.ndarray) -> np.ndarray:
        """Viewer's (..., 3) body heights to (..., 2) pixels."""
        return self._seen.place(seen)

    def hulls(self, parts: Sequence[tuple[str, ...]]) -> np.ndarray:
        """Convex hulls of groups of ellipsoids, (len(parts), 2, 16, 2) fixed point: the whole and its lit part."""
        most = max(map(len, parts))
        return self._seen.hulls(np.array([_members(names, most) for names in parts]))

    def depth(self, *names: str) -> float:
        """Mean depth of ellipsoids; larger is nearer to the viewer."""
        return sum([self._seen.depths[_INDEX[name]] for name in names]) / len(names)

    def keypoints(self) -> np.ndarray:
        """(17, 2) continuous image coordinates in the order of COCO17."""
        points = self.bones.points
        face = points[POINTS["head"]] + _FACE_PLACES * (_SKULL * self.figure.build.head) @ self.bones.face.T
        return self.place(np.concatenate([face, points[_JOINTS]]) @ self.figure.view.T)

    def towards_viewer(self) -> float:
        """Angle round the trunk (0 its left, 90 its front) of the surface that looks at the viewer, degrees."""
        width, _, thickness = ELLIPSOIDS["chest"].half_axes
        return degrees(atan2(self.trunk[2, 2] / thickness, self.trunk[2, 0] / width))

    def trunk_surface(self, level: np.ndarray, angle: np.ndarray) -> np.ndarray:
        """Points of the trunk's surface, (..., 2) pixels.

        Args:
            level: From 0 (hips) to 1 (collar), any shape.
            angle: Degrees round the trunk from the place that looks at the viewer; broadcasts with ``level``.
        """
        turn = np.deg2rad(angle + self.towards_viewer())[..., None]
        rings = np.arange(len(self._rings))
        ring = np.maximum(0.0, 1 - np.abs(level[..., None] * rings[-1] - rings)) @ self._rings  # between two neighbours
        points: np.ndarray = ring[..., :2] + np.cos(turn) * ring[..., 2:4] + np.sin(turn) * ring[..., 4:]
        return points


@cache
def _members(names: tuple[str, ...], length: int) -> list[int]:
    """Rows of ellipsoids, the last one repeated up to ``length``."""
    return [_INDEX[name] for name in names] + [_INDEX[names[-1]]] * (length - len(names))
