"""Films of rendered people who walk past each other, with exact keypoints and identities.

People walk from side to side before a still background, each on a line of their own, so the near ones hide the far
ones; a thing in the foreground hides whoever walks behind it. Annotations are COCO's, with ``track_id``.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import pi, sin
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from posefleet.data.io.files import write_file
from posefleet.data.synthetic.bodies import Look, extent, make_figure, random_look
from posefleet.data.synthetic.canvas import Canvas
from posefleet.data.synthetic.figures import paint_figure
from posefleet.data.synthetic.postures import Build, Limb, Posture, random_build
from posefleet.data.synthetic.scenery import develop, paint_background, paint_thing
from posefleet.data.synthetic.scenes import Annotation, annotate_person
from posefleet.data.video_file import VideoFile

SIDEWAYS = 55.0
"""Degrees that a walking person faces away from the viewer, towards where it goes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FilmConfig:
    """What a film shows. Ranges are (low, high), both included."""

    width: int = 320
    """Pixels."""
    height: int = 192
    """Pixels."""
    seconds: float = 8.0
    """Length."""
    rate: float = 15.0
    """Frames per second."""
    people: tuple[int, int] = (3, 6)
    """People in a film; all of them are there from the first to the last frame."""
    scale: tuple[float, float] = (0.4, 0.75)
    """Standing height of a person, in heights of the film."""
    speed: tuple[float, float] = (0.08, 0.3)
    """Widths of the film that a person walks in a second."""
    pillars: tuple[int, int] = (0, 2)
    """Things in the foreground."""

    def __post_init__(self) -> None:
        for name in ("people", "scale", "speed", "pillars"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"{name} ({low}, {high}) must be (low, high) with 0 <= low <= high")
        if min(self.width, self.height) < 32 or self.seconds <= 0 or self.rate <= 0:
            raise ValueError("width and height must be at least 32, seconds and rate above 0")

    @property
    def frames(self) -> int:
        """Number of frames."""
        return max(1, round(self.seconds * self.rate))


class _Walker(NamedTuple):
    """One person of a film."""

    build: Build
    look: Look
    height: float
    """Pixels, standing."""
    foot: float
    """y of the ground under it, pixels."""
    start: float
    """Where it is on its way at the beginning, in widths of the film; it goes to and fro between 0 and 1."""
    speed: float
    """Widths a second; negative: to the left at first."""
    pace: float
    """Steps a second."""


class FilmFrame(NamedTuple):
    """One frame."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    annotations: list[Annotation]
    """Of those who are seen, with ``track_id``, without ``id`` and ``image_id``."""


def render_film(config: FilmConfig, seed: int) -> Iterator[FilmFrame]:
    """The frames of a film; the same for the same seed."""
    rng = np.random.default_rng(seed)
    background, horizon = paint_background(config.width, config.height, rng)
    walkers = sorted(_walkers(config, horizon, rng), key=lambda walker: walker.foot)
    pillars = [
        (rng.uniform(0.15, 0.85) * config.width, rng.uniform(0.5, 0.9) * config.height, int(rng.integers(1 << 31)))
        for _ in range(int(rng.integers(*config.pillars, endpoint=True)))
    ]
    camera, light = int(rng.integers(1 << 31)), rng.uniform(-1, 1)
    for index in range(config.frames):
        canvas = Canvas.over(background.copy())
        painted = []
        for person, walker in enumerate(walkers, start=1):
            x, right, phase = _way(walker, index / config.rate)
            yaw = SIDEWAYS if right else -SIDEWAYS
            figure = make_figure(_stride(phase), walker.build, walker.look, walker.height, yaw, pitch=4.0)
            figure = replace(figure, origin=(x * config.width, walker.foot - extent(figure)[3]))
            painted.append(paint_figure(canvas, figure, person, light, detailed=walker.height > 40))
        for x, size, look in pillars:
            paint_thing(canvas, x, 1.02 * config.height, size, np.random.default_rng(look))
        annotations = [
            {**annotation, "track_id": person}
            for person, where in enumerate(painted, start=1)
            if (annotation := annotate_person(canvas.owner, person, where, labelled=True)) is not None
        ]
        yield FilmFrame(develop(canvas, np.random.default_rng(camera)), annotations)


def _walkers(config: FilmConfig, horizon: float, rng: np.random.Generator) -> Iterator[_Walker]:
    for _ in range(int(rng.integers(*config.people, endpoint=True))):
        scale = rng.uniform(*config.scale)
        low, high = config.scale
        near = (scale - low) / max(1e-6, high - low)
        foot = horizon + (config.height - horizon) * (0.3 + 0.68 * near) + rng.normal(0, 0.01 * config.height)
        height = scale * config.height
        speed = rng.uniform(*config.speed) * rng.choice((-1, 1))
        yield _Walker(
            random_build(rng),
            random_look(rng),
            height,
            max(foot, 0.95 * height),
            rng.random(),
            speed,
            rng.uniform(1.4, 2.2),
        )


def _way(walker: _Walker, seconds: float) -> tuple[float, bool, float]:
    """x in widths of the film, whether the person goes to the right, and the phase of its step, radians."""
    at = (walker.start + walker.speed * seconds) % 2
    right = (at < 1) == (walker.speed > 0)
    return 0.06 + 0.88 * (at if at < 1 else 2 - at), right, pi * walker.pace * seconds


def _stride(phase: float) -> Posture:
    """A walking body; legs and arms swing against each other."""
    swing = sin(phase)
    legs = (
        Limb(flex=26 * swing, bend=18 + 16 * max(0.0, -swing)),
        Limb(flex=-26 * swing, bend=18 + 16 * max(0.0, swing)),
    )
    arms = (Limb(flex=-22 * swing, abduct=8, bend=22), Limb(flex=22 * swing, abduct=8, bend=22))
    return Posture(arms, legs, lean=4)


def write_films(out: Path, split: str, count: int, config: FilmConfig | None = None, seed: int = 0) -> Path:
    """Render films into ``OUT/SPLIT/NAME.webm``, and every frame as an image of ``OUT/annotations/tracks_SPLIT.json``.

    Images of the json have ``video`` (the film's file name) and ``frame`` (from 0); annotations have ``track_id``.

    Returns:
        Path of the json.

    Raises:
        ValueError: ``count`` is not positive.
        OSError: A film cannot be written.
    """
    from posefleet.data.synthetic.dataset import category_of

    if count < 1:
        raise ValueError(f"count {count} must be at least 1")
    config = config or FilmConfig()
    images: list[dict[str, Any]] = []
    annotations: list[Annotation] = []
    (out / split).mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        film = VideoFile(out / split / f".partial-{number:06d}", config.rate)
        for index, frame in enumerate(render_film(config, seed * 1_000_003 + number)):
            film.write(frame.image)
            assert film.path
            name = film.path.name.removeprefix(".partial-")
            image = {"id": len(images) + 1, "file_name": name, "video": name, "frame": index}
            images.append({**image, "width": config.width, "height": config.height})
            for annotation in frame.annotations:
                annotations.append({"id": len(annotations) + 1, "image_id": len(images), **annotation})
        film.close()
        if film.path:
            film.path.replace(out / split / name)
    path = out / "annotations" / f"tracks_{split}.json"
    info = {"description": "posefleet synthetic films", "seed": seed, "film": asdict(config)}
    document = {"info": info, "images": images, "annotations": annotations, "categories": [category_of("person")]}
    write_file(str(path), json.dumps(document, separators=(",", ":")).encode())
    return path
