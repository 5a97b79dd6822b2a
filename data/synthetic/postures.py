"""How a synthetic person stands, walks, sits or lies: random angles, and the skeleton that they give.

Body frame: x to the person's own left, y up, z forward, the origin between the hips; lengths are in body heights.
Seen from the front, the person's left is therefore at the right of the picture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, radians, sin
from typing import TypeVar

import numpy as np

T = TypeVar("T")

SIDES = {"left": 1.0, "right": -1.0}
"""Sign of x for each side of the body."""


@dataclass(frozen=True, slots=True)
class Limb:
    """Angles of an arm or a leg, degrees. All zero: it hangs straight down."""

    flex: float = 0.0
    """Swing forward."""
    abduct: float = 0.0
    """Swing away from the body's middle."""
    turn: float = 0.0
    """Turn about its own length, inwards."""
    bend: float = 0.0
    """Of the elbow (to the front) or the knee (to the back)."""


@dataclass(frozen=True, slots=True)
class Posture:
    """One position of the body; angles in degrees."""

    arms: tuple[Limb, Limb]
    """Left, right."""
    legs: tuple[Limb, Limb]
    """Left, right."""
    lean: float = 0.0
    """Of the trunk, forward."""
    tilt: float = 0.0
    """Of the trunk, towards its right."""
    twist: float = 0.0
    """Of the trunk against the hips."""
    head: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Turn to the left, nod, tilt."""
    roll: float = 0.0
    """Of the whole body in the picture, counterclockwise: 90 lies down."""
    seated: bool = False
    """Needs something to sit on."""


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


def pick(rng: np.random.Generator, chances: dict[T, float]) -> T:
    """One of the keys, each with its probability; they sum to 1."""
    left = rng.random()
    for key, chance in chances.items():
        left -= chance
        if left < 0:
            return key
    return key  # the sum may be 1 but for rounding


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
    """A posture as photographs show it: mostly upright, sometimes seated, bent or lying."""
    recipe = pick(rng, _RECIPES)
    roll = rng.normal(0, 4) if rng.random() > 0.06 else _sign(rng) * rng.uniform(70, 110)
    turn, nod, tilt = _spread(rng, 22, 10, 7)
    return recipe(rng, (max(-65.0, min(65.0, turn)), nod + 5, tilt), roll)


def upright_posture(rng: np.random.Generator) -> Posture:
    """Standing, walking or with arms raised, the head up."""
    turn, nod, tilt = _spread(rng, 15, 6, 5)
    return pick(rng, _UPRIGHT_RECIPES)(rng, (turn, nod + 5, tilt), rng.normal(0, 3))


def stand_at_ease() -> Posture:
    """Upright, arms and legs slightly apart."""
    return Posture((Limb(0, 14, 0, 8), Limb(0, 14, 0, 8)), (Limb(0, 6), Limb(0, 6)))


def skeleton(posture: Posture, build: Build) -> Skeleton:
    """Forward kinematics: where everything is."""
    trunk = _about_y(posture.twist) @ _about_z(posture.tilt) @ _about_x(posture.lean)
    turn, nod, tilt = posture.head
    face = trunk @ _about_y(turn) @ _about_x(nod - 0.5 * posture.lean) @ _about_z(tilt)
    limbs = (*posture.arms, *posture.legs)
    first = np.array([_swing(limb, sign) for limb, sign in zip(limbs, (*SIDES.values(),) * 2, strict=True)])
    first[:2] = trunk @ first[:2]
    second = first @ np.array(
        [_about_x(bend) for bend in (-limbs[0].bend, -limbs[1].bend, limbs[2].bend, limbs[3].bend)]
    )
    factors = np.ones((len(_FRAMES), 3))
    factors[1, 0], factors[2, 1] = build.shoulders, build.head
    factors[_ARM_FRAMES], factors[_LEG_FRAMES] = build.arms, build.legs
    axes = np.concatenate([[_HIPS, trunk, face], first, second]).transpose(0, 2, 1) * factors[..., None]
    return Skeleton(_WEIGHTS @ axes.reshape(-1, 3), trunk, face)


_HIPS = np.eye(3)
_SEGMENTS = ("upper", "thigh", "lower", "shin")
_FRAMES = ("hips", "trunk", "face", *(f"{side}_{segment}" for segment in _SEGMENTS for side in SIDES))
"""What has axes of its own."""
_ARM_FRAMES = [i for i, name in enumerate(_FRAMES) if name.endswith(("upper", "lower"))]
_LEG_FRAMES = [i for i, name in enumerate(_FRAMES) if name.endswith(("thigh", "shin"))]


def _chains() -> dict[str, np.ndarray]:
    """For each point its steps along the axes of an average body's ``_FRAMES``, (33,): left, up and forward of each."""

    def step(frame: str, left: float = 0.0, up: float = 0.0, forward: float = 0.0) -> np.ndarray:
        steps = np.zeros((len(_FRAMES), 3))
        steps[_FRAMES.index(frame)] = left, up, forward
        return steps.ravel()

    heights = {"pelvis": 0.0, "waist": 0.09, "chest": 0.185, "collar": 0.25, "neck": 0.29}
    chains = {name: step("trunk", up=height) for name, height in heights.items()}
    chains["head"] = step("trunk", up=0.32) + step("face", up=0.062, forward=0.01)
    for side, sign in SIDES.items():
        shoulder = step("trunk", left=sign * 0.103, up=0.254)
        elbow = shoulder + step(f"{side}_upper", up=-0.165)
        wrist = elbow + step(f"{side}_lower", up=-0.145)
        hip = step("hips", left=sign * 0.056, up=-0.005)
        knee = hip + step(f"{side}_thigh", up=-0.245)
        ankle = knee + step(f"{side}_shin", up=-0.24)
        chains |= {
            f"{side}_shoulder": shoulder,
            f"{side}_elbow": elbow,
            f"{side}_wrist": wrist,
            f"{side}_hand": wrist + step(f"{side}_lower", up=-0.055),
            f"{side}_hip": hip,
            f"{side}_knee": knee,
            f"{side}_ankle": ankle,
            f"{side}_heel": ankle + step(f"{side}_shin", up=-0.022, forward=-0.018),
            f"{side}_toe": ankle + step(f"{side}_shin", up=-0.03, forward=0.085),
        }
    return chains


_CHAINS = _chains()
_WEIGHTS = np.stack(list(_CHAINS.values()))
POINTS = {name: i for i, name in enumerate(_CHAINS)}
"""Row of each point of a skeleton: the trunk's from pelvis to neck, the head, and both sides' limbs."""


def _swing(limb: Limb, sign: float) -> list[list[float]]:
    """(3, 3) axes of a limb's first segment."""
    angles = radians(-limb.flex), radians(sign * limb.abduct), radians(-sign * limb.turn)
    (cx, cz, cy), (sx, sz, sy) = map(cos, angles), map(sin, angles)
    # About y, then z, then x; written out, because small matrix products cost more than their sums.
    return [
        [cz * cy, -sz, cz * sy],
        [cx * sz * cy + sx * sy, cx * cz, cx * sz * sy - sx * cy],
        [sx * sz * cy - cx * sy, sx * cz, sx * sz * sy + cx * cy],
    ]


def _about_x(degrees: float) -> np.ndarray:
    c, s = cos(radians(degrees)), sin(radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _about_y(degrees: float) -> np.ndarray:
    c, s = cos(radians(degrees)), sin(radians(degrees))
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def _about_z(degrees: float) -> np.ndarray:
    c, s = cos(radians(degrees)), sin(radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def view_axes(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """(3, 3) rotation from the body frame to the viewer's: x right, y up, z towards the viewer.

    Args:
        yaw: Degrees; 0 faces the viewer, 90 looks to the picture's right, 180 shows the back.
        pitch: Degrees the viewer looks down from above.
        roll: Degrees counterclockwise in the picture.
    """
    axes: np.ndarray = _about_z(roll) @ _about_x(pitch) @ _about_y(yaw)
    return axes


# ---------------------------------------------------------------------------------------------------- recipes

_Head = tuple[float, float, float]


def _limbs(rng: np.random.Generator, low: tuple[float, ...], high: tuple[float, ...]) -> tuple[Limb, Limb]:
    """A left and a right limb with flex, abduct, turn and bend drawn independently."""
    return Limb(*_between(rng, low, high)), Limb(*_between(rng, low, high))


def _between(rng: np.random.Generator, low: tuple[float, ...], high: tuple[float, ...]) -> list[float]:
    """Numbers drawn uniformly, each from its own range."""
    return [a + (b - a) * share for a, b, share in zip(low, high, rng.random(len(low)).tolist(), strict=True)]


def _spread(rng: np.random.Generator, *deviations: float) -> list[float]:
    """Normal numbers around 0."""
    return [
        deviation * z for deviation, z in zip(deviations, rng.standard_normal(len(deviations)).tolist(), strict=True)
    ]


def _sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def _resting_arm(rng: np.random.Generator) -> Limb:
    """Hanging, hand on the hip, before the belly, behind the back, holding something up."""
    low, high = pick(rng, _RESTING_ARMS)
    return Limb(*_between(rng, low, high))


_RESTING_ARMS: dict[tuple[tuple[float, ...], tuple[float, ...]], float] = {
    ((-12, 4, -10, 0), (15, 22, 25, 25)): 0.5,
    ((-30, 35, 50, 75), (-10, 50, 80, 105)): 0.15,
    ((0, 4, 30, 60), (20, 15, 75, 105)): 0.13,
    ((-35, 10, 70, 20), (-20, 20, 100, 60)): 0.07,
    ((20, 5, 0, 80), (60, 25, 40, 130)): 0.15,
}
"""Ranges of the angles in the order of ``_resting_arm``."""


def _standing(rng: np.random.Generator, head: _Head, roll: float) -> Posture:
    first, second = _resting_arm(rng), _resting_arm(rng)
    arms = (first, first) if rng.random() < 0.35 else (first, second)
    legs = _limbs(rng, (-6, 2, -25, 0), (10, 13, 5, 10))
    lean, tilt, twist = _spread(rng, 4, 3, 7)
    return Posture(arms, legs, lean, tilt, twist, head, roll)


def _walking(rng: np.random.Generator, head: _Head, roll: float) -> Posture:
    stride, arm_bend, abduct = _between(rng, (12, 5, 3), (48, 95, 14))
    stride *= _sign(rng)
    leg = [Limb(s * stride, 3, 0, rng.uniform(5, 20) + (abs(stride) * rng.uniform(0.3, 1.6) if s * stride < 0 else 0))
           for s in (1, -1)]  # fmt: skip
    arm = [Limb(-s * stride * 0.9, abduct, 10, arm_bend) for s in (1, -1)]
    return Posture((arm[0], arm[1]), (leg[0], leg[1]), abs(stride) * 0.2, 0, stride * 0.2, head, roll)


def _arms_up(rng: np.random.Generator, head: _Head, roll: float) -> Posture:
    raised = _limbs(rng, (-10, 75, -60, 0), (20, 172, 20, 60))
    waving = Limb(0, rng.uniform(80, 110), 0, 0), Limb(rng.uniform(60, 110), 5, 20, rng.uniform(0, 40))
    forward = _limbs(rng, (60, -5, 0, 0), (150, 20, 60, 60))
    kind = rng.random()
    arms = raised if kind < 0.45 else forward if kind < 0.65 else (raised[0], _resting_arm(rng))
    arms = waving if kind > 0.93 else arms
    if rng.random() < 0.5:
        arms = arms[1], arms[0]
    legs = _limbs(rng, (-10, 3, -20, 0), (20, 25, 5, 25))
    lean, tilt, twist = _spread(rng, 6, 6, 8)
    return Posture(arms, legs, lean, tilt, twist, head, roll)


def _seated(rng: np.random.Generator, head: _Head, roll: float) -> Posture:
    legs = _limbs(rng, (72, 3, -15, 65), (95, 24, 15, 105))
    arms = (_resting_arm(rng), Limb(*_between(rng, (15, 3, 10, 30), (50, 15, 50, 80))))
    if rng.random() < 0.5:
        arms = _limbs(rng, (15, 3, 0, 20), (45, 15, 50, 70))
    return Posture(arms, legs, rng.uniform(-12, 25), rng.normal(0, 4), rng.normal(0, 8), head, roll, abs(roll) < 45)


def _crouching(rng: np.random.Generator, head: _Head, roll: float) -> Posture:
    if rng.random() < 0.5:  # bent over on straight legs
        legs, lean = _limbs(rng, (-5, 3, -10, 0), (20, 15, 10, 25)), rng.uniform(30, 80)
    else:
        legs, lean = _limbs(rng, (60, 5, -20, 80), (120, 30, 10, 140)), rng.uniform(10, 45)
    return Posture(_limbs(rng, (30, 0, -10, 0), (100, 20, 40, 60)), legs, lean, 0, rng.normal(0, 10), head, roll)


def _free(rng: np.random.Generator, head: _Head, roll: float) -> Posture:
    """Dance, sport, play: anything that joints allow."""
    arms = _limbs(rng, (-40, 0, -70, 0), (120, 160, 70, 130))
    legs = _limbs(rng, (-35, 0, -30, 0), (85, 50, 20, 100))
    lean, tilt, twist = _spread(rng, 14, 10, 14)
    return Posture(arms, legs, 8 + lean, tilt, twist, head, roll)


_RECIPES: dict[Callable[[np.random.Generator, _Head, float], Posture], float] = {
    _standing: 0.28, _walking: 0.2, _arms_up: 0.16, _seated: 0.14, _crouching: 0.08, _free: 0.14
}  # fmt: skip

_UPRIGHT_RECIPES: dict[Callable[[np.random.Generator, _Head, float], Posture], float] = {
    _standing: 0.5, _walking: 0.25, _arms_up: 0.25
}  # fmt: skip
