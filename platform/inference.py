"""The one way from images to poses: what evaluation, batch prediction and serving all call."""

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from posefleet.data.keypoints import KeypointSchema, load_schema
from posefleet.data.structures import Batch, People, Poses, Sample, collate
from posefleet.data.transforms import IDENTITY, EvalTransform, Resize, invert, mirror, move_poses
from posefleet.models.parts.oks import score_by_truth
from posefleet.platform.config import Experiment


class _Candidates(Protocol):
    """What a method must offer for more than plain prediction: poses before and after suppression."""

    def candidates(self, images: Tensor) -> list[Poses]: ...
    def suppress(self, poses: list[Poses]) -> list[Poses]: ...


class _Refiner(Protocol):
    """What a top-down method must offer for boxes that know the truth."""

    def predict_in(self, images: Tensor, people: Sequence[People], oracle: str) -> list[Poses]: ...


class Predictor:
    """A model with everything around it: sizes, device, precision, test-time augmentation.

    The same images give the same poses wherever they are predicted.
    """

    def __init__(self, model: nn.Module, experiment: Experiment, *, device: torch.device | str | None = None) -> None:
        """
        Args:
            model: A method's model; it is moved to ``device`` and put in eval mode.
            experiment: Gives resize, test-time augmentation and precision.
            device: Default: where the model's parameters are.

        Raises:
            ValueError: Test-time augmentation or an oracle is asked of a method that does not offer it.
        """
        self.schema: KeypointSchema = load_schema(experiment.schema)
        self.device = torch.device(device) if device is not None else next(model.parameters()).device
        settings = experiment.evaluate
        self.resizes = [
            Resize(short_side=side, long_side=max(side, settings.max_side)) for side in settings.scales
        ] or [experiment.data.resize]
        self.flip, self.oracle_scores, self.oracle_boxes = settings.flip, settings.oracle_scores, settings.oracle_boxes
        self._sigmas = torch.tensor(self.schema.sigmas, device=self.device)
        self.bfloat16 = experiment.train.precision == "bfloat16"
        self.batch_size = experiment.data.eval_batch_size
        memory_format = torch.channels_last if experiment.train.channels_last else torch.contiguous_format
        self.model = model.to(self.device, memory_format=memory_format).eval()  # type: ignore[call-overload]
        self._plain = len(self.resizes) == 1 and not self.flip and not self.oracle_scores
        if not self._plain and not hasattr(model, "candidates"):
            raise ValueError(
                f"method {experiment.method!r} has no multi-scale or flip prediction and no oracle scores; "
                "leave evaluate.scales empty, evaluate.flip and evaluate.oracle_scores off"
            )
        if self.oracle_boxes != "none" and not (self._plain and hasattr(model, "predict_in")):
            raise ValueError(
                f"evaluate.oracle_boxes {self.oracle_boxes} is for top-down methods, and not together with "
                f"evaluate.flip, evaluate.scales or evaluate.oracle_scores; the method is {experiment.method!r}"
            )

    @property
    def score_rule(self) -> str:
        """How poses are ranked, for the protocol that stands beside every AP."""
        rule: str = getattr(self.model, "score_rule", "not stated")
        if self.oracle_boxes != "none":
            rule = f"ORACLE: boxes corrected by the truth ({self.oracle_boxes}) after: {rule}"
        return f"ORACLE: true OKS before NMS instead of: {rule}" if self.oracle_scores else rule

    def transforms(self) -> list[EvalTransform]:
        """One transform for each scale; ``predict`` takes one batch of each."""
        return [EvalTransform(resize, self.schema) for resize in self.resizes]

    def __call__(self, images: Sequence[np.ndarray]) -> list[Poses]:
        """Poses of decoded images.

        Args:
            images: (H, W, 3) uint8 RGB, of any sizes.

        Returns:
            For each image its poses in its own pixels, best first, on the CPU.

        Raises:
            ValueError: Scores or boxes are to come from annotations, and these images have none.
        """
        if self.oracle_scores or self.oracle_boxes != "none":
            name = "oracle_scores" if self.oracle_scores else "oracle_boxes"
            raise ValueError(f"evaluate.{name} needs annotated people; leave it off to predict images")
        poses: list[Poses] = []
        for start in range(0, len(images), self.batch_size):
            samples = [
                Sample(image, People.empty(len(self.schema)), index, IDENTITY, (image.shape[1], image.shape[0]))
                for index, image in enumerate(images[start : start + self.batch_size])
            ]
            poses += self.predict([collate([view(sample) for sample in samples]) for view in self.transforms()])
        return poses

    @torch.inference_mode()
    def predict(self, views: Sequence[Batch]) -> list[Poses]:
        """Poses of the same images seen at each of ``transforms()``, in pixels of the original images."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            if self._plain:
                images = views[0].images.to(self.device, non_blocking=True)
                if self.oracle_boxes == "none":
                    found = self.model.predict(images)
                else:
                    found = cast(_Refiner, self.model).predict_in(images, views[0].people, self.oracle_boxes)
                merged = _to_original(found, views[0])
            else:
                merged = self._merge(views)
        return [_clip(poses, size) for poses, size in zip(merged, views[0].original_sizes.tolist(), strict=True)]

    def _merge(self, views: Sequence[Batch]) -> list[Poses]:
        """All candidates of all views together, scored by the truth if asked for, then suppressed once."""
        model = cast(_Candidates, self.model)
        found: list[list[Poses]] = [[] for _ in range(len(views[0]))]
        for view in views:
            images = view.images.to(self.device, non_blocking=True)
            straight = [model.candidates(images)]
            if self.flip:
                straight.append([self._unflip(p, images.shape[-1]) for p in model.candidates(images.flip(-1))])
            for candidates in straight:
                if self.oracle_scores:
                    candidates = [
                        score_by_truth(poses, people.to(self.device), self._sigmas)
                        for poses, people in zip(candidates, view.people, strict=True)
                    ]
                for slot, poses in zip(found, _to_original(candidates, view), strict=True):
                    slot.append(poses)
        return model.suppress([Poses.cat(parts) for parts in found])

    def _unflip(self, poses: Poses, width: int) -> Poses:
        index = self.schema.flip_index
        mirrored = Poses(poses.keypoints[:, index], poses.keypoint_scores[:, index], poses.scores)
        return move_poses(mirrored, mirror(width))


def _to_original(poses: Sequence[Poses], batch: Batch) -> list[Poses]:
    back = [invert(matrix) for matrix in batch.matrices.numpy()]
    return [move_poses(p.to("cpu"), matrix) for p, matrix in zip(poses, back, strict=True)]


def _clip(poses: Poses, size: Sequence[int]) -> Poses:
    limit = torch.tensor(size, dtype=poses.keypoints.dtype)
    return Poses(torch.minimum(poses.keypoints.clamp(min=0), limit), poses.keypoint_scores, poses.scores)
