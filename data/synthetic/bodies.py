"""The bodies of synthetic people: ellipsoids on a skeleton, as the viewer sees them, and where their keypoints are.

Every part of a person (a sleeve, a shin, the skull) is the convex hull of the outlines of one to three ellipsoids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import atan2, degrees

import numpy as np

from posefleet.data.keypoints import COCO17
from posefleet.data.synthetic.canvas import Colour, fixed_point, random_colour, tinted
from posefleet.data.synthetic.postures import (
    POINTS,
    SIDES,
    Build,
    Posture,
    Skeleton,
    pick,
    random_build,
    random_posture,
    skeleton,
    upright_posture,
    view_axes,
)


@dataclass(frozen=True, slots=True)
class Look:
    """What a person wears and looks like."""

    skin: Colour
    hair: Colour
    shirt: Colour
    accent: Colour
    """Of the shirt's pattern and front."""
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
    """One person, ready to be painted at a place of the picture."""

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


def random_look(rng: np.random.Generator) -> Look:
    """Clothes, skin and hair."""
    skin = tinted(_SKINS[int(rng.integers(len(_SKINS)))], rng.uniform(0.9, 1.06))
    jeans = tinted((45, 60, 95), rng.uniform(0.5, 1.7))
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


_SKINS: tuple[Colour, ...] = (
    (244, 208, 177), (231, 180, 143), (210, 153, 108), (165, 114, 80), (120, 80, 56), (88, 58, 42)
)  # fmt: skip
_HAIRS: dict[Colour, float] = {
    (28, 22, 20): 0.27, (60, 40, 26): 0.24, (110, 72, 40): 0.17, (190, 150, 90): 0.14, (150, 70, 35): 0.08,
    (170, 168, 165): 0.07, (90, 60, 120): 0.03,
}  # fmt: skip


def random_figure(rng: np.random.Generator, height: float, variety: float = 1.0) -> Figure:
    """A person at the origin: with probability ``variety`` in any posture and seen from anywhere, mostly from the
    front; otherwise upright and facing the viewer."""
    anything = rng.random() < variety
    kind = rng.random()
    yaw = rng.normal(0, 35) if kind < 0.5 else rng.normal(180, 30) if kind < 0.72 else rng.uniform(-180, 180)
    posture = random_posture(rng) if anything else upright_posture(rng)
    yaw = yaw if anything else rng.normal(0, 20)
    return make_figure(posture, random_build(rng), random_look(rng), height, yaw, rng.uniform(-3, 20))


def make_figure(
    posture: Posture, build: Build, look: Look, height: float, yaw: float = 0.0, pitch: float = 0.0
) -> Figure:
    """A person at the origin; see ``view_axes`` for the angles."""
    bones = skeleton(posture, build)
    return Figure(bones, build, look, posture.seated, view_axes(yaw, pitch, posture.roll), height, (0.0, 0.0))


def extent(figure: Figure) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the skeleton relative to the figure's origin, pixels."""
    seen = figure.bones.points @ figure.view[:2].T * (figure.height, -figure.height)
    (left, top), (right, bottom) = seen.min(0).tolist(), seen.max(0).tolist()
    return left, top - 0.08 * figure.height * figure.build.head, right, bottom + 0.02 * figure.height


# ---------------------------------------------------------------------------------------------------- ellipsoids


class Body:
    """The ellipsoids of a figure, projected once and for all."""

    def __init__(self, figure: Figure, light: float) -> None:
        self.figure = figure
        self.look = figure.look
        self.bones = figure.bones
        self.trunk = figure.view @ self.bones.trunk  # axes as the viewer sees them
        self.face = figure.view @ self.bones.face
        ball_centres, radii = _balls(figure)
        blob_centres, axes = _blobs(figure)
        centres = np.concatenate([ball_centres, blob_centres]) @ figure.view.T
        self._depths: list[float] = centres[:, 2].tolist()
        places = self.place(centres)
        # An ellipsoid with half axes A in the image plane reaches |A' u| far in direction u, at A A' u / |A' u|.
        axes = figure.view[:2] * [[figure.height], [-figure.height]] @ axes
        along = _DIRECTIONS @ axes
        reach = np.sqrt(np.einsum("bdi,bdi->bd", along, along))
        edge = along @ axes.transpose(0, 2, 1) / reach[..., None]
        radii = radii[:, None] * figure.height
        reach = np.concatenate([np.broadcast_to(radii, (len(radii), len(_DIRECTIONS))), reach])
        edge = np.concatenate([radii[..., None] * _DIRECTIONS, edge])
        towards_light = reach[:, [0, len(_DIRECTIONS) // 4]] * (0.25 * light, -0.12)
        middles = np.stack([places, places + towards_light], 1)  # of the whole and of its lit part
        self._outlines = middles[:, :, None] + _PARTS[:, None, None] * edge[:, None]
        self._reaches = middles @ _DIRECTIONS.T + _PARTS[:, None] * reach[:, None]
        trunk = slice(len(ball_centres), len(ball_centres) + len(_TRUNK_RINGS))
        self._rings = np.concatenate([places[trunk], *axes[: len(_TRUNK_RINGS), :, ::2].transpose(2, 0, 1)], 1)
        """(4, 6) pixels: for each of the trunk's ellipsoids the centre, its left and its front half axis."""

    def place(self, seen: np.ndarray) -> np.ndarray:
        """Viewer's (..., 3) body heights to (..., 2) pixels."""
        return seen[..., :2] * (self.figure.height, -self.figure.height) + self.figure.origin

    def hulls(self, parts: Sequence[tuple[str, ...]]) -> np.ndarray:
        """Convex hulls of groups of ellipsoids, (len(parts), 2, 16, 2) fixed point: the whole and its lit part.

        The farthest that a hull reaches in a direction is the farthest that any of its members reaches.
        """
        most = max(map(len, parts))
        members = np.array([_members(names, most) for names in parts])
        farthest = self._reaches[members].argmax(1)  # (parts, 2, 16)
        owners = members[np.arange(len(parts))[:, None, None], farthest]
        corners = owners * _CORNERS.size + _CORNERS
        return fixed_point(self._outlines.reshape(-1, 2).take(corners, axis=0))

    def depth(self, *names: str) -> float:
        """Mean depth of ellipsoids, larger is nearer to the viewer."""
        return sum([self._depths[_INDEX[name]] for name in names]) / len(names)

    def keypoints(self) -> np.ndarray:
        """(17, 2) continuous image coordinates in the order of COCO17."""
        points = self.bones.points
        face = points[POINTS["head"]] + _FACE_PLACES * (_SKULL * self.figure.build.head) @ self.bones.face.T
        return self.place(np.concatenate([face, points[_JOINTS]]) @ self.figure.view.T)

    def best_visibility(self) -> np.ndarray:
        """(17,) uint8: 2 on the side that the viewer sees, 1 on the far side, 0 for a face seen from behind."""
        towards = np.stack([self.face[2], self.trunk[2], self.figure.view[2]])[_FRAMES]  # (17, 3)
        nearness = np.einsum("ki,ki->k", towards, _NORMALS)
        best: np.ndarray = (nearness > _UNSEEN).astype(np.uint8) + (nearness > _FAR)
        return best

    def towards_viewer(self) -> float:
        """Angle round the trunk (0 its left, 90 its front) of the surface that looks at the viewer, degrees."""
        width, _, thickness = _TRUNK_RINGS["chest"]
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


_DIRECTIONS = np.stack([np.cos(np.arange(16) * np.pi / 8), np.sin(np.arange(16) * np.pi / 8)], 1)
_PARTS = np.array([1.0, 0.6])
"""Size of the whole of an ellipsoid and of its lit part."""
_CORNERS = np.arange(len(_PARTS) * len(_DIRECTIONS)).reshape(len(_PARTS), len(_DIRECTIONS))
_SKULL = np.array([0.052, 0.072, 0.06])
"""Half axes of the head, body heights."""
_TRUNK_RINGS = {
    "pelvis": (0.093, 0.055, 0.066),
    "waist": (0.083, 0.05, 0.058),
    "chest": (0.1, 0.06, 0.066),
    "collar": (0.09, 0.035, 0.048),
}
"""Half axes of the trunk's ellipsoids, from below."""
_TRUNK_HALF_AXES = np.array(list(_TRUNK_RINGS.values()))
_TRUNK_POINTS = [POINTS[name] for name in _TRUNK_RINGS]
_FACE_KEYPOINTS = {
    "nose": np.array([0, -0.12, 1.06]),
    "left_eye": np.array([0.4, 0.12, 0.9]),
    "right_eye": np.array([-0.4, 0.12, 0.9]),
    "left_ear": np.array([1.1, -0.02, -0.1]),
    "right_ear": np.array([-1.1, -0.02, -0.1]),
}
"""Places on the head, in its half axes; COCO17 begins with them."""
_FACE_PLACES = np.stack([_FACE_KEYPOINTS[name] for name in COCO17.keypoints[: len(_FACE_KEYPOINTS)]])
_JOINTS = [POINTS[name] for name in COCO17.keypoints[len(_FACE_KEYPOINTS) :]]


def _balls(figure: Figure) -> tuple[np.ndarray, np.ndarray]:
    """Centres (B, 3) and radii (B,) of the spheres in the order of ``_NAMES``, body heights."""
    points, girth, look = figure.bones.points, figure.build.girth, figure.look
    sleeve = {"none": 0.95, "short": 1.15, "long": 1.1}[look.sleeves] * girth**0.6
    cuff = 1.25 if look.sleeves == "long" else 1.0
    trouser = {"trousers": 1.12, "shorts": 1.25, "skirt": 1.0}[look.legwear] * girth**0.8
    leg_end = 1.35 if look.legwear == "trousers" else 1.0
    radius = {
        "shoulder": 0.036 * sleeve, "elbow": 0.026 * sleeve, "wrist": 0.019 * cuff, "hand": 0.018,
        "bare_elbow": 0.026 * girth**0.5, "bare_wrist": 0.017,
        "hip": 0.06 * trouser, "knee": 0.04 * trouser, "ankle": 0.025 * leg_end, "heel": 0.026, "toe": 0.02,
        "bare_knee": 0.036 * girth**0.5, "hem": 0.055 * girth,
    }  # fmt: skip
    up = figure.bones.trunk[:, 1]
    low = min(float(points[POINTS["left_knee"], 1]), -0.02) - 0.06
    centres = np.concatenate([points[_BALL_POINTS], _SEAT + np.array([0, low, 0])])
    centres[:2] += _NECK_STEPS * up
    for side in SIDES:
        hip, knee, ankle = (points[POINTS[f"{side}_{name}"]] for name in ("hip", "knee", "ankle"))
        hem = hip + min(look.hem, 1.0) * (knee - hip) + max(0.0, look.hem - 1.0) * (ankle - knee)
        centres[_INDEX[f"{side}_hem"]] = hem
    limb = [radius[name] for name in _LIMB_BALLS]
    return centres, np.array([0.03, 0.028, *limb, *limb, *[0.01] * len(_SEAT)])


_NECK_STEPS = np.array([[-0.02], [0.03]])
_SEAT = np.array(list(product((-0.13, 0.13), (0.0, -0.2), (-0.12, 0.14))))
"""Corners of what somebody sits on."""


def _blobs(figure: Figure) -> tuple[np.ndarray, np.ndarray]:
    """Centres (B, 3) and half axes (B, 3, 3; columns) of the other ellipsoids in the order of ``_NAMES``."""
    bones, build = figure.bones, figure.build
    hips, chest = (build.girth**0.7, 1.0, build.girth), (build.shoulders, 1.0, build.girth)
    half = _TRUNK_HALF_AXES * [hips, hips, chest, chest]
    trunk = bones.trunk * half[:, None]
    trunk[0] = np.diag(half[0])  # the pelvis does not lean with the rest
    scale = _SKULL * build.head
    head = bones.face * (scale * _HEAD_HALF_AXES)[:, None]
    centres = [bones.points[_TRUNK_POINTS], bones.points[POINTS["head"]] + scale * _HEAD_PLACES @ bones.face.T]
    return np.concatenate(centres), np.concatenate([trunk, head])


HEAD_BLOBS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "skull": ((0, 0, 0), (1, 1, 1)),
    "jaw": ((0, -0.45, 0.25), (0.72, 0.55, 0.65)),
    "hair": ((0, 0.17, -0.24), (1.03, 0.98, 0.98)),
    "thick_hair": ((0, 0.12, -0.2), (1.22, 1.05, 1.02)),
    "locks": ((0, -1.0, -0.5), (1.05, 0.6, 0.45)),
    "bun": ((0, 0.75, -1.0), (0.5, 0.45, 0.5)),
    "fringe": ((0, 0.66, 0.16), (0.84, 0.4, 0.8)),
    "crown": ((0, 0.5, -0.02), (1.08, 0.65, 1.04)),
    "brim": ((0, 0.42, 1.05), (0.75, 0.1, 0.6)),
    "left_ear": ((1.08, -0.02, -0.1), (0.16, 0.28, 0.22)),
    "right_ear": ((-1.08, -0.02, -0.1), (0.16, 0.28, 0.22)),
    "beard": ((0, -0.62, 0.42), (0.66, 0.42, 0.62)),
    "mouth": ((0, -0.55, 0.9), (0.33, 0.07, 0.12)),
    "nose": ((0, -0.16, 1.0), (0.17, 0.24, 0.2)),
} | {
    f"{side}_{name}": ((sign * x, y, z), half_axes)
    for side, sign in SIDES.items()
    for name, (x, y, z), half_axes in (
        ("eye", (0.4, 0.12, 0.86), (0.2, 0.12, 0.12)),
        ("pupil", (0.4, 0.12, 0.9), (0.1, 0.11, 0.1)),
        ("brow", (0.42, 0.36, 0.84), (0.28, 0.06, 0.12)),
        ("lens", (0.42, 0.1, 0.92), (0.34, 0.26, 0.12)),
    )
}
"""Centre and half axes, both in half axes of the head."""
_HEAD_PLACES, _HEAD_HALF_AXES = np.array(list(HEAD_BLOBS.values()), float).transpose(1, 0, 2)
_LIMB_BALLS = (
    "shoulder", "elbow", "wrist", "hand", "bare_elbow", "bare_wrist", "hip", "knee", "ankle", "heel", "toe",
    "bare_knee", "hem",
)  # fmt: skip
_NAMES = (
    "throat", "nape", *(f"{side}_{name}" for side in SIDES for name in _LIMB_BALLS),
    *(f"seat_{i}" for i in range(8)), *_TRUNK_RINGS, *HEAD_BLOBS,
)  # fmt: skip
_INDEX = {name: i for i, name in enumerate(_NAMES)}


@cache
def _members(names: tuple[str, ...], length: int) -> list[int]:
    """Indices of ellipsoids, the last one repeated up to ``length``."""
    return [_INDEX[name] for name in names] + [_INDEX[names[-1]]] * (length - len(names))


_BALL_POINTS = [POINTS["neck"]] * 2 + [
    POINTS[f"{side}_{'hip' if name == 'hem' else name.removeprefix('bare_')}"] for side in SIDES for name in _LIMB_BALLS
]
"""The point of the skeleton on which each sphere sits, or from which it is moved on."""


# ---------------------------------------------------------------------------------------------------- visibility


def _outward() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each keypoint: 0 head, 1 trunk, 2 hips; the outward normal there; how far it may turn away."""
    frames, normals = np.zeros(len(COCO17), int), np.zeros((len(COCO17), 3))
    far, unseen = np.full((2, len(COCO17)), -1e9)
    for i, name in enumerate(COCO17.keypoints):
        side, _, kind = name.rpartition("_")
        if kind in ("nose", "eye"):
            normals[i] = _FACE_KEYPOINTS[name] * (1, 0, 1)
            far[i], unseen[i] = (-0.2, -0.45) if kind == "nose" else (0.1, -0.35)  # a nose sticks out
        elif kind == "ear":
            normals[i, 0], far[i], unseen[i] = SIDES[side], -0.25, -0.85
        elif kind in ("shoulder", "hip"):
            normals[i, 0], far[i] = SIDES[side], -0.75
            frames[i] = 1 if kind == "shoulder" else 2
    return frames, normals, far, unseen


_FRAMES, _NORMALS, _FAR, _UNSEEN = _outward()
