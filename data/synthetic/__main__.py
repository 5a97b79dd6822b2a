"""Command line of the renderer: ``python -m posefleet.data.synthetic --out FOLDER --split NAME --count N``."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from posefleet.command_line import fail, parse, report_error
from posefleet.data.synthetic.dataset import write_dataset
from posefleet.data.synthetic.films import FilmConfig, write_films
from posefleet.data.synthetic.scenes import SCENES, FigureKind, SceneConfig

Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is rendered, and where to."""

    out: Annotated[Path, "FOLDER"]
    """Root folder of the data set."""
    split: Annotated[str, "NAME"] = "train2017"
    """Split: name of the image folder and of the annotation file."""
    count: int = 1000
    """Number of images."""
    seed: int = 0
    """Seed of everything that is drawn; the same seed renders the same images."""
    workers: int | None = None
    """Processes that render. Default: one for each core."""
    figure: FigureKind = "person"
    """Who is rendered: people with COCO's 17 keypoints, or four-legged animals with 12 keypoints of their own. Options
    that say people mean either."""
    easy: bool = False
    """Few large people who stand upright: learned in minutes on a CPU."""
    crowded: bool = False
    """People before people."""
    size: Annotated[tuple[int, ...], "PX"] = (256,)
    """Side of the images, or width and height, pixels."""
    people: Annotated[Pair, "LOW HIGH"] | None = None
    """Fewest and most people in an image. Default: 1 8."""
    scale: Annotated[tuple[float, float], "LOW HIGH"] | None = None
    """Standing height of a person, in image heights. Default: 0.25 1.5."""
    variety: float | None = None
    """Share of people who are not upright and do not face the camera, 0..1. Raise it for harder images. Default: 1."""
    crowd_rate: float | None = None
    """Share of images with a crowd, 0..1."""
    unlabelled_rate: float | None = None
    """Share of people without keypoints, 0..1."""
    jpeg_quality: int | None = None
    """Quality of the JPEG files, 0..100."""
    film: bool = False
    """Render --count films of people who walk past each other, with a track_id for each person, instead of images."""
    seconds: float = 8.0
    """Length of a film."""
    rate: float = 15.0
    """Frames a second of a film."""

    def __post_init__(self) -> None:
        if self.easy and self.crowded:
            raise ValueError("give --easy or --crowded, not both")
        if self.film and (self.figure != "person" or self.easy or self.crowded):
            raise ValueError("--film renders people who walk; leave out --figure, --easy and --crowded")
        if not 1 <= len(self.size) <= 2:
            raise ValueError(f"--size takes the side, or width and height, not {len(self.size)} numbers")

    def scenes(self) -> SceneConfig:
        """What the images show.

        Raises:
            ValueError: A value is out of its range.
        """
        width, height = self.size[0], self.size[-1]
        given: dict[str, Any] = {"figure": self.figure, "width": (width, width), "height": (height, height)}
        for name in ("people", "scale", "variety", "crowd_rate", "unlabelled_rate", "jpeg_quality"):
            if (value := getattr(self, name)) is not None:
                given[name] = value
        return replace(SCENES["easy" if self.easy else "crowded" if self.crowded else "default"], **given)

    def films(self) -> FilmConfig:
        """What the films show.

        Raises:
            ValueError: A value is out of its range.
        """
        given: dict[str, Any] = {"width": self.size[0], "height": self.size[-1]} if self.size != (256,) else {}
        given |= {name: value for name in ("people", "scale") if (value := getattr(self, name)) is not None}
        return FilmConfig(seconds=self.seconds, rate=self.rate, **given)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see ``--help``."""
    options, _ = parse(
        Options,
        arguments,
        program="python -m posefleet.data.synthetic",
        about="Render people or animals with exact keypoint annotations in COCO's layout.",
    )
    workers, progress = options.workers or os.cpu_count() or 1, sys.stderr.isatty()
    try:
        if options.film:
            path = write_films(options.out, options.split, options.count, options.films(), options.seed)
            sys.stdout.write(f"{path}\n")
            return
        path = write_dataset(
            options.out, options.split, options.count, options.scenes(), options.seed, workers, progress
        )
    except ValueError as error:
        fail(error)
    except OSError as error:
        report_error(error)
        raise SystemExit(1) from None
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
