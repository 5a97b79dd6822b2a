"""The command that writes a data set of rendered people.

python -m posefleet.data.synthetic --out datasets/synthetic --split train2017 --count 1000
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from posefleet.data.loading.memory import collect_garbage_rarely
from posefleet.data.synthetic.dataset import write_dataset
from posefleet.data.synthetic.scenes import SCENES, SceneConfig


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see ``--help``."""
    collect_garbage_rarely()
    parser = argparse.ArgumentParser(
        prog="python -m posefleet.data.synthetic", description="Render people with exact COCO keypoint annotations."
    )
    default = SceneConfig()
    parser.add_argument("--out", type=Path, required=True, help="root folder of the data set")
    parser.add_argument("--split", default="train2017", help="image folder and json name (default: %(default)s)")
    parser.add_argument("--count", type=int, default=1000, help="pictures (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    kind = parser.add_mutually_exclusive_group()
    for name, told in (("easy", "learned in minutes on a CPU"), ("crowded", "people before people")):
        scene = SCENES[name]
        told = f"people {scene.people}, scale {scene.scale}, variety {scene.variety:g}: {told}"
        kind.add_argument(f"--{name}", dest="scenes", action="store_const", const=name, help=told)
    parser.add_argument("--size", type=int, nargs="+", default=[256], metavar="PX", help="side, or width and height")
    for name, of, told in (("people", int, "in a picture"), ("scale", float, "standing height in pictures")):
        told = f"{told} (default: {getattr(default, name)})"
        parser.add_argument(f"--{name}", type=of, nargs=2, metavar=("LOW", "HIGH"), help=told)
    for name, told in (
        ("variety", "share of people not upright and facing us"),
        ("crowd_rate", "share of pictures with a crowd"),
        ("unlabelled_rate", "share of people left unlabelled"),
    ):
        told = f"{told} (default: {getattr(default, name)})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, help=told)
    parser.add_argument("--jpeg-quality", type=int, help=f"0 to 100 (default: {default.jpeg_quality})")
    chosen = parser.parse_args(arguments)
    width, height = chosen.size[0], chosen.size[-1]
    given: dict[str, Any] = {"width": (width, width), "height": (height, height)}
    for name in ("people", "scale", "variety", "crowd_rate", "unlabelled_rate", "jpeg_quality"):
        if (value := getattr(chosen, name)) is not None:
            given[name] = tuple(value) if isinstance(value, list) else value
    try:
        config = replace(SCENES[chosen.scenes or "default"], **given)
        progress = sys.stderr.isatty()
        path = write_dataset(chosen.out, chosen.split, chosen.count, config, chosen.seed, chosen.workers, progress)
    except ValueError as error:
        parser.error(str(error))
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
