"""Short trainings on rendered people, for benches that compare settings of one method: the scenes, the loop, the AP."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from posefleet.data.coco.annotations import people_of
from posefleet.data.evaluation.evaluate import evaluate
from posefleet.data.evaluation.ground_truth import GroundTruth
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import People
from posefleet.data.synthetic.scenes import SceneConfig, render_scene
from posefleet.models.parts.layers.backbones import BackboneConfig

BACKBONE = BackboneConfig(name="tf_efficientnet_lite0", pretrained=False, weights="package")
SIDE = 128
LEARNING_RATE, CLIP_NORM = 2e-3, 35.0


class Scenes(NamedTuple):
    """Rendered scenes."""

    images: Tensor
    """(N, 3, SIDE, SIDE) uint8."""
    people: list[People]
    truth: GroundTruth


def scenes(count: int, first: int) -> Scenes:
    """``count`` scenes; the same seeds give the same scenes."""
    config = SceneConfig(width=(SIDE, SIDE), height=(SIDE, SIDE), people=(1, 3), scale=(0.5, 1.0), crowd_rate=0)
    rendered = [render_scene(config, first + i) for i in range(count)]
    images = torch.stack([torch.from_numpy(image.copy()) for image, _ in rendered]).permute(0, 3, 1, 2)
    records = [(i, (SIDE, SIDE), annotations) for i, (_, annotations) in enumerate(rendered)]
    people = [people_of(annotations, COCO17) for _, annotations in rendered]
    return Scenes(images, people, GroundTruth.from_records(records))


def optimise(
    model: Any, seen: Scenes, *, steps: int, batch: int, seed: int, warmup: float, look: Callable[[int, Any], None]
) -> None:
    """Train with AdamW and a cosine schedule, then put the model into evaluation mode.

    Args:
        model: A method's model in training mode; its backbone learns at 0.3 of the rate.
        seen: What it trains on, drawn at random.
        steps: Number of steps.
        batch: Images of a step.
        seed: Of the draws.
        warmup: Share of the steps in which the rate rises.
        look: Gets the number of each step, from 1 on, and its losses.
    """
    order = torch.Generator().manual_seed(seed)
    own = [p for name, p in model.named_parameters() if not name.startswith("backbone.")]
    body = [p for p in model.backbone.parameters() if p.requires_grad]
    groups = [{"params": own}, {"params": body, "lr": 0.3 * LEARNING_RATE}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=[LEARNING_RATE, 0.3 * LEARNING_RATE], total_steps=steps, pct_start=warmup
    )
    for step in range(1, steps + 1):
        rows = torch.randint(len(seen.images), (batch,), generator=order).tolist()
        losses = model(seen.images[rows], [seen.people[row] for row in rows])
        optimizer.zero_grad()
        sum(losses.values()).backward()  # type: ignore[union-attr]
        torch.nn.utils.clip_grad_norm_([*own, *body], CLIP_NORM)
        optimizer.step()
        schedule.step()
        look(step, losses)
    model.eval()


def score(model: Any, scenes: Scenes) -> float:
    """AP, 0..1, on all scenes."""
    poses = [found for part in scenes.images.split(20) for found in model.predict(part)]
    return evaluate(scenes.truth, dict(enumerate(poses)), COCO17).ap
