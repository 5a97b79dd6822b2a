"""Evaluates a checkpoint with other settings of decoding, without running its network again.

The network runs once on a split, and its outputs are kept in memory; every further evaluation only decodes, suppresses
and scores. The results are those of ``jobs/evaluate.py``.
"""

import copy
import hashlib
from collections.abc import Callable, Iterable
from typing import Any, cast

import psutil
import torch
from torch import Tensor, nn

from posefleet.data.evaluation.evaluate import Evaluation
from posefleet.data.evaluation.evaluate import evaluate as score
from posefleet.data.evaluation.ground_truth import GroundTruth
from posefleet.data.loading.loader import evaluation_batches
from posefleet.data.structures import Batch, Poses
from posefleet.data.transforms import EvalTransform
from posefleet.models import RedecodableModel
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.inference.evaluate import evaluation_set, ground_truth
from posefleet.platform.inference.predictor import Predictor

ANYWAY = ("evaluate.flip", "evaluate.scales", "evaluate.max_side", "evaluate.max_detections")
"""Settings outside the model that only change predictions; another view of the images needs the network once more."""


class Redecoder:
    """Scores one checkpoint on one split with any settings of decoding."""

    def __init__(self, checkpoint: str, experiment: Experiment, device: torch.device, *, images: int = 0) -> None:
        """
        Args:
            checkpoint: See :func:`posefleet.platform.checkpoints.resolve.find_checkpoint`.
            experiment: The checkpoint's experiment; ``data.eval`` and settings of decoding may differ.
            images: Number of images to score, from the first on, rounded up to whole batches; 0: all.

        Raises:
            ValueError: The method does not declare which of its settings decode.
            MemoryError: (in :meth:`evaluate`) The network's outputs take more than half of the free memory.
        """
        self.model, trained = load_model(checkpoint, experiment=experiment)
        if not hasattr(self.model, "decoding"):
            raise ValueError(
                f"method {trained.method!r} does not declare which settings decode: its Model has no decoding"
            )
        self.model = self.model.to(device)
        method = cast(RedecodableModel, self.model)
        self.variable = (*ANYWAY, *(f"model.{part}" for part in method.decoding))
        """Dotted names of settings, or of sections, that only change how outputs become poses."""
        self.experiment, self.device = experiment, device
        self._schema = experiment.keypoints
        self._images, self._views = images, dict[EvalTransform, list[Batch]]()
        self._ground_truth: GroundTruth | None = None
        self.kept_bytes, self._most_bytes = 0, _free_bytes(device) // 2
        """Bytes of the outputs that are kept, and the largest number allowed."""
        for name in method.network:
            self._keep_outputs(name)

    def may_vary(self, name: str) -> bool:
        """Whether the setting of this dotted name is in ``variable``."""
        return any(name == part or name.startswith(part + ".") for part in self.variable)

    def evaluate(self, experiment: Experiment) -> Evaluation:
        """Score ``experiment``, which differs from the checkpoint's only in settings that :meth:`may_vary`."""
        self.model.config = experiment.model
        predictor = Predictor(self.model, experiment, device=self.device)
        found: dict[int, Poses] = {}
        for batches in zip(*(self._view(transform) for transform in predictor.transforms()), strict=True):
            found.update(zip(batches[0].image_ids.tolist(), predictor.predict(batches), strict=True))
        assert self._ground_truth is not None
        return score(
            self._ground_truth,
            found,
            self._schema,
            max_detections=experiment.evaluate.max_detections,
            backend=experiment.evaluate.backend,
            score_rule=predictor.score_rule,
        )

    def _view(self, transform: EvalTransform) -> list[Batch]:
        """The batches of the split with one transform, read once."""
        if transform not in self._views:
            dataset = evaluation_set(self.experiment, transform)
            with evaluation_batches(dataset, batch_size=self.experiment.data.eval_batch_size) as batches:
                self._views[transform] = list(_first(batches, self._images or len(dataset)))
            if self._ground_truth is None:
                seen = {int(i) for batch in self._views[transform] for i in batch.image_ids}
                self._ground_truth = ground_truth(dataset).select(seen)
        return self._views[transform]

    def _keep_outputs(self, name: str) -> None:
        """Make a part of the network return its kept outputs for images that it has seen."""
        part = getattr(self.model, name)
        compute: Callable[..., Any] = part.forward if isinstance(part, nn.Module) else part
        kept: dict[tuple[Any, ...], Any] = {}

        def cached(images: Tensor, **options: Any) -> Any:
            key = (_digest(images), tuple(images.shape), *sorted(options.items()))
            if key not in kept:
                kept[key] = compute(images, **options)
                self.kept_bytes += _bytes(kept[key])
                if self.kept_bytes > self._most_bytes:
                    gib = self.kept_bytes / 2**30
                    raise MemoryError(
                        f"the network's outputs take {gib:.1f} GiB for {len(kept)} batches, "
                        "more than half of the memory that was free; give a smaller --images"
                    )
            return copy.copy(kept[key])  # a copy, as methods replace maps in the dict

        if isinstance(part, nn.Module):
            part.forward = cached
        else:
            setattr(self.model, name, cached)


def _first(batches: Iterable[Batch], images: int) -> Iterable[Batch]:
    """The first batches that together hold at least ``images`` images."""
    for batch in batches:
        if images <= 0:
            return
        yield batch
        images -= len(batch)


def _digest(images: Tensor) -> bytes:
    """Digest of the values of a tensor (B, C, H, W) of any type and device."""
    values = images.detach().permute(0, 2, 3, 1).contiguous().cpu().view(torch.uint8).numpy()
    return hashlib.blake2b(values.data, digest_size=16).digest()


def _bytes(value: Any) -> int:
    """Bytes of all tensors in nested containers."""
    if isinstance(value, Tensor):
        return value.nbytes
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return sum(_bytes(part) for part in parts)


def _free_bytes(device: torch.device) -> int:
    """Free bytes of the memory that holds the device's tensors."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
