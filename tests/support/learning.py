"""Learning a few pictures by heart, which every method must be able to."""

import torch

from posefleet.data.coco.annotations import people_of
from posefleet.data.evaluation.evaluate import evaluate
from posefleet.data.evaluation.ground_truth import GroundTruth
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.synthetic.scenes import SceneConfig, render_scene


def learn_by_heart(model: torch.nn.Module, pictures: int = 4, steps: int = 300, side: int = 256) -> float:
    """Train on all of a few synthetic pictures of ``side`` x ``side`` pixels at once; AP50 on the same pictures."""
    config = SceneConfig(width=(side, side), height=(side, side), people=(1, 3), scale=(0.5, 1.0), crowd_rate=0)
    scenes = [render_scene(config, seed) for seed in range(pictures)]
    images = torch.stack([torch.from_numpy(picture.copy()) for picture, _ in scenes]).permute(0, 3, 1, 2)
    people = [people_of(annotations, COCO17) for _, annotations in scenes]
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for _ in range(steps):
        losses = model(images, people)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(learning, 35.0)
        optimizer.step()
        schedule.step()
    records = [(i, (side, side), annotations) for i, (_, annotations) in enumerate(scenes)]
    found = dict(enumerate(model.eval().predict(images)))
    return evaluate(GroundTruth.from_records(records), found, COCO17).statistics["AP50"]
