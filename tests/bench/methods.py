"""Speed of the five methods beside torchvision's Keypoint R-CNN (R50-FPN), which sees the same images.

    python tests/bench/methods.py                                    # all of it: about half an hour on two cores
    python tests/bench/methods.py --sizes 512 --methods smpr --rounds 3 --measure predict

Prints, for each method and size, the median times of a prediction of one image and of a training step (forward,
backward, optimizer), the same of Keypoint R-CNN, and how many times faster the method is, from runs that take turns
(A B A B). Then how a prediction divides into network and the rest, and which of the targets are met. It reports and
does not judge: the exit status is 0. Needs torch, torchvision, timm, NumPy and OpenCV.

The models are those of jobs/configs/METHOD.yaml (InsPose: inspose_paper.yaml) with random weights. Neither side
averages with a mirrored image.
Random weights find nobody, or everybody everywhere, so ours are given what to find: 20 people are painted into the
image, and the network's last layers, after they have done their work, give what a good network would say of them.

* SMPR, PFS, InsPose: high scores at all cells that training assigns to people (several for each person, as duplicates
  that suppression has to remove), SMPR and PFS also poses there that are off by some pixels. InsPose runs the small
  networks of all these cells; their maps are random.
* LOGO-CAP: the target maps of centres and keypoints, and the offsets to the keypoints.
* DetPoseNet: the target maps of keypoints and limbs; ten boxes round each person instead of those of its detector.

Keypoint R-CNN returns its 20 best boxes, whatever their score, so it also decodes 20 people; its own resizing is
set to the size of the image. It runs in the memory format in which it is faster. In training the stem and the first
stage of its backbone are frozen, as torchvision does with pretrained weights and as ours are.

Post-processing is what a prediction does outside of the layers of the network: sampling, decoding, suppression, and
for InsPose also the small networks and the layer that makes their weights.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import People
from posefleet.data.synthetic.bodies import extent, random_figure
from posefleet.data.synthetic.canvas import Canvas
from posefleet.data.synthetic.figures import paint_figure
from posefleet.data.synthetic.scenery import develop, paint_background
from posefleet.models import available_methods, load_method
from posefleet.models.detposenet.detector import Boxes
from posefleet.models.logocap.targets import heat_targets, owner_targets
from posefleet.models.parts.layers.backbones import BackboneConfig
from posefleet.models.parts.layers.fpn import FPN
from posefleet.models.parts.ops.assign import pad_people
from posefleet.models.parts.ops.cells import encode_offsets, level_sizes, pyramid_cells, read_cells

FASTER = 1.5
"""Times that PFS, SMPR and InsPose should be faster than Keypoint R-CNN in predictions on a CPU."""
REST = 0.10
"""Share of a prediction that post-processing may take at 20 people."""
AFTER_BACKBONE = 0.30
"""Time of everything after LOGO-CAP's backbone at 25 poses, in times of the backbone."""
ADAPTED_POSES = 25


def paper_config(method: str) -> Any:
    """The model of jobs/configs/METHOD.yaml, without pretrained weights and flip averaging.

    Of InsPose it is that of inspose_paper.yaml, of DetPoseNet that of detposenet_whitebox.yaml, which trains all parts.
    """
    module = load_method(method)
    resnet = BackboneConfig(pretrained=False)
    if method == "inspose":
        return replace(module.Config.paper(), backbone=replace(resnet, norm="trained"))
    if method == "logocap":
        return module.Config(backbone=replace(module.Config().backbone, pretrained=False))
    if method == "detposenet":
        config = module.Config()
        prs = replace(config.prs, scale_jitter=(0.75, 1.25), flip_average=False)
        coarse = replace(config.coarse, limb_overhang=8.0)
        return replace(config, coarse=coarse, prs=prs, loss=replace(config.loss, kpt=100, prs=100))
    return module.Config(backbone=resnet)


# ------------------------------------------------------------------------------------------------------- scenes


class Scene(NamedTuple):
    """One image and who is in it."""

    image: Tensor
    """(1, 3, size, size) uint8."""
    people: People


def paint_scene(count: int, size: int) -> Scene:
    """``count`` people, upright and side by side in rows."""
    rng = np.random.default_rng(0)
    columns = math.ceil(math.sqrt(count))
    width, height = size / columns, size / math.ceil(count / columns)
    canvas = Canvas.over(paint_background(size, size, rng)[0])
    keypoints = []
    for person in range(count):
        figure = random_figure(rng, 0.9 * height, variety=0.0)
        left, top, right, bottom = extent(figure)
        x, y = (person % columns + 0.5) * width, (person // columns + 0.5) * height
        figure = replace(figure, origin=(x - (left + right) / 2, y - (top + bottom) / 2))
        keypoints.append(paint_figure(canvas, figure, person + 1).keypoints)
    points = torch.from_numpy(np.stack(keypoints)).float().clamp(0, size - 1)
    boxes = torch.cat([points.amin(1), points.amax(1)], dim=1)
    people = People(
        points,
        torch.full((count, len(COCO17)), 2, dtype=torch.uint8),
        boxes,
        (boxes[:, 2:] - boxes[:, :2]).prod(1),
        torch.zeros(count, dtype=torch.bool),
    )
    return Scene(torch.from_numpy(develop(canvas, rng)).permute(2, 0, 1)[None], people)


# ------------------------------------------------------------------------------------------- what the network says


def plant(method: str, model: Any, scene: Scene, *, copies: int = 1) -> None:
    """From now on predictions of ``model`` for ``copies`` times the image find the people of ``scene``.

    The model's layers do all their work before.
    """
    size = (scene.image.shape[-2], scene.image.shape[-1])
    with torch.no_grad():
        if method == "logocap":
            _plant_logocap(model, [scene.people] * copies, size)
        elif method == "detposenet":
            _plant_detposenet(model, [scene.people] * copies, size)
        else:
            _override(model.head, _cell_maps(model, scene.people, size, copies))


def _override(module: nn.Module, planted: dict[str, list[Tensor]] | Tensor) -> None:
    def hook(_module: nn.Module, _inputs: object, output: Any) -> Any:
        if module.training:
            return output
        return {**output, **planted} if isinstance(planted, dict) else planted

    module.register_forward_hook(hook)


def _cell_maps(model: Any, people: People, size: tuple[int, int], copies: int) -> dict[str, list[Tensor]]:
    """Scores and poses at the cells that training assigns to people."""
    random = torch.Generator().manual_seed(0)
    device = people.keypoints.device
    cells = pyramid_cells(level_sizes(*size, FPN.strides), FPN.strides, device)
    assigned = model.target_points(size, [people])[0][0]
    same = (cells.points[:, None] == assigned.points).all(-1) & (cells.strides[:, None] == assigned.stride)
    cell, row = same.nonzero(as_tuple=True)
    noise = torch.randn(len(cell), people.keypoints.shape[1], 2, generator=random).to(device)
    poses = people.keypoints[assigned.person[row]] + 0.005 * size[0] * noise

    logits = torch.full((len(cells), 1), -9.0, device=device)
    logits[cell, 0] = 3 * torch.rand(len(cell), generator=random).to(device)
    offsets = torch.zeros(len(cells), 2 * people.keypoints.shape[1], device=device)
    offsets[cell] = encode_offsets(cells.points[cell], cells.strides[cell], poses)
    planted = {"cls": logits, "psm": torch.full_like(logits, 2.0), "refine": offsets}
    if model.config.head.channels and not hasattr(model.head, "refine"):
        planted = {"cls": logits}

    def levels(values: Tensor) -> list[Tensor]:
        parts = zip(values.split([h * w for h, w in cells.sizes]), cells.sizes, strict=True)
        return [part.view(1, *shape, -1).permute(0, 3, 1, 2).repeat(copies, 1, 1, 1) for part, shape in parts]

    return {name: levels(values) for name, values in planted.items()}


def _plant_logocap(model: Any, people: list[People], size: tuple[int, int]) -> None:
    padded = pad_people(people, people[0].keypoints.device)
    shape = (size[0] // 4, size[1] // 4)
    _override(model.heat, heat_targets(padded, shape, 4, model.config.target)[0])
    offsets, offsets_at = owner_targets(padded, shape, 4, model.config.target).offsets, model._offsets_at

    def offsets_to_people(maps: Any, cells: Tensor) -> Tensor:
        offsets_at(maps, cells)
        return read_cells(offsets, cells)

    model._offsets_at = offsets_to_people


def _plant_detposenet(model: Any, people: list[People], size: tuple[int, int]) -> None:
    heat, paf, _ = model.coarse_targets(pad_people(people, people[0].keypoints.device), (size[0] // 4, size[1] // 4))
    model.coarse.register_forward_hook(
        lambda module, _, maps: maps if module.training else maps._replace(heat=heat, paf=paf)
    )
    random, copies = torch.Generator().manual_seed(0), 10
    boxes = people[0].boxes.repeat(copies, 1)
    shift = (0.02 * size[0] * torch.randn(boxes.shape, generator=random)).to(boxes.device)
    found = Boxes(boxes + shift, torch.linspace(0.95, 0.1, len(boxes), device=boxes.device))
    detect = model.detector.detect

    def detect_people(*args: Any) -> list[Boxes]:
        detect(*args)
        return [found] * len(people)

    model.detector.detect = detect_people


def network_of(method: str, model: Any) -> list[nn.Module]:
    """The modules that a prediction calls; what happens outside of them is post-processing."""
    if method == "logocap":
        return [model.backbone, model.fuse, model.heat, model.offset, model.embedding, model.message_passing]
    if method == "detposenet":
        detector = model.detector
        return [
            model.coarse,
            *detector.levels,
            detector.rpn,
            detector.pool,
            detector.box_head,
            detector.predictor,
            model.refiner,
        ]
    return [model.backbone, model.neck, model.head]


# ----------------------------------------------------------------------------------------------------- measuring


class Clock:
    """Seconds, after all work of the device is done."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def time(self, run: Callable[[], object]) -> float:
        """Seconds that ``run`` takes."""
        start = self()
        run()
        return self() - start

    @contextmanager
    def inside(self, modules: Sequence[nn.Module]) -> Iterator[list[float]]:
        """The seconds that calls of each of ``modules`` take meanwhile."""
        spent, started = [0.0] * len(modules), [0.0] * len(modules)

        def watch(index: int) -> Iterator[Any]:
            def before(_module: nn.Module, _inputs: object) -> None:
                started[index] = self()

            def after(_module: nn.Module, _inputs: object, _output: object) -> None:
                spent[index] += self() - started[index]

            yield modules[index].register_forward_pre_hook(before)
            yield modules[index].register_forward_hook(after)

        handles = [handle for index in range(len(modules)) for handle in watch(index)]
        yield spent
        for handle in handles:
            handle.remove()


class Pair(NamedTuple):
    """Median seconds of a method and of Keypoint R-CNN, and the median of their quotients."""

    ours: float
    theirs: float
    faster: float

    def __str__(self) -> str:
        return f"{1e3 * self.ours:8.0f} {1e3 * self.theirs:8.0f} {self.faster:6.2f}x"


def take_turns(ours: Callable[[], object], theirs: Callable[[], object], rounds: int, clock: Clock) -> Pair:
    """A B A B, after one run of each to warm up."""
    ours(), theirs()
    pairs = [(clock.time(ours), clock.time(theirs)) for _ in range(rounds)]
    return Pair(
        *(statistics.median(values) for values in zip(*pairs, strict=True)), statistics.median(b / a for a, b in pairs)
    )


def divide(
    predict: Callable[[], object], network: Sequence[nn.Module], rounds: int, clock: Clock
) -> tuple[float, float]:
    """Medians of the share of a prediction outside of ``network``, and of everything after its first module in units
    of that module."""
    predict()
    shares, ratios = [], []
    for _ in range(rounds):
        with clock.inside(network) as spent:
            whole = clock.time(predict)
        shares.append(1 - sum(spent) / whole)
        ratios.append(whole / spent[0] - 1)
    return statistics.median(shares), statistics.median(ratios)


def stepper(model: nn.Module, losses: Callable[[], dict[str, Tensor]]) -> Callable[[], None]:
    """A training step that hardly changes the weights."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=1e-6, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses().values())).sum().backward()
        optimizer.step()

    return step


class KeypointRCNN:
    """torchvision's Keypoint R-CNN on a scene."""

    def __init__(self, scene: Scene, device: torch.device, clock: Clock) -> None:
        from torchvision.models.detection import keypointrcnn_resnet50_fpn

        size = scene.image.shape[-1]
        torch.manual_seed(0)
        self.scene = scene
        self.model = keypointrcnn_resnet50_fpn(
            weights=None,
            weights_backbone=None,
            min_size=size,
            max_size=size,
            box_score_thresh=0.0,
            box_detections_per_img=len(scene.people),
        ).to(device)
        body = self.model.backbone.body
        for frozen in (body.conv1, body.bn1, body.layer1):
            frozen.requires_grad_(False)
        seconds = {}
        for memory_format in (torch.contiguous_format, torch.channels_last):
            self.model.to(memory_format=memory_format)
            self.predict()
            seconds[memory_format] = min(clock.time(self.predict) for _ in range(2))
        self.memory_format = min(seconds, key=lambda which: seconds[which])
        self.model.to(memory_format=self.memory_format)
        # torchvision's loss views these maps as if they were contiguous.
        self.model.roi_heads.keypoint_predictor.register_forward_hook(lambda module, images, maps: maps.contiguous())

    def predict(self) -> list[dict[str, Tensor]]:
        """People of the image."""
        with torch.inference_mode():
            found: list[dict[str, Tensor]] = self.model.eval()(list(self.scene.image.float() / 255))
        return found

    def train_step(self, batch_size: int) -> Callable[[], None]:
        """A step on ``batch_size`` times the scene."""
        people = self.scene.people
        target = {
            "boxes": people.boxes,
            "labels": torch.ones(len(people), dtype=torch.int64, device=people.boxes.device),
            "keypoints": torch.cat([people.keypoints, people.visibility[..., None]], dim=-1),
        }

        def losses() -> dict[str, Tensor]:
            images = list(self.scene.image.expand(batch_size, -1, -1, -1).float() / 255)
            found: dict[str, Tensor] = self.model.train()(images, [target] * batch_size)
            return found

        return stepper(self.model, losses)


class Row(NamedTuple):
    """What was measured of a method at a size."""

    method: str
    size: int
    found: int
    predict: Pair | None
    train: Pair | None
    rest: float
    after_backbone: float | None


def measure(method: str, size: int, options: argparse.Namespace, clock: Clock) -> Row:
    """One line of the table."""
    device = clock.device
    scene = paint_scene(options.people, size)
    scene = Scene(scene.image.to(device), scene.people.to(device))
    theirs = KeypointRCNN(scene, device, clock)
    torch.manual_seed(0)
    model: Any = load_method(method).Model(paper_config(method), COCO17)
    model = model.to(device, memory_format=torch.channels_last)

    train = None
    if "train" in options.measure:
        images = scene.image.expand(options.batch_size, -1, -1, -1)
        step = stepper(model, lambda: model.train()(images, [scene.people] * options.batch_size))
        train = take_turns(step, theirs.train_step(options.batch_size), options.rounds, clock)
    if "predict" not in options.measure:
        return Row(method, size, 0, None, train, math.nan, None)

    def predict() -> Any:
        with torch.inference_mode():
            return model.eval().predict(scene.image)

    plant(method, model, scene)
    pair = take_turns(predict, theirs.predict, options.rounds, clock)
    rest, after = divide(predict, network_of(method, model), options.rounds, clock)
    found = len(predict()[0])
    if method == "logocap":
        few = paint_scene(ADAPTED_POSES, size)
        scene = Scene(few.image.to(device), few.people.to(device))
        model.config = replace(model.config, decode=replace(model.config.decode, centres=ADAPTED_POSES))
        plant(method, model, scene)
        _, after = divide(predict, network_of(method, model), options.rounds, clock)
    return Row(method, size, found, pair, train, rest, after if method == "logocap" else None)


def targets_of(rows: Sequence[Row], device: torch.device) -> Iterator[str]:
    """Every target, what was measured, and whether that meets it."""

    def line(what: str, value: str, met: bool) -> str:
        return f"  {'met   ' if met else 'MISSED'}  {what}: {value}"

    for row in rows:
        if row.predict is None:
            continue
        where = f"{row.method} at {row.size} px"
        if row.method in ("pfs", "smpr", "inspose") and device.type == "cpu":
            faster = row.predict.faster
            yield line(f"{where}, prediction at least {FASTER} times faster", f"{faster:.2f}", faster >= FASTER)
        yield line(f"{where}, post-processing at most {REST:.0%}", f"{row.rest:.1%}", row.rest <= REST)
        if row.after_backbone is not None:
            met = row.after_backbone <= AFTER_BACKBONE
            what = f"{where}, {ADAPTED_POSES} poses, after the backbone at most {AFTER_BACKBONE:.0%} of its time"
            yield line(what, f"{row.after_backbone:.1%}", met)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=available_methods(), choices=available_methods())
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 800], help="side of the images, multiples of 32")
    parser.add_argument("--measure", nargs="+", default=["predict", "train"], choices=["predict", "train"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--people", type=int, default=20, help="people in the image")
    parser.add_argument("--batch-size", type=int, default=2, help="images of a training step")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    clock = Clock(device)
    sys.stdout.write(
        f"{device}, {options.threads} threads, {options.people} people, {options.rounds} rounds, "
        f"training batches of {options.batch_size}\n"
        f"{'':16s}|  predict: ms, Keypoint R-CNN |    train: ms, Keypoint R-CNN | people | post-processing\n"
    )
    rows = []
    for size in options.sizes:
        for method in options.methods:
            row = measure(method, size, options, clock)
            rows.append(row)
            nothing = f"{'-':>25s}"
            sys.stdout.write(
                f"{method:11s}{size:4d} | {row.predict or nothing!s:>28s} | {row.train or nothing!s:>28s} | "
                f"{row.found:6d} | {row.rest:6.1%}\n"
            )
            sys.stdout.flush()
    sys.stdout.write("targets\n" + "".join(f"{line}\n" for line in targets_of(rows, device)))


if __name__ == "__main__":
    main()
