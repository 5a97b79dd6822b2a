"""How a synthetic person stands, walks, sits or lies: random joint angles, and the skeleton that they give.

Body frame: x to the person's own left, y up, z forward, the origin between the hips; lengths are in body heights.
Seen from the front, the person's left is therefore at the right of the image.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")
Vector = tuple[float, float, float]
Angles = tuple[float, float, float, float]
"""Flex, abduct, turn and bend of a limb, degrees."""

SIDES = {"left": 1.0, "right": -1.0}
"""Sign of x for each side of the body."""


class Limb(NamedTuple):
    """Angles of an arm or a leg, degrees. With all at zero it hangs straight down."""

    flex: float = 0.0
    """Swing forward."""
    abduct: float = 0.0
    """Swing away from the body's middle."""
    turn: float = 0.0
    """Turn about its own length, inwards."""
    bend: float = 0.0
    """Bend of the elbow (to the front) or the knee (to the back)."""


Limbs = tuple[Limb, Limb]
"""A left and a right limb."""


@dataclass(frozen=True, slots=True)
class Posture:
    """One position of the body; angles in degrees."""

    arms: Limbs
    legs: Limbs
    lean: float = 0.0
    """Lean of the trunk, forward."""
    tilt: float = 0.0
    """Tilt of the trunk, towards its right."""
    twist: float = 0.0
    """Turn of the trunk against the hips, to the left."""
    head: Vector = (0.0, 0.0, 0.0)
    """Turn to the left, nod, tilt."""
    roll: float = 0.0
    """Roll of the whole body in the image, counterclockwise: 90 lies down."""
    seated: bool = False
    """Whether the body needs a seat."""


@dataclass(frozen=True, slots=True)
class Build:
    """Proportions of a body, as factors of the average."""

    head: float = 1.0
    shoulders: float = 1.0
    girth: float = 1.0
    legs: float = 1.0
    arms: float = 1.0


@dataclass(frozen=True, slots=True)
class Skeleton:
    """Places and directions in the body frame."""

    points: np.ndarray
    """(24, 3) in the order of ``POINTS``."""
    trunk: np.ndarray
    """(3, 3) axes of the trunk: columns are its left, up and forward."""
    face: np.ndarray
    """(3, 3) axes of the head."""


# ---------------------------------------------------------------------------------------------------- skeleton

_FRAMES = (
    "hips", "trunk", "face",
    *(f"{side}_{segment}" for segment in ("upper_arm", "thigh", "forearm", "shin") for side in SIDES),
)  # fmt: skip
"""Parts of the body with axes of their own."""

_LIMB_SIDES, _LIMB_BENDS = np.array([1, -1, 1, -1]), np.array([-1, -1, 1, 1])
"""Signs of left and right arm, left and right leg: which side they are on; elbows bend forwards, knees backwards."""

_CENTRAL_POINTS: dict[str, dict[str, Vector]] = {
    "pelvis": {},
    "waist": {"trunk": (0, 0.09, 0)},
    "chest": {"trunk": (0, 0.185, 0)},
    "collar": {"trunk": (0, 0.25, 0)},
    "neck": {"trunk": (0, 0.29, 0)},
    "head": {"trunk": (0, 0.32, 0), "face": (0, 0.062, 0.01)},
}
"""Steps from the origin to each point: left, up and forward along the axes of a frame, for an average body."""

_LEFT_POINTS: dict[str, tuple[str | None, str, Vector]] = {
    "shoulder": (None, "trunk", (0.103, 0.254, 0)),
    "elbow": ("shoulder", "upper_arm", (0, -0.165, 0)),
    "wrist": ("elbow", "forearm", (0, -0.145, 0)),
    "hand": ("wrist", "forearm", (0, -0.055, 0)),
    "hip": (None, "hips", (0.056, -0.005, 0)),
    "knee": ("hip", "thigh", (0, -0.245, 0)),
    "ankle": ("knee", "shin", (0, -0.24, 0)),
    "heel": ("ankle", "shin", (0, -0.022, -0.018)),
    "toe": ("ankle", "shin", (0, -0.03, 0.085)),
}
"""Points of the left side; the right side mirrors them. Each has the point from which it is reached (None: the origin),
and the step from there: left, up and forward along the axes of a frame."""


def _point_weights() -> dict[str, np.ndarray]:
    """For each point its (33,) steps along the left, up and forward axes of every frame."""

    def steps(frames: dict[str, Vector]) -> np.ndarray:
        return np.array([frames.get(name, (0, 0, 0)) for name in _FRAMES], float).ravel()

    weights = {name: steps(frames) for name, frames in _CENTRAL_POINTS.items()}
    for side, sign in SIDES.items():
        for name, (start, frame, (left, up, forward)) in _LEFT_POINTS.items():
            frame = frame if frame in _FRAMES else f"{side}_{frame}"
            origin = weights[f"{side}_{start}" if start else "pelvis"]
            weights[f"{side}_{name}"] = origin + steps({frame: (sign * left, up, forward)})
    return weights


_POINT_WEIGHTS = _point_weights()
_WEIGHTS = np.stack(list(_POINT_WEIGHTS.values()))
POINTS = {name: i for i, name in enumerate(_POINT_WEIGHTS)}
"""Row of each point of a skeleton: the trunk's from pelvis to neck, the head, and both sides' limbs."""


def skeleton(posture: Posture, build: Build) -> Skeleton:
    """Forward kinematics: the places and directions that joint angles give."""
    turn, nod, tilt = posture.head
    about_y = rotation(1, np.array([posture.twist, turn]))
    about_z = rotation(2, np.array([posture.tilt, tilt]))
    about_x = rotation(0, np.array([posture.lean, nod - 0.5 * posture.lean]))
    trunk = about_y[0] @ about_z[0] @ about_x[0]
    face = trunk @ about_y[1] @ about_x[1] @ about_z[1]
    flex, abduct, inwards, bend = np.array([*posture.arms, *posture.legs]).T
    upper = rotation(0, -flex) @ rotation(2, _LIMB_SIDES * abduct) @ rotation(1, -_LIMB_SIDES * inwards)
    upper[:2] = trunk @ upper[:2]
    lower = upper @ rotation(0, _LIMB_BENDS * bend)
    lengths = np.array([build.arms, build.arms, build.legs, build.legs])[:, None, None]
    middle = np.stack([np.eye(3), trunk * (build.shoulders, 1, 1), face * (1, build.head, 1)])
    axes = np.concatenate([middle, upper * lengths, lower * lengths])  # in the order of _FRAMES
    return Skeleton(_WEIGHTS @ axes.transpose(0, 2, 1).reshape(-1, 3), trunk, face)


def rotation(axis: int, degrees: float | np.ndarray) -> np.ndarray:
    """Rotation about an axis (0 is x, 1 is y, 2 is z): (3, 3) for one angle, (N, 3, 3) for N angles."""
    angles = np.deg2rad(degrees)
    after, last = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.zeros((*angles.shape, 3, 3))
    matrix[..., axis, axis] = 1
    matrix[..., after, after] = matrix[..., last, last] = np.cos(angles)
    matrix[..., last, after] = np.sin(angles)
    matrix[..., after, last] = -matrix[..., last, after]
    return matrix


def view_axes(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """(3, 3) rotation from the body frame to the viewer's: x right, y up, z towards the viewer.

    Args:
        yaw: Degrees; 0 faces the viewer, 90 looks to the image's right, 180 shows the back.
        pitch: Degrees the viewer looks down from above.
        roll: Degrees counterclockwise in the image.
    """
    axes: np.ndarray = rotation(2, roll) @ rotation(0, pitch) @ rotation(1, yaw)
    return axes


# ---------------------------------------------------------------------------------------------------- random bodies


def pick(rng: np.random.Generator, chances: dict[T, float]) -> T:
    """One of the keys, each with its probability; they sum to 1."""
    left = rng.random()
    for key, chance in chances.items():
        left -= chance
        if left < 0:
            return key
    return key  # rounding may leave a sum just below 1


def random_build(rng: np.random.Generator) -> Build:
    """Children, adults, thin and stout."""
    child = rng.random() < 0.2
    return Build(
        head=rng.uniform(1.35, 1.6) if child else rng.uniform(1.05, 1.25),
        shoulders=rng.uniform(0.9, 1.15),
        girth=float(np.exp(rng.normal(0.0, 0.14))),
        legs=rng.uniform(0.82, 0.92) if child else rng.uniform(0.94, 1.06),
        arms=rng.uniform(0.92, 1.06),
    )


def random_posture(rng: np.random.Generator) -> Posture:
    """Any posture, at about the frequency of photographs: mostly upright, sometimes seated, bent or lying."""
    draw = pick(rng, _ALL_POSTURES)
    roll = rng.normal(0, 4) if rng.random() > 0.06 else (1 if rng.random() < 0.5 else -1) * rng.uniform(70, 110)
    turn, nod, tilt = _normals(rng, 22, 10, 7)
    posture = draw(rng)
    head = (max(-65.0, min(65.0, turn)), nod + 5, tilt)
    return replace(posture, head=head, roll=roll, seated=posture.seated and abs(roll) < 45)


def upright_posture(rng: np.random.Generator) -> Posture:
    """Standing, walking or with arms raised, the head up."""
    turn, nod, tilt = _normals(rng, 15, 6, 5)
    draw, roll = pick(rng, _UPRIGHT_POSTURES), rng.normal(0, 3)
    return replace(draw(rng), head=(turn, nod + 5, tilt), roll=roll)


def _normals(rng: np.random.Generator, first: float, second: float, third: float) -> Vector:
    """Three normal numbers around 0, from their deviations."""
    return rng.normal(0, first), rng.normal(0, second), rng.normal(0, third)


def _limb(rng: np.random.Generator, low: Angles, high: Angles) -> Limb:
    """A limb whose angles are drawn uniformly, each from its own range."""
    return Limb(*[a + (b - a) * share for a, b, share in zip(low, high, rng.random(4).tolist(), strict=True)])


def _limbs(rng: np.random.Generator, low: Angles, high: Angles) -> Limbs:
    """A left and a right limb, drawn independently of each other."""
    return _limb(rng, low, high), _limb(rng, low, high)


_RESTING_ARMS: dict[tuple[Angles, Angles], float] = {
    ((-12, 4, -10, 0), (15, 22, 25, 25)): 0.5,  # hanging
    ((-30, 35, 50, 75), (-10, 50, 80, 105)): 0.15,  # hand on the hip
    ((0, 4, 30, 60), (20, 15, 75, 105)): 0.13,  # before the belly
    ((-35, 10, 70, 20), (-20, 20, 100, 60)): 0.07,  # behind the back
    ((20, 5, 0, 80), (60, 25, 40, 130)): 0.15,  # holding something up
}
"""Lowest and highest angles of an arm that does nothing, and how often they are used."""


def _resting_arm(rng: np.random.Generator) -> Limb:
    return _limb(rng, *pick(rng, _RESTING_ARMS))


# The functions below draw postures without the head and the roll.


def _standing(rng: np.random.Generator) -> Posture:
    left, right = _resting_arm(rng), _resting_arm(rng)
    right = left if rng.random() < 0.35 else right
    legs = _limbs(rng, (-6, 2, -25, 0), (10, 13, 5, 10))
    return Posture((left, right), legs, *_normals(rng, 4, 3, 7))


def _walking(rng: np.random.Generator) -> Posture:
    stride, arm_bend, abduct = rng.uniform(12, 48), rng.uniform(5, 95), rng.uniform(3, 14)
    left = stride if rng.random() < 0.5 else -stride
    arms, legs = [], []
    for swing in (left, -left):
        knee = rng.uniform(5, 20) + (stride * rng.uniform(0.3, 1.6) if swing < 0 else 0)
        arms.append(Limb(-0.9 * swing, abduct, 10, arm_bend))
        legs.append(Limb(swing, 3, 0, knee))
    return Posture((arms[0], arms[1]), (legs[0], legs[1]), lean=0.2 * stride, twist=0.2 * left)


def _arms_up(rng: np.random.Generator) -> Posture:
    raised = _limbs(rng, (-10, 75, -60, 0), (20, 172, 20, 60))
    waving = Limb(0, rng.uniform(80, 110), 0, 0), Limb(rng.uniform(60, 110), 5, 20, rng.uniform(0, 40))
    forward = _limbs(rng, (60, -5, 0, 0), (150, 20, 60, 60))
    kind = rng.random()
    arms = raised if kind < 0.45 else forward if kind < 0.65 else (raised[0], _resting_arm(rng))
    arms = waving if kind > 0.93 else arms
    if rng.random() < 0.5:
        arms = arms[1], arms[0]
    legs = _limbs(rng, (-10, 3, -20, 0), (20, 25, 5, 25))
    return Posture(arms, legs, *_normals(rng, 6, 6, 8))


def _sitting(rng: np.random.Generator) -> Posture:
    legs = _limbs(rng, (72, 3, -15, 65), (95, 24, 15, 105))
    arms = _resting_arm(rng), _limb(rng, (15, 3, 10, 30), (50, 15, 50, 80))
    if rng.random() < 0.5:
        arms = _limbs(rng, (15, 3, 0, 20), (45, 15, 50, 70))
    lean, tilt, twist = rng.uniform(-12, 25), rng.normal(0, 4), rng.normal(0, 8)
    return Posture(arms, legs, lean, tilt, twist, seated=True)


def _crouching(rng: np.random.Generator) -> Posture:
    if rng.random() < 0.5:  # bent over on straight legs
        legs, lean = _limbs(rng, (-5, 3, -10, 0), (20, 15, 10, 25)), rng.uniform(30, 80)
    else:
        legs, lean = _limbs(rng, (60, 5, -20, 80), (120, 30, 10, 140)), rng.uniform(10, 45)
    arms = _limbs(rng, (30, 0, -10, 0), (100, 20, 40, 60))
    return Posture(arms, legs, lean, twist=rng.normal(0, 10))


def _moving_freely(rng: np.random.Generator) -> Posture:
    """Dance, sport, play: anything that joints allow."""
    arms = _limbs(rng, (-40, 0, -70, 0), (120, 160, 70, 130))
    legs = _limbs(rng, (-35, 0, -30, 0), (85, 50, 20, 100))
    lean, tilt, twist = _normals(rng, 14, 10, 14)
    return Posture(arms, legs, lean + 8, tilt, twist)


_ALL_POSTURES: dict[Callable[[np.random.Generator], Posture], float] = {
    _standing: 0.28, _walking: 0.2, _arms_up: 0.16, _sitting: 0.14, _crouching: 0.08, _moving_freely: 0.14
}  # fmt: skip
_UPRIGHT_POSTURES: dict[Callable[[np.random.Generator], Posture], float] = {
    _standing: 0.5, _walking: 0.25, _arms_up: 0.25
}  # fmt: skip
