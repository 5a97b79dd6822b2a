"""What DetPoseNet's filter is worth, apart from its networks: perfect maps, simulated detections, perfect refinement.

    python tests/bench/bench_filter.py                      # crowded scenes, and photographs where there are any
    python tests/bench/bench_filter.py --images 50 --sizes 512 --coco DIR

Every row refines boxes that it chose from the same detections. Its AP is that of the boxes alone: a box becomes the
annotated pose of the person whom it overlaps most, with the score of the box. "Boxes a person" is how often the
refinement runs, the paper's measure of cost (1.6 there); behind it stands where the boxes come from.

* Coarse maps are the targets of the coarse net (keypoint maps of 7 px, limbs of 8 px, stride 4) with a trace of noise,
  because two equal values would be two peaks.
* Detections: for each person 8 boxes whose sides are off by 8 % of the box (standard deviation, --off), with a score
  of the person's own (0.6..1) times the IoU; a box around each two people whose boxes overlap by an IoU of 0.2 (score
  0.3..0.8); 5 boxes anywhere (score 0.05..0.5).
* The row "annotated poses" filters with the true poses instead of those that the maps give. What it has above the row
  before, grouping loses.

Crowded scenes are new for each seed. Photographs are the same, with new detections. AP is of all seeds together, in
brackets the lowest and highest of a seed; differences have 95 % intervals from draws of images. A CPU is enough.
"""

import argparse
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from posefleet.data.coco.annotations import people_of
from posefleet.data.evaluation.bootstrap import Interval, average_precision
from posefleet.data.evaluation.evaluate import Evaluation, evaluate
from posefleet.data.evaluation.ground_truth import GroundTruth
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import People, Poses
from posefleet.data.synthetic.scenes import CROWDED_SCENES, render_scene
from posefleet.models.detposenet.box_filter import FilterConfig, Filtered, filter_boxes
from posefleet.models.detposenet.coarse_net import CoarseConfig
from posefleet.models.detposenet.detector import DetectorConfig
from posefleet.models.detposenet.model import Config, Model
from posefleet.models.detposenet.paf import CoarsePoses, group_poses
from posefleet.models.detposenet.refinement import PrsConfig
from posefleet.models.parts.ops.assign import pad_people
from posefleet.models.parts.ops.nms import box_iou

COPIES, PAIR_IOU, RUBBISH = 8, 0.2, 5
"""Boxes of a person, overlap of people who get a box together, boxes of nobody."""
NOISE = 1e-4
"""Standard deviation of the noise on perfect maps."""
STEP = 100_000
"""Image ids of a seed start at a multiple of this."""
DRAWS = 400
"""Draws of images for an interval."""
COCO_MINI = Path(__file__).resolve().parents[3] / "shared" / "coco-mini"


class Row(NamedTuple):
    """A way to choose boxes."""

    name: str
    filter: FilterConfig
    overhang: float = 8.0  # pixels by which the limbs of the maps extend beyond their ends
    annotated: bool = False  # filter with the annotated poses


DEFAULT = FilterConfig()
NMS = ("box NMS .5", "box NMS .7")
ROWS = (
    Row(NMS[0], FilterConfig(mode="nms")),
    Row(NMS[1], FilterConfig(mode="nms", nms_threshold=0.7)),
    Row("the paper's filter", FilterConfig.paper(), overhang=0.0),
    Row("the same, limbs 8 px longer", FilterConfig.paper()),
    Row("our filter", DEFAULT),
    Row("  limbs as in the formula", DEFAULT, overhang=0.0),
    Row("  boxes without a pose dropped", replace(DEFAULT, uncovered="drop")),
    Row("  box: first", replace(DEFAULT, box="first")),
    Row("  box: mean", replace(DEFAULT, box="mean")),
    Row("  poses of 6 keypoints or more", replace(DEFAULT, delta_kpt=5)),
    Row("  fragments not merged", replace(DEFAULT, merge_fragments=False)),
    Row("  recovered boxes not scaled", replace(DEFAULT, scale_recovered=False)),
    Row("  annotated poses", DEFAULT, annotated=True),
)


@dataclass(frozen=True, slots=True)
class Scene:
    """An image without its pixels."""

    size: tuple[int, int]
    """(height, width), pixels."""
    annotations: list[dict[str, Any]]
    """COCO's, in pixels of ``size``."""

    @property
    def people(self) -> People:
        """Single people; crowds are left out."""
        people = people_of(self.annotations, COCO17)
        return people[~people.crowd]


def crowded(count: int, side: int, seed: int) -> Iterator[Scene]:
    """Rendered scenes of people before people."""
    config = replace(CROWDED_SCENES, width=(side, side), height=(side, side))
    for index in range(count):
        _, annotations = render_scene(config, (seed, side, index))
        yield Scene((side, side), list(annotations))


def photographs(coco: Path, side: int) -> Iterator[Scene]:
    """The images with keypoint people of a data set in COCO's layout, resized to a short side, long side 7/4 of it."""
    for path in sorted((coco / "annotations").glob("person_keypoints_*.json")):
        content = json.loads(path.read_text())
        people: dict[int, list[dict[str, Any]]] = {}
        for annotation in content["annotations"]:
            people.setdefault(annotation["image_id"], []).append(annotation)
        for image in content["images"]:
            found = people.get(image["id"], [])
            if any(person["num_keypoints"] and not person["iscrowd"] for person in found):
                short, long = sorted((image["width"], image["height"]))
                scale = min(side / short, 1.75 * side / long)
                size = (round(image["height"] * scale), round(image["width"] * scale))
                yield Scene(size, [_resized(person, scale) for person in found])


def _resized(person: dict[str, Any], scale: float) -> dict[str, Any]:
    keypoints = np.array(person["keypoints"], float).reshape(-1, 3) * (scale, scale, 1)
    box = [scale * value for value in person["bbox"]]
    return {**person, "keypoints": keypoints.ravel().tolist(), "bbox": box, "area": person["area"] * scale**2}


# ------------------------------------------------------------------------------------------------ ideal parts


def detections(scene: Scene, off: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Boxes (D, 4) and scores (D,) of a detector without NMS, whose sides are off by ``off`` sides of the box."""

    def uniform(count: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=random)

    true = scene.people.boxes
    limit = torch.tensor(scene.size[::-1] * 2, dtype=torch.float32)
    sides = (true[:, 2:] - true[:, :2]).repeat(1, 2)
    near = true.repeat(COPIES, 1)
    near = near + off * sides.repeat(COPIES, 1) * torch.randn(near.shape, generator=random)
    near = near.clamp(min=0).minimum(limit)
    scores = uniform(len(true), 0.6, 1.0).repeat(COPIES) * box_iou(near, true.repeat(COPIES, 1))
    one, other = torch.triu_indices(len(true), len(true), 1)
    overlap = box_iou(true[one], true[other]) >= PAIR_IOU
    one, other = one[overlap], other[overlap]
    pairs = torch.cat([torch.minimum(true[one, :2], true[other, :2]), torch.maximum(true[one, 2:], true[other, 2:])], 1)
    middle = torch.rand(RUBBISH, 2, generator=random) * limit[:2]
    half = (0.05 + 0.25 * torch.rand(RUBBISH, 2, generator=random)) * limit[:2]
    rubbish = torch.cat([middle - half, middle + half], 1).clamp(min=0).minimum(limit)
    boxes = torch.cat([near, pairs, rubbish])
    return boxes, torch.cat([scores, uniform(len(pairs), 0.3, 0.8), uniform(RUBBISH, 0.05, 0.5)]).clamp(0, 1)


def grouped(model: Model, scene: Scene, random: torch.Generator) -> CoarsePoses:
    """The coarse poses that perfect maps give."""
    stride = model.coarse.stride
    size = tuple(-(-side // stride) for side in scene.size)
    heat, paf, _ = model.coarse_targets(pad_people([scene.people], torch.device("cpu")), (size[0], size[1]))
    heat, paf = (maps + NOISE * torch.randn(maps.shape, generator=random) for maps in (heat, paf))
    return group_poses(heat, paf, model.edges, stride, scene.size[0], model.config.paf)[0]


def annotated_poses(scene: Scene) -> CoarsePoses:
    """The annotated poses, as if they had been found."""
    people = scene.people
    people = people[people.labelled]
    return CoarsePoses(people.keypoints, (people.visibility > 0).float())


def refined(found: Filtered, people: People) -> Poses:
    """What a perfect refinement makes of boxes: the person of largest IoU, or a point in a box that overlaps nobody.

    People without labelled keypoints have poses, too: points in their boxes, which the evaluation ignores.
    """
    middles = ((people.boxes[:, :2] + people.boxes[:, 2:]) / 2)[:, None].expand(-1, len(COCO17), -1)
    known = people.keypoints.where(people.labelled[:, None, None], middles)
    own = ((found.boxes[:, :2] + found.boxes[:, 2:]) / 2)[:, None].expand(-1, len(COCO17), -1)
    keypoints = own
    if len(people) and len(found.boxes):
        overlap, person = box_iou(found.boxes[:, None], people.boxes[None]).max(1)
        keypoints = known[person].where((overlap > 0)[:, None, None], own)
    order = found.scores.argsort(descending=True, stable=True)
    scores = found.scores[order]
    return Poses(keypoints[order], scores[:, None].expand(-1, len(COCO17)), scores)


def ideal_model(overhang: float) -> Model:
    """A model that only draws targets; its networks are as small as they can be and never run."""
    coarse = CoarseConfig(width=16, depth=1, norm="group", limb_overhang=overhang)
    detector = DetectorConfig(width=16, hidden=16, per_level=1, proposals=1)
    prs = PrsConfig(width=16, depth=1, size=8, stacks=1, norm="group")
    return Model(Config(coarse=coarse, detector=detector, prs=prs), COCO17)


# ------------------------------------------------------------------------------------------------ measuring


class Result(NamedTuple):
    """A row on all images of all seeds."""

    evaluation: Evaluation
    of_seeds: list[float]  # AP of each seed
    sources: Counter[str]  # origin of the boxes
    people: int


def measure(seeds: Sequence[Sequence[Scene]], rows: Sequence[Row], off: float) -> dict[str, Result]:
    """Each row on the same scenes and the same detections of every seed."""
    models = {overhang: ideal_model(overhang) for overhang in {row.overhang for row in rows}}
    sigmas = torch.tensor(COCO17.sigmas)
    poses: dict[str, dict[int, Poses]] = {row.name: {} for row in rows}
    sources: dict[str, Counter[str]] = {row.name: Counter() for row in rows}
    records = []
    for seed, scenes in enumerate(seeds):
        for index, scene in enumerate(scenes):
            image_id, people = seed * STEP + index, scene.people
            random = torch.Generator().manual_seed(image_id)
            records.append((image_id, scene.size[::-1], scene.annotations))
            boxes, scores = detections(scene, off, random)
            coarse = {overhang: grouped(model, scene, random) for overhang, model in models.items()}
            for row in rows:
                found = annotated_poses(scene) if row.annotated else coarse[row.overhang]
                chosen = filter_boxes(boxes, scores, found.keypoints, found.scores, sigmas, scene.size, row.filter)
                poses[row.name][image_id] = refined(chosen, people)
                sources[row.name].update(chosen.sources)
    truth = GroundTruth.from_records(records)
    return {row.name: _result(truth, poses[row.name], sources[row.name], len(seeds)) for row in rows}


def _result(truth: GroundTruth, poses: dict[int, Poses], sources: Counter[str], seeds: int) -> Result:
    evaluation = evaluate(truth, poses, COCO17)
    assert evaluation.matches is not None
    seed = truth.image_ids // STEP
    weights = (seed == np.arange(seeds)[:, None]).astype(np.int64)
    of_seeds = average_precision(evaluation.matches, weights).tolist()
    return Result(evaluation, of_seeds, sources, evaluation.protocol.people)


def drawn(results: dict[str, Result], repeats: int) -> dict[str, np.ndarray]:
    """AP of each row in every draw of images; images that are in the data ``repeats`` times are drawn together."""
    found = {}
    for name, result in results.items():
        matches = result.evaluation.matches
        assert matches is not None
        images = len(matches.image_ids) // repeats
        draws = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), size=DRAWS)
        found[name] = average_precision(matches, np.tile(draws, repeats))
    return found


def table(results: dict[str, Result], repeats: int) -> Iterator[str]:
    """Lines of text."""
    yield (
        f"{'':<32}{'AP':>6}  {'of a seed':<14}{'boxes a person':>15}  {'minus NMS .5':<26}{'minus NMS .7':<26}"
        "normal, recovered, unmatched, uncovered a person"
    )
    draws = drawn(results, repeats)

    def minus(one: str, other: str) -> Interval:
        low, high = np.nanquantile(draws[one] - draws[other], [0.025, 0.975])
        return Interval(results[one].evaluation.ap - results[other].evaluation.ap, float(low), float(high))

    for name, result in results.items():
        boxes = sum(result.sources.values()) / result.people
        spread = f"({min(result.of_seeds):.3f}..{max(result.of_seeds):.3f})"
        gains = [str(minus(name, nms)) if name not in NMS else "" for nms in NMS]
        origin = ", ".join(
            f"{result.sources[source] / result.people:.2f}"
            for source in ("normal", "recovered", "unmatched", "uncovered")
        )
        yield (
            f"{name:<32}{result.evaluation.ap:6.3f}  {spread:<14}{boxes:>15.2f}  {gains[0]:<26}{gains[1]:<26}"
            f"{origin if name not in NMS else ''}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status is 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=150, help="scenes of each seed and size")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512], metavar="PX")
    parser.add_argument("--off", type=float, default=0.08, help="error of detected boxes, in sides of the box")
    parser.add_argument("--coco", type=Path, default=COCO_MINI, help="photographs in COCO's layout")
    parser.add_argument("--photographs", type=int, default=150, help="largest number of photographs")
    options = parser.parse_args(arguments)
    for size in options.sizes:
        start = time.perf_counter()
        scenes = [list(crowded(options.images, size, seed)) for seed in range(options.seeds)]
        _report(f"crowded scenes, {size} px", scenes, 1, options.off, start)
    if options.coco.is_dir():
        for size in options.sizes:
            start = time.perf_counter()
            found = list(itertools.islice(photographs(options.coco, size), options.photographs))
            _report(f"photographs, {size} px", [found] * options.seeds, options.seeds, options.off, start)
    else:
        sys.stdout.write(f"no photographs at {options.coco}\n")
    return 0


def _report(name: str, seeds: Sequence[Sequence[Scene]], repeats: int, off: float, start: float) -> None:
    results = measure(seeds, ROWS, off)
    people = next(iter(results.values())).people
    images = sum(map(len, seeds))
    lines = "\n".join(table(results, repeats))
    seconds = time.perf_counter() - start
    sys.stdout.write(f"{name}: {images} images and {people} people in {len(seeds)} seeds, {seconds:.0f} s\n{lines}\n\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
