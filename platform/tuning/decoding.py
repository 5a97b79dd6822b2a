"""Other poses from the same network outputs: settings of decoding tried without running the network again.

A checkpoint predicts a split once; what the network said is kept in memory, and every further evaluation only decodes,
suppresses and scores. The numbers are those of ``jobs/evaluate.py``.
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
"""Settings outside of the model that only change predictions: another view of the images runs the network once more."""


class Redecoder:
    """One checkpoint and one split, to be scored with any settings of decoding."""

    def __init__(self, checkpoint: str, experiment: Experiment, device: torch.device, *, images: int = 0) -> None:
        """
        Args:
            checkpoint: See :func:`posefleet.platform.checkpoints.resolve.find_checkpoint`.
            experiment: Its own, but for decoding and ``data.eval``.
            images: Score the first so many images of the split; 0: all.

        Raises:
            ValueError: The method does not say which of its settings decode.
            MemoryError: (when evaluating) The network's outputs would fill the memory.
        """
        self.model, trained = load_model(checkpoint, experiment=experiment)
        if not hasattr(self.model, "decoding"):
            raise ValueError(f"method {trained.method!r} does not say which settings decode: its Model has no decoding")
        self.model = self.model.to(device)
        method = cast(RedecodableModel, self.model)
        self.variable = (*ANYWAY, *(f"model.{part}" for part in method.decoding))
        """Dotted names of settings, and of sections of them, that only change how poses are made of network outputs."""
        self.experiment, self.device = experiment, device
        self._schema = experiment.keypoints
        self._images, self._views = images, dict[EvalTransform, list[Batch]]()
        self._truth: GroundTruth | None = None
        self.remembered, self._most = 0, _free_bytes(device) // 2
        """Bytes of network outputs that are kept, and may be."""
        for name in method.network:
            self._remember(name)

    def may_vary(self, name: str) -> bool:
        """Whether a setting, by its dotted name, is one of ``variable``."""
        return any(name == part or name.startswith(part + ".") for part in self.variable)

    def evaluate(self, experiment: Experiment) -> Evaluation:
        """Scores of ``experiment``, which differs from that of the checkpoint in what :meth:`may_vary`."""
        self.model.config = experiment.model
        predictor = Predictor(self.model, experiment, device=self.device)
        found: dict[int, Poses] = {}
        for batches in zip(*(self._view(transform) for transform in predictor.transforms()), strict=True):
            found.update(zip(batches[0].image_ids.tolist(), predictor.predict(batches), strict=True))
        assert self._truth is not None
        return score(
            self._truth,
            found,
            self._schema,
            max_detections=experiment.evaluate.max_detections,
            backend=experiment.evaluate.backend,
            score_rule=predictor.score_rule,
        )

    def _view(self, transform: EvalTransform) -> list[Batch]:
        """The split in one size, read once."""
        if transform not in self._views:
            dataset = evaluation_set(self.experiment, transform)
            with evaluation_batches(dataset, batch_size=self.experiment.data.eval_batch_size) as batches:
                self._views[transform] = list(_first(batches, self._images or len(dataset)))
            if self._truth is None:
                seen = {int(i) for batch in self._views[transform] for i in batch.image_ids}
                self._truth = ground_truth(dataset).select(seen)
        return self._views[transform]

    def _remember(self, name: str) -> None:
        """Let a part of the network answer from memory what it was asked before."""
        part = getattr(self.model, name)
        compute: Callable[..., Any] = part.forward if isinstance(part, nn.Module) else part
        kept: dict[tuple[Any, ...], Any] = {}

        def answer(images: Tensor, **options: Any) -> Any:
            key = (_digest(images), tuple(images.shape), *sorted(options.items()))
            if key not in kept:
                kept[key] = compute(images, **options)
                self.remembered += _bytes(kept[key])
                if self.remembered > self._most:
                    gib = self.remembered / 2**30
                    raise MemoryError(
                        f"what the network says takes {gib:.1f} GiB for {len(kept)} batches already, half of what was "
                        "free; give a smaller --images"
                    )
            return copy.copy(kept[key])  # a dict of its own, for methods that put other maps into it

        if isinstance(part, nn.Module):
            part.forward = answer
        else:
            setattr(self.model, name, answer)


def _first(batches: Iterable[Batch], images: int) -> Iterable[Batch]:
    """Whole batches, until they hold so many images."""
    for batch in batches:
        if images <= 0:
            return
        yield batch
        images -= len(batch)


def _digest(images: Tensor) -> bytes:
    """Of the values of (B, C, H, W), whatever their type and device."""
    values = images.detach().permute(0, 2, 3, 1).contiguous().cpu().view(torch.uint8).numpy()
    return hashlib.blake2b(values.data, digest_size=16).digest()


def _bytes(value: Any) -> int:
    """Of all tensors in nested containers."""
    if isinstance(value, Tensor):
        return value.nbytes
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return sum(_bytes(part) for part in parts)


def _free_bytes(device: torch.device) -> int:
    """Of the memory in which the device's tensors are."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
