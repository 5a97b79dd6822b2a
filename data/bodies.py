"""The bodies of synthetic people: ellipsoids on a skeleton, as the viewer sees them, and where their keypoints are.

Every part of a person (a sleeve, a shin, the skull) is the convex hull of the outlines of one to three ellipsoids.
"""

from dataclasses import dataclass
from itertools import product
from math import atan2, degrees

import cv2
import numpy as np

from posefleet.data.keypoints import COCO17
from posefleet.data.postures import (
    SIDES,
    Build,
    Posture,
    Skeleton,
    pick,
    random_build,
    random_posture,
    skeleton,
    view_axes,
)
from posefleet.data.scenery import Colour, fixed_point, random_colour, tinted


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


def random_figure(rng: np.random.Generator, height: float) -> Figure:
    """A person at the origin, mostly seen from the front."""
    kind = rng.random()
    yaw = rng.normal(0, 35) if kind < 0.5 else rng.normal(180, 30) if kind < 0.72 else rng.uniform(-180, 180)
    return make_figure(random_posture(rng), random_build(rng), random_look(rng), height, yaw, rng.uniform(-3, 20))


def make_figure(
    posture: Posture, build: Build, look: Look, height: float, yaw: float = 0.0, pitch: float = 0.0
) -> Figure:
    """A person at the origin; see ``view_axes`` for the angles."""
    bones = skeleton(posture, build)
    return Figure(bones, build, look, posture.seated, view_axes(yaw, pitch, posture.roll), height, (0.0, 0.0))


def extent(figure: Figure) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the skeleton relative to the figure's origin, pixels."""
    points = np.stack(list(figure.bones.points.values()))
    seen = points @ figure.view[:2].T * (figure.height, -figure.height)
    (left, top), (right, bottom) = seen.min(0), seen.max(0)
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
        self._depths: dict[str, float] = dict(zip(_NAMES, centres[:, 2].tolist(), strict=True))
        # An ellipsoid with half axes A reaches M u / sqrt(u' M u) in direction u, where M = A A' in the image plane.
        axes = figure.view[:2] @ axes
        reach = _DIRECTIONS @ (axes @ axes.transpose(0, 2, 1))
        reach /= np.sqrt((reach * _DIRECTIONS).sum(-1, keepdims=True))
        reach = np.concatenate([radii[:, None, None] * _DIRECTIONS, reach]) * (figure.height, -figure.height)
        places = self.place(centres)[:, None]
        towards_light = np.array([0.25 * light, -0.12]) * np.abs(reach).max(1, keepdims=True)
        self._outlines = fixed_point(places + reach)
        self._lit = fixed_point(places + towards_light + 0.6 * reach)
        self._rings = self._trunk_rings(centres[len(ball_centres) :][: len(_TRUNK_RINGS)])

    def _trunk_rings(self, centres: np.ndarray) -> np.ndarray:
        """(4, 3, 2) pixels: for each of the trunk's ellipsoids the centre, its left and its front half axis."""
        scale = np.array([self.figure.height, -self.figure.height])
        half = _trunk_half_axes(self.figure.build)
        left, front = (half[:, [i]] * self.trunk[:2, i] * scale for i in (0, 2))
        return np.stack([self.place(centres), left, front], axis=1)

    def place(self, seen: np.ndarray) -> np.ndarray:
        """Viewer's (..., 3) body heights to (..., 2) pixels."""
        return seen[..., :2] * (self.figure.height, -self.figure.height) + self.figure.origin

    def hull(self, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Convex hull of ellipsoids: its outline and that of its lit part, fixed point."""
        if len(names) == 1:
            index = _INDEX[names[0]]
            return self._outlines[index], self._lit[index]
        indices = [_INDEX[name] for name in names]
        return (
            cv2.convexHull(self._outlines[indices].reshape(-1, 2)),
            cv2.convexHull(self._lit[indices].reshape(-1, 2)),
        )

    def depth(self, *names: str) -> float:
        """Mean depth of ellipsoids, larger is nearer to the viewer."""
        return sum(self._depths[name] for name in names) / len(names)

    def keypoints(self) -> np.ndarray:
        """(17, 2) continuous image coordinates in the order of COCO17."""
        points = {**self.bones.points}
        scale = _SKULL * self.figure.build.head
        for name, place in _FACE_KEYPOINTS.items():
            points[name] = points["head"] + self.bones.face @ (scale * place)
        return self.place(np.stack([points[name] for name in COCO17.keypoints]) @ self.figure.view.T)

    def best_visibility(self) -> np.ndarray:
        """(17,) uint8: 2 on the side that the viewer sees, 1 on the far side, 0 for a face seen from behind."""
        towards = np.stack([self.face[2], self.trunk[2], self.figure.view[2]])[_FRAMES]  # (17, 3)
        nearness = (towards * _NORMALS).sum(1)
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
        level, turn = np.broadcast_arrays(level, np.deg2rad(angle + self.towards_viewer()))
        last = len(self._rings) - 1
        lower = np.minimum((level * last).astype(int), last - 1)
        share = (level * last - lower)[..., None, None]
        ring = self._rings[lower] * (1 - share) + self._rings[lower + 1] * share  # (..., 3, 2)
        across, along = np.cos(turn)[..., None], np.sin(turn)[..., None]
        points: np.ndarray = ring[..., 0, :] + across * ring[..., 1, :] + along * ring[..., 2, :]
        return points


_DIRECTIONS = np.stack([np.cos(np.arange(16) * np.pi / 8), np.sin(np.arange(16) * np.pi / 8)], 1)
_SKULL = np.array([0.052, 0.072, 0.06])
"""Half axes of the head, body heights."""
_TRUNK_RINGS = {
    "pelvis": (0.093, 0.055, 0.066),
    "waist": (0.083, 0.05, 0.058),
    "chest": (0.1, 0.06, 0.066),
    "collar": (0.09, 0.035, 0.048),
}
"""Half axes of the trunk's ellipsoids, from below."""
_FACE_KEYPOINTS = {
    "nose": np.array([0, -0.12, 1.06]),
    "left_eye": np.array([0.4, 0.12, 0.9]),
    "right_eye": np.array([-0.4, 0.12, 0.9]),
    "left_ear": np.array([1.1, -0.02, -0.1]),
    "right_ear": np.array([-1.1, -0.02, -0.1]),
}
"""Places on the head, in its half axes."""


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
    centres, radii = [points["neck"] - 0.02 * up, points["neck"] + 0.03 * up], [0.03, 0.028]
    for side in SIDES:
        hip, knee, ankle = (points[f"{side}_{name}"] for name in ("hip", "knee", "ankle"))
        hem = hip + min(look.hem, 1.0) * (knee - hip) + max(0.0, look.hem - 1.0) * (ankle - knee)
        centres += [hem if name == "hem" else points[f"{side}_{name.removeprefix('bare_')}"] for name in _LIMB_BALLS]
        radii += [radius[name] for name in _LIMB_BALLS]
    low = min(points["left_knee"][1], -0.02) - 0.06
    corners = np.array(list(product((-0.13, 0.13), (low, low - 0.2), (-0.12, 0.14))))
    return np.concatenate([centres, corners]), np.array(radii + [0.01] * len(corners))


def _blobs(figure: Figure) -> tuple[np.ndarray, np.ndarray]:
    """Centres (B, 3) and half axes (B, 3, 3; columns) of the other ellipsoids in the order of ``_NAMES``."""
    bones, build = figure.bones, figure.build
    half = _trunk_half_axes(build)
    trunk = bones.trunk * half[:, None]
    trunk[0] = np.diag(half[0])  # the pelvis does not lean with the rest
    scale = _SKULL * build.head
    head = bones.face * (scale * _HEAD_HALF_AXES)[:, None]
    centres = [bones.points[name] for name in _TRUNK_RINGS]
    return np.concatenate([centres, bones.points["head"] + scale * _HEAD_PLACES @ bones.face.T]), np.concatenate(
        [trunk, head]
    )


def _trunk_half_axes(build: Build) -> np.ndarray:
    """(4, 3) half axes of the trunk's ellipsoids, from below, body heights."""
    hips, chest = (build.girth**0.7, 1.0, build.girth), (build.shoulders, 1.0, build.girth)
    axes: np.ndarray = np.array(list(_TRUNK_RINGS.values())) * [hips, hips, chest, chest]
    return axes


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
