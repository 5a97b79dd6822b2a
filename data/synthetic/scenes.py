"""Images of rendered people, or animals, with exact keypoint annotations in COCO's form."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from typing import Any, Literal, NamedTuple, Protocol

import cv2
import numpy as np

from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.synthetic.animals import ANIMAL, animal_extent, paint_animal, random_animal
from posefleet.data.synthetic.bodies import extent, random_figure
from posefleet.data.synthetic.canvas import Canvas
from posefleet.data.synthetic.figures import PARTS_PER_PERSON, Painted, paint_figure
from posefleet.data.synthetic.scenery import develop, paint_background, paint_thing

Annotation = dict[str, Any]
"""One COCO annotation; here without ``id`` and ``image_id`` until it is written."""

FigureKind = Literal["person", "animal"]


class _Figure(Protocol):
    """What a scene needs to know of a figure."""

    @property
    def height(self) -> float: ...
    @property
    def origin(self) -> tuple[float, float]: ...


class _Figures(NamedTuple):
    """How figures of one kind are drawn at random and painted."""

    schema: KeypointSchema
    draw: Callable[[np.random.Generator, float, float], Any]
    """From a generator, the height in pixels and the variety."""
    extent: Callable[[Any], tuple[float, float, float, float]]
    paint: Callable[..., Painted]
    share: float
    """Height of a figure in heights of a person at the same place."""
    margin: float
    """Share of the image's width at either side in which no figure is placed."""
    low: float
    """Share of its height by which a figure reaches below its origin."""


FIGURES: dict[FigureKind, _Figures] = {
    "person": _Figures(COCO17, random_figure, extent, paint_figure, 1.0, 0.03, 0.55),
    "animal": _Figures(ANIMAL, random_animal, animal_extent, paint_animal, 0.5, 0.3, 0.03),
}
"""Kinds of figures by name."""

MIN_AREA = 12
"""Fewest visible pixels that make an annotation."""

MIN_VISIBLE = 3
"""Fewest visible keypoints of a labelled person: one of whom only a sleeve shows cannot be labelled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneConfig:
    """What the images show. Ranges are (low, high), both included."""

    figure: FigureKind = "person"
    """Who is in the images; the settings say person for either kind."""
    width: tuple[int, int] = (256, 256)
    """Pixels."""
    height: tuple[int, int] = (256, 256)
    """Pixels."""
    people: tuple[int, int] = (1, 8)
    """People in an image, crowds not counted; few are more frequent than many."""
    scale: tuple[float, float] = (0.25, 1.5)
    """Standing height of a person in short sides of the image, drawn log-uniformly; above 1 the legs are cut off. The
    withers of an animal are half of it above the ground."""
    together_rate: float = 0.25
    """Probability that a person is placed next to, and often behind, the one before."""
    spacing: float = 0.35
    """Largest distance from that one to either side, in heights; a person is about 0.35 wide."""
    variety: float = 1.0
    """Share of people in any posture and seen from anywhere; the others are upright and face the viewer."""
    things: tuple[int, int] = (0, 4)
    """Things other than people, behind them."""
    occluder_rate: float = 0.12
    """Probability that a thing stands before a person."""
    crowd_rate: float = 0.1
    """Probability that an image has a group in the background that is annotated as one crowd region."""
    unlabelled_rate: float = 0.05
    """Probability that a person is annotated without keypoints."""
    jpeg_quality: int = 90
    """0 to 100."""

    def __post_init__(self) -> None:
        for name, least in (("width", 32), ("height", 32), ("people", 0), ("scale", 0.02), ("things", 0)):
            low, high = getattr(self, name)
            if not least <= low <= high:
                raise ValueError(f"{name} ({low}, {high}) must be (low, high) with {least} <= low <= high")
        for name in ("variety", "together_rate", "occluder_rate", "crowd_rate", "unlabelled_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is a probability: 0 to 1")
        if not 0 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality {self.jpeg_quality} must be 0 to 100")
        if self.spacing < 0:
            raise ValueError(f"spacing {self.spacing} must not be negative")


EASY_SCENES = SceneConfig(people=(1, 2), scale=(0.65, 1.0), variety=0.0)
"""One or two people, upright and facing the viewer: a CPU can learn them in minutes."""

CROWDED_SCENES = SceneConfig(
    people=(4, 8),
    scale=(0.55, 0.8),
    variety=0.0,
    together_rate=0.85,
    spacing=0.3,
    crowd_rate=0.0,
    unlabelled_rate=0.0,
)
"""Several upright people of one size whose boxes overlap: they show how well a method tells people apart."""

LARGE_SCENES = SceneConfig(width=(512, 512), height=(512, 512))
"""The default scenes at a size for networks of published size."""

SCENES = {"default": SceneConfig(), "easy": EASY_SCENES, "crowded": CROWDED_SCENES, "large": LARGE_SCENES}
"""Kinds of scenes by name."""


def render_scene(config: SceneConfig, seed: int | Sequence[int]) -> tuple[np.ndarray, list[Annotation]]:
    """One image and its annotations; the same for the same seed.

    Returns:
        (H, W, 3) uint8 RGB, and COCO annotations without ``id`` and ``image_id``. A keypoint is visible (2) when its
        pixel shows the part of the body that it belongs to, hidden (1) when something else covers it or it is on the
        far side, unlabelled (0) outside the image and for a face seen from behind.
    """
    rng = np.random.default_rng(seed)
    width, height = (int(rng.integers(*side, endpoint=True)) for side in (config.width, config.height))
    background, horizon = paint_background(width, height, rng)
    canvas = Canvas.over(background)
    for _ in range(int(rng.integers(*config.things, endpoint=True))):
        ground = rng.uniform(horizon, height)
        paint_thing(canvas, rng.uniform(0, width), ground, height * rng.uniform(0.2, 0.8), rng)
    kind = FIGURES[config.figure]
    figures = _place_people(config, kind, width, height, horizon, rng)
    crowd = len(figures) + 1 if rng.random() < config.crowd_rate else 0
    if crowd:
        _paint_crowd(canvas, kind, crowd, horizon, rng)
    light = rng.uniform(-1, 1)
    painted = []
    for person, figure in enumerate(figures, start=1):
        painted.append(kind.paint(canvas, figure, person, light, detailed=figure.height > 40))
        if rng.random() < config.occluder_rate:
            foot = figure.origin[1] + kind.low * figure.height
            paint_thing(canvas, rng.uniform(0, width), foot, figure.height * rng.uniform(0.4, 1.0), rng)
    unlabelled = rng.random(len(figures)) < config.unlabelled_rate
    annotations = [
        annotation
        for person, (where, bare) in enumerate(zip(painted, unlabelled, strict=True), start=1)
        if (annotation := annotate_person(canvas.owner, person, where, labelled=not bare)) is not None
    ]
    if crowd and (region := annotate_crowd(canvas.owner, crowd, len(kind.schema))) is not None:
        annotations.append(region)
    return develop(canvas, rng), annotations


# ---------------------------------------------------------------------------------------------------- scene


def _place_people(
    config: SceneConfig, kind: _Figures, width: int, height: int, horizon: float, rng: np.random.Generator
) -> list[_Figure]:
    """Figures that stand on the ground, the farthest first."""
    fewest, most = config.people
    count = fewest + int((most - fewest + 1) * rng.random() ** 2)
    low, high = config.scale
    placed: list[tuple[float, Any]] = []
    x = 0.0
    for i in range(count):
        scale = exp(rng.uniform(log(low), log(max(low, high * count**-0.2))))
        figure = kind.draw(rng, scale * kind.share * min(width, height), config.variety)
        if i > 0 and rng.random() < config.together_rate:
            x += rng.uniform(-config.spacing, config.spacing) * figure.height
        else:
            x = rng.uniform(kind.margin, 1 - kind.margin) * width
        x = min((1 - kind.margin) * width, max(kind.margin * width, x))
        _, top, _, bottom = kind.extent(figure)
        foot = min(1.05 * height, horizon + (height - horizon) * (0.1 + 0.9 * scale) * rng.uniform(0.9, 1.08))
        tall = bottom - top
        # Most heads are in the image: cameras look at faces.
        foot = max(foot, tall + (rng.uniform(-0.06, 0.3) * height if tall > 0.7 * height else 0.0))
        placed.append((foot, replace(figure, origin=(x, foot - bottom))))
    return [figure for _, figure in sorted(placed, key=lambda item: item[0])]


def _paint_crowd(canvas: Canvas, kind: _Figures, person: int, horizon: float, rng: np.random.Generator) -> None:
    """A group of tiny figures near the horizon that share one owner."""
    height, width = canvas.owner.shape
    middle, size = rng.uniform(0.15, 0.85) * width, rng.uniform(0.07, 0.14) * height
    for _ in range(int(rng.integers(6, 15))):
        x, foot = middle + rng.normal(0, 1.3) * size, horizon + rng.uniform(0.2, 0.8) * size
        figure = kind.draw(rng, size * kind.share * rng.uniform(0.85, 1.15), 1.0)
        kind.paint(canvas, replace(figure, origin=(x, foot - kind.extent(figure)[3])), person, detailed=False)


# ---------------------------------------------------------------------------------------------------- annotations


def annotate_person(owner: np.ndarray, person: int, painted: Painted, *, labelled: bool) -> Annotation | None:
    """The annotation of one person; None when fewer than ``MIN_AREA`` pixels show.

    Args:
        owner: The canvas' (H, W) owners.
        person: Number of the person on the canvas.
        labelled: Whether keypoints are written, if at least ``MIN_VISIBLE`` are visible.
    """
    mask, left, top = _visible_mask(owner, person)
    polygons = _polygons(mask, left, top)
    if not polygons:
        return None
    visibility = _visibility(owner, person, painted)
    if not labelled or int((visibility == 2).sum()) < MIN_VISIBLE:
        visibility[:] = 0
    points = np.where(visibility[:, None] > 0, painted.keypoints.round(2), 0.0)
    keypoints = [number for (x, y), v in zip(points.tolist(), visibility.tolist(), strict=True) for number in (x, y, v)]
    return _annotation(mask, left, top, polygons, keypoints)


def annotate_crowd(owner: np.ndarray, person: int, keypoints: int) -> Annotation | None:
    """The crowd region of everybody who was painted as ``person``, with ``keypoints`` unlabelled keypoints; None when
    nothing shows."""
    mask, left, top = _visible_mask(owner, person)
    if not mask.size:
        return None
    whole = np.zeros(owner.shape, np.uint8)
    whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return _annotation(mask, left, top, {"size": list(owner.shape), "counts": _run_lengths(whole)}, [0] * 3 * keypoints)


def _annotation(mask: np.ndarray, left: int, top: int, segmentation: Any, keypoints: Sequence[float]) -> Annotation:
    """COCO's fields; run lengths mean a crowd. ``keypoints`` is flat, [x, y, v] * K."""
    height, width = mask.shape
    return {
        "category_id": 1,
        "iscrowd": int(isinstance(segmentation, dict)),
        "num_keypoints": sum(v > 0 for v in keypoints[2::3]),
        "keypoints": keypoints,
        "bbox": [float(left), float(top), float(width), float(height)],
        "area": float(cv2.countNonZero(mask)),
        "segmentation": segmentation,
    }


def _visible_mask(owner: np.ndarray, person: int) -> tuple[np.ndarray, int, int]:
    """(h, w) uint8 mask (0, 255) of what shows of a person, cut out, and the left and top of the cut."""
    first = person * PARTS_PER_PERSON
    mask = cv2.inRange(owner, first, first + PARTS_PER_PERSON - 1)
    left, top, width, height = cv2.boundingRect(mask)
    return mask[top : top + height, left : left + width], left, top


def _visibility(owner: np.ndarray, person: int, painted: Painted) -> np.ndarray:
    """(K,) uint8 COCO visibility."""
    height, width = owner.shape
    x, y = painted.keypoints.T
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    column, row = np.where(inside, x, 0).astype(int), np.where(inside, y, 0).astype(int)
    owners = owner[row, column].astype(int) - person * PARTS_PER_PERSON
    own = (owners >= 0) & (owners < PARTS_PER_PERSON)
    shown = own & painted.parts[np.arange(len(x)), np.where(own, owners, 0)]
    return np.where(inside, np.minimum(painted.turned, np.where(shown, 2, 1)), 0).astype(np.uint8)


def _polygons(mask: np.ndarray, left: int, top: int) -> list[list[float]]:
    """Outer outlines of a mask as COCO polygons, in continuous coordinates; none below ``MIN_AREA`` pixels."""
    if not mask.size or cv2.countNonZero(mask) < MIN_AREA:
        return []
    # Contours run through pixel centres. Grown by one pixel to the right and below, they run along pixel edges.
    wider = cv2.copyMakeBorder(mask, 0, 1, 0, 1, cv2.BORDER_CONSTANT, value=0)
    grown = cv2.dilate(wider, np.ones((2, 2), np.uint8), anchor=(1, 1))
    contours, _ = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top))
    slim = [cv2.approxPolyDP(contour, 0.5, True) for contour in contours]
    return [contour.ravel().tolist() for contour in slim if len(contour) >= 3]


def _run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths: column by column, the first run is of zeros."""
    flat = np.concatenate([[0], mask.ravel(order="F")])
    changes = np.flatnonzero(np.diff(flat))
    runs: list[int] = np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()
    return runs
