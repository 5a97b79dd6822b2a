"""Four-legged animals with twelve keypoints of their own: ellipsoids on a skeleton, painted as people are.

Body frame: x to the animal's own left, y up, z forward, the origin on the ground between the legs; lengths are in
heights of the withers, where neck and back meet.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import NamedTuple

import numpy as np

from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.synthetic.canvas import DIM, FLAT, Canvas, Colour, random_colour, tinted
from posefleet.data.synthetic.figures import PARTS_PER_PERSON, Painted
from posefleet.data.synthetic.postures import SIDES, pick, rotation, view_axes
from posefleet.data.synthetic.projection import Projection

ENDS = ("front", "hind")
_LEGS = tuple(f"{side}_{end}" for end in ENDS for side in SIDES)

ANIMAL = KeypointSchema.from_dict(
    {
        "name": "animal12",
        "keypoints": ["nose", "head", "withers", "tail_base"]
        + [f"{leg}_{joint}" for joint in ("knee", "paw") for leg in _LEGS],
        "skeleton": [["nose", "head"], ["head", "withers"], ["withers", "tail_base"]]
        + [
            [start, f"{side}_{end}_knee"]
            for end, start in zip(ENDS, ("withers", "tail_base"), strict=True)
            for side in SIDES
        ]
        + [[f"{leg}_knee", f"{leg}_paw"] for leg in _LEGS],
    }
)
"""The keypoints of the animals; pairs and sigmas follow from the names."""


class AnimalPart(IntEnum):
    """What a pixel of an animal belongs to."""

    TRUNK = 1
    NECK = 2
    HEAD = 3
    EAR = 4
    TAIL = 5
    LEFT_FRONT_LEG = 6
    RIGHT_FRONT_LEG = 7
    LEFT_HIND_LEG = 8
    RIGHT_HIND_LEG = 9


@dataclass(frozen=True, slots=True)
class Animal:
    """One animal, ready to be painted at a place of the image."""

    points: dict[str, np.ndarray]
    """Places of the skeleton, body frame: keypoints, and what the parts hang on."""
    head: np.ndarray
    """(3, 3) axes of the head: columns are its left, up and forward."""
    girth: float
    """Thickness, as a factor of the average."""
    coat: Colour
    belly: Colour
    paws: Colour
    ears: str
    """Pointed or hanging."""
    spots: np.ndarray
    """(N, 3) places of spots on the trunk: share of its length from the back, degrees round it, size."""
    spot: Colour
    view: np.ndarray
    """(3, 3), see ``view_axes``."""
    height: float
    """Height of the withers, pixels."""
    origin: tuple[float, float] = (0.0, 0.0)
    """Where the origin of the body frame is, pixels."""


_COATS: dict[Colour, float] = {
    (60, 44, 34): 0.2, (120, 84, 52): 0.22, (186, 142, 92): 0.2, (222, 206, 178): 0.12, (44, 42, 44): 0.14,
    (140, 138, 136): 0.12,
}  # fmt: skip


def random_animal(rng: np.random.Generator, height: float, variety: float = 1.0) -> Animal:
    """A random animal that stands or walks at (0, 0).

    Args:
        height: Pixels of the withers above the ground.
        variety: Probability of being seen from anywhere, with the head anywhere; the others are seen from one side and
            look ahead.
    """
    varied = rng.random() < variety
    side = 90.0 if rng.random() < 0.5 else -90.0
    yaw = rng.uniform(-180, 180) if varied and rng.random() < 0.5 else side + rng.normal(0, 25 if varied else 12)
    points, head = _skeleton(rng, varied)
    other = rng.random() < 0.15
    coat = random_colour(rng) if other else tinted(pick(rng, _COATS), rng.uniform(0.8, 1.2))
    spots = int(rng.integers(3, 9)) if rng.random() < 0.45 else 0
    return Animal(
        points=points,
        head=head,
        girth=float(np.exp(rng.normal(0.0, 0.12))),
        coat=coat,
        belly=tinted(coat, rng.uniform(1.0, 1.3)),
        paws=tinted(coat, rng.uniform(0.45, 1.5)),
        ears=pick(rng, {"pointed": 0.6, "hanging": 0.4}),
        spots=np.stack([rng.uniform(0.1, 0.9, spots), rng.uniform(-70, 70, spots), rng.uniform(0.03, 0.08, spots)], 1),
        spot=tinted(coat, rng.choice([0.45, 0.6, 1.6])),
        view=view_axes(yaw, rng.uniform(0, 18), 0.0),
        height=height,
    )


def _skeleton(rng: np.random.Generator, varied: bool) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Places of the skeleton and the axes of the head."""
    length, neck, muzzle = rng.uniform(1.0, 1.35), rng.uniform(0.28, 0.5), rng.uniform(0.2, 0.3)
    front, back = length / 2, -length / 2
    points = {
        "withers": np.array([0, 0.93, front - 0.1]),
        "chest": np.array([0, 0.76, front - 0.08]),
        "belly": np.array([0, 0.77, 0.0]),
        "rump": np.array([0, 0.8, back + 0.1]),
        "tail_base": np.array([0, 0.9, back]),
    }
    lift = rng.uniform(-35, 60) if varied else rng.uniform(20, 55)  # of the neck; below 0 it grazes
    turn = rng.normal(0, 22 if varied else 8)
    nod = rng.uniform(0.45, 0.75) * lift - 12  # the head is bent against the neck
    along = rotation(1, 0.5 * turn) @ rotation(0, -lift) @ np.array([0, 0, 1.0])
    head = rotation(1, turn) @ rotation(0, -(lift - nod) * 0.35 + 12)
    points["throat"] = points["withers"] + np.array([0, -0.05, 0.05]) + neck * along
    points["head"] = points["throat"] + head @ np.array([0, 0.09, 0.0])
    points["nose"] = points["throat"] + head @ np.array([0, -0.03, muzzle])
    gait = rng.uniform(0, 28)
    phase = 1.0 if rng.random() < 0.5 else -1.0
    for end, z, bend in (("front", front - 0.12, -1.0), ("hind", back + 0.12, 1.0)):
        for side, x in SIDES.items():
            swing = phase * x * (1 if end == "front" else -1) * gait + rng.normal(0, 5)
            knee_bend = bend * max(0.0, rng.normal(14 if end == "hind" else 4, 6) + 0.4 * abs(swing))
            root = np.array([0.13 * x, 0.72, z])
            upper = rotation(0, swing - 0.5 * knee_bend) @ np.array([0.0, -0.34, 0.0])
            lower = rotation(0, swing + 0.7 * knee_bend) @ np.array([0.0, -0.36, 0.0])
            points[f"{side}_{end}_root"] = root
            points[f"{side}_{end}_knee"] = root + upper
            points[f"{side}_{end}_paw"] = root + upper + lower
    droop = rng.uniform(-70, 50)
    points["tail_tip"] = points["tail_base"] + rotation(1, rng.normal(0, 20)) @ rotation(0, droop) @ np.array(
        [0, 0, -rng.uniform(0.25, 0.5)]
    )
    return points, head


def animal_extent(animal: Animal) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the skeleton relative to the animal's origin, pixels."""
    seen = np.stack(list(animal.points.values())) @ animal.view[:2].T * (animal.height, -animal.height)
    (left, top), (right, bottom) = seen.min(0).tolist(), seen.max(0).tolist()
    return left, top - 0.06 * animal.height, right, bottom + 0.03 * animal.height


# ---------------------------------------------------------------------------------------------------- painting


class _Ball(NamedTuple):
    """One ellipsoid of an animal."""

    point: str
    half_axes: tuple[float, float, float]
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """From the point to the centre, along the axes of the head if it is ``on_head``, else of the body."""
    on_head: bool = False
    thick: bool = False
    """Whether the girth changes its width and height."""


def _balls() -> dict[str, _Ball]:
    balls = {
        "chest": _Ball("chest", (0.16, 0.21, 0.2), thick=True),
        "withers": _Ball("withers", (0.09, 0.07, 0.1), (0, -0.03, 0), thick=True),
        "belly": _Ball("belly", (0.165, 0.18, 0.22), thick=True),
        "rump": _Ball("rump", (0.15, 0.165, 0.17), thick=True),
        "collar": _Ball("withers", (0.09, 0.12, 0.1), (0, -0.05, 0.05)),
        "throat": _Ball("throat", (0.075, 0.085, 0.085)),
        "skull": _Ball("throat", (0.09, 0.095, 0.11), (0, 0.03, 0.02), True),
        "muzzle": _Ball("nose", (0.048, 0.05, 0.06), (0, -0.005, -0.04), True),
        "nose": _Ball("nose", (0.028, 0.024, 0.026), (0, 0.012, 0.012), True),
        "tail_base": _Ball("tail_base", (0.035, 0.035, 0.035)),
        "tail_tip": _Ball("tail_tip", (0.022, 0.022, 0.022)),
    }
    for side, x in SIDES.items():
        balls[f"{side}_ear_root"] = _Ball("throat", (0.035, 0.03, 0.025), (0.065 * x, 0.105, -0.02), True)
        balls[f"{side}_pointed"] = _Ball("throat", (0.012, 0.02, 0.012), (0.085 * x, 0.2, -0.03), True)
        balls[f"{side}_hanging"] = _Ball("throat", (0.02, 0.035, 0.03), (0.115 * x, -0.02, 0.0), True)
        balls[f"{side}_eye"] = _Ball("throat", (0.018, 0.018, 0.014), (0.07 * x, 0.05, 0.085), True)
        for end in ENDS:
            leg, wide = f"{side}_{end}", 0.085 if end == "hind" else 0.065
            balls[f"{leg}_root"] = _Ball(f"{leg}_root", (wide, wide * 1.3, wide * 1.25))
            balls[f"{leg}_knee"] = _Ball(f"{leg}_knee", (0.042, 0.045, 0.045))
            balls[f"{leg}_paw"] = _Ball(f"{leg}_paw", (0.034, 0.03, 0.034))
            balls[f"{leg}_toe"] = _Ball(f"{leg}_paw", (0.034, 0.022, 0.03), (0, -0.012, 0.045))
    return balls


_BALLS = _balls()
_ROWS = {name: row for row, name in enumerate(_BALLS)}


class _Layer(NamedTuple):
    depth: float
    part: AnimalPart
    colour: Colour
    hulls: tuple[tuple[str, ...], ...]
    """Ellipsoids of each convex piece."""
    flat: bool = False
    """Only colour, on a part that is there already."""


def paint_animal(canvas: Canvas, animal: Animal, number: int, light: float = -0.6, detailed: bool = True) -> Painted:
    """Paint an animal and tell where its keypoints are; arguments as in ``figures.paint_figure``."""
    seen = _project(animal, light)
    for layer in sorted(_layers(animal, seen, detailed), key=lambda layer: layer.depth):
        outlines = seen.hulls(np.array([_members(names) for names in layer.hulls]))
        if layer.flat:
            canvas.paint(outlines[0][0], layer.colour)
            continue
        for outline, _ in outlines:
            canvas.fill(outline, layer.colour, number * PARTS_PER_PERSON + layer.part, DIM if detailed else FLAT)
        if not detailed:
            continue
        for _, lit in outlines:
            canvas.brighten(lit)
        if layer.part == AnimalPart.TRUNK:
            _paint_spots(canvas, animal, seen)
    keypoints = np.stack([animal.points[name] for name in ANIMAL.keypoints]) @ animal.view.T
    return Painted(seen.place(keypoints), np.full(len(ANIMAL), 2, np.uint8), _KEYPOINT_PARTS)


def _project(animal: Animal, light: float) -> Projection:
    centres, axes = [], []
    for ball in _BALLS.values():
        frame = animal.head if ball.on_head else np.eye(3)
        centres.append(animal.points[ball.point] + frame @ np.array(ball.offset))
        girth = (animal.girth, animal.girth, 1.0) if ball.thick else 1.0
        axes.append(frame * (np.array(ball.half_axes) * girth))
    return Projection(np.stack(centres), np.stack(axes), animal.view, animal.height, animal.origin, light)


def _layers(animal: Animal, seen: Projection, detailed: bool) -> Iterator[_Layer]:
    """All parts, with depths that sort them from the farthest to the nearest."""

    def depth(*names: str) -> float:
        return sum(seen.depths[_ROWS[name]] for name in names) / len(names)

    trunk = (("rump", "belly"), ("belly", "chest"), ("chest", "withers"), ("rump", "withers", "belly"))
    yield _Layer(depth("rump", "belly", "chest"), AnimalPart.TRUNK, animal.coat, trunk)
    yield _Layer(depth("throat", "collar"), AnimalPart.NECK, tinted(animal.coat, 0.94), (("collar", "throat"),))
    yield _Layer(depth("tail_base", "tail_tip"), AnimalPart.TAIL, animal.coat, (("tail_base", "tail_tip"),))
    for leg in _LEGS:
        side = SIDES[leg.split("_")[0]] * animal.view[2, 0]  # above 0 on the side that the viewer sees
        part, near = AnimalPart[f"{leg}_leg".upper()], depth("rump", "belly", "chest") + 0.05 * np.sign(side)
        shade = 1.0 if side > 0 else 0.78
        for order, (ends, colour) in enumerate(
            (
                ((f"{leg}_paw", f"{leg}_toe"), animal.paws),
                ((f"{leg}_knee", f"{leg}_paw"), animal.paws),
                ((f"{leg}_root", f"{leg}_knee"), animal.coat),
            )
        ):
            where = near if abs(animal.view[2, 0]) > 0.35 else depth(f"{leg}_root", f"{leg}_knee")
            yield _Layer(where + 1e-3 * order, part, tinted(colour, shade), (ends,))
    head, ahead = depth("skull", "muzzle") + 0.02, animal.view[2] @ animal.head
    for side, x in SIDES.items():
        before = 0.03 if x * ahead[0] > 0.1 or (animal.ears == "pointed" and ahead[2] < -0.2) else -0.03
        ear = (f"{side}_ear_root", f"{side}_{animal.ears}")
        yield _Layer(head + before, AnimalPart.EAR, tinted(animal.coat, 0.72), (ear,))
    yield _Layer(head, AnimalPart.HEAD, tinted(animal.coat, 1.06), (("skull", "muzzle"),))
    if detailed and ahead[2] > -0.6:
        yield _Layer(head + 0.001, AnimalPart.HEAD, (32, 26, 26), (("nose",),), flat=True)
        for side, x in SIDES.items():
            if x * ahead[0] + 0.6 * ahead[2] > 0.1:
                yield _Layer(head + 0.001, AnimalPart.HEAD, (24, 20, 20), ((f"{side}_eye",),), flat=True)


@cache
def _members(names: tuple[str, ...]) -> list[int]:
    """Rows of up to three ellipsoids, the last one repeated."""
    return [_ROWS[name] for name in (*names, names[-1], names[-1])[:3]]


def _paint_spots(canvas: Canvas, animal: Animal, seen: Projection) -> None:
    """Spots on the side of the trunk that the viewer sees."""
    rings = np.array([_ROWS[name] for name in ("rump", "belly", "chest")])
    for share, angle, size in animal.spots:
        weights = np.maximum(0.0, 1 - np.abs(2 * share - np.arange(3)))
        up = weights @ seen.axes[rings, :, 1]
        across = weights @ seen.axes[rings, :, 0] * np.sign(animal.view[2, 0] or 1.0)
        turn = np.deg2rad(angle)
        middle = weights @ seen.places[rings] + 0.85 * (np.sin(turn) * up + np.cos(turn) * across)
        canvas.strokes(middle[None, None].repeat(2, 1), animal.spot, size * 2 * animal.height * abs(animal.view[2, 0]))


def _keypoint_parts() -> np.ndarray:
    of = {
        "nose": (AnimalPart.HEAD,),
        "head": (AnimalPart.HEAD, AnimalPart.EAR),
        "withers": (AnimalPart.TRUNK, AnimalPart.NECK),
        "tail_base": (AnimalPart.TRUNK, AnimalPart.TAIL),
    }
    table = np.zeros((len(ANIMAL), PARTS_PER_PERSON), bool)
    for row, name in zip(table, ANIMAL.keypoints, strict=True):
        leg = name.rpartition("_")[0]
        row[list(of.get(name) or (AnimalPart[f"{leg}_leg".upper()],))] = True
    return table


_KEYPOINT_PARTS = _keypoint_parts()
"""(12, PARTS_PER_PERSON) bool: the parts on which a keypoint counts as visible."""
