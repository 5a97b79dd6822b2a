"""Predicts poses from images; evaluation, batch prediction and serving use it.

predictor = Predictor.from_registry("models:/smpr@champion")
prediction = predictor("people.jpg")
prediction.plot("poses.png")
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, cast, overload

import fsspec
import numpy as np
import torch
from torch import Tensor, nn

from posefleet.data.coco.results import read_detections
from posefleet.data.images import decode_image, encode_image
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import Batch, Detections, Frames, People, Poses, Sample, collate, round_up
from posefleet.data.transforms import IDENTITY, EvalTransform, Resize, invert, move_detections, move_poses
from posefleet.models import keypoint_score_rule
from posefleet.models.parts.ops.oks import score_by_ground_truth
from posefleet.platform.config.experiment import Experiment, Precision
from posefleet.platform.exports.backends import Backend, device_for, locate, open_model
from posefleet.platform.inference.execution import autocast
from posefleet.platform.runtime.paths import MODELS
from posefleet.platform.visualization.drawing import draw_poses

ImageInput = str | Path | bytes | np.ndarray
"""An image file's path, URI or bytes, or (H, W, 3) uint8 RGB pixels."""

DECIMALS = 5
"""Decimals of coordinates (pixels) and scores in JSON: finer than anyone can see, and shorter than a full float32."""


class _Candidates(Protocol):
    """What a model needs for flip, multi-scale and oracle scores: poses before and after suppression (NMS)."""

    def candidates(self, images: Tensor, **frames: Frames) -> list[Poses]: ...
    def suppress(self, poses: list[Poses]) -> list[Poses]: ...


class _Refiner(Protocol):
    """What the model of a top-down method has: prediction in other boxes, and the boxes of the last prediction."""

    refined: list[Detections]

    def predict_in(
        self, images: Tensor, people: Sequence[People], oracle: str, found: Sequence[Detections] | None
    ) -> list[Poses]: ...


@dataclass(frozen=True, slots=True, repr=False)
class Prediction:
    """An image and the poses found in it; notebooks show it drawn."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB, upright."""
    poses: Poses
    schema: KeypointSchema
    keypoint_scores: str = "not stated"
    """What the scores of keypoints are, in words; ``pose score, repeated`` where the model scores whole poses only."""
    note: str = ""
    """What users of the model must know, as its run said (``run.note``)."""
    tracks: np.ndarray | None = None
    """(N,) numbers of the people in a film, below 0 for none; None: the image is no part of a film."""

    def plot(
        self, path: str | Path | None = None, *, score_threshold: float = 0.1, keypoint_threshold: float = 0.0
    ) -> np.ndarray:
        """The image with its poses drawn on it, (H, W, 3) uint8 RGB; also written to ``path`` in its suffix's format.

        Poses and keypoints with lower scores, 0..1, than the thresholds are not drawn.
        """
        drawn = draw_poses(
            self.image,
            self.poses,
            self.schema,
            score_threshold=score_threshold,
            keypoint_threshold=keypoint_threshold,
            tracks=self.tracks,
        )
        if path is not None:
            Path(path).write_bytes(encode_image(drawn, Path(path).suffix))
        return drawn

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        scores = [f"{score:.2f}" for score in self.poses.scores[:5].tolist()]
        more = ", ..." if len(self.poses) > len(scores) else ""
        found = f"{len(self.poses)} poses of {self.schema.name}" + (
            f", scores {', '.join(scores)}{more}" if scores else ""
        )
        return f"<Prediction in {width} x {height} px: {found}>"

    def _repr_png_(self) -> bytes:
        return encode_image(self.plot(), ".png")

    def as_dict(self) -> dict[str, Any]:
        """The prediction as a dict for JSON: ``width``, ``height`` (pixels), ``keypoint_scores`` (what the scores of
        keypoints are), ``note`` (if the model has one) and ``poses`` (see ``describe_poses``)."""
        height, width = self.image.shape[:2]
        poses = describe_poses(self.poses, self.schema)
        note = {"note": self.note} if self.note else {}
        return {"width": width, "height": height, "keypoint_scores": self.keypoint_scores, **note, "poses": poses}


def describe_poses(poses: Poses, schema: KeypointSchema, *, keypoint_threshold: float = 0.0) -> list[dict[str, Any]]:
    """Poses as dicts for JSON, best first: score, box and named keypoints, in pixels.

    Args:
        keypoint_threshold: Keypoints with lower scores are left out; the box always includes all keypoints.
    """
    rows = zip(
        poses.scores.double().numpy().round(DECIMALS).tolist(),
        poses.boxes.double().numpy().round(DECIMALS).tolist(),
        poses.keypoints.double().numpy().round(DECIMALS).tolist(),
        poses.keypoint_scores.double().numpy().round(DECIMALS).tolist(),
        strict=True,
    )
    return [
        {
            "score": score,
            "box": box,
            "keypoints": [
                {"name": name, "x": x, "y": y, "score": certainty}
                for name, (x, y), certainty in zip(schema.keypoints, keypoints, certainties, strict=True)
                if certainty >= keypoint_threshold
            ],
        }
        for score, box, keypoints, certainties in rows
    ]


def prepare_image(image: np.ndarray, transforms: Sequence[EvalTransform]) -> list[Sample]:
    """Apply each transform to a decoded image, (H, W, 3) uint8 RGB, without people."""
    size = (image.shape[1], image.shape[0])
    return [view(Sample(image, People.empty(len(view.schema)), 0, IDENTITY, size)) for view in transforms]


class Predictor:
    """Predicts with a model: resizes images and sets device, precision and test-time augmentation.

    An image gets the same poses in evaluation, batch prediction and serving.
    """

    def __init__(self, model: nn.Module, experiment: Experiment, *, device: torch.device | str | None = None) -> None:
        """
        Args:
            model: A method's model; it is moved to ``device`` and put in eval mode.
            experiment: Its settings of resize, test-time augmentation and precision are used.
            device: Default: where the model's parameters are.

        Raises:
            ValueError: The settings ask for test-time augmentation or an oracle that the method does not offer.
        """
        self.method = experiment.method
        self.schema: KeypointSchema = experiment.keypoints
        self.device = torch.device(device) if device is not None else next(model.parameters()).device
        settings = experiment.evaluate
        resize = experiment.data.resize
        self.resizes = [
            dataclasses.replace(resize, short_side=side, long_side=max(side, settings.max_side))
            for side in settings.scales
        ] or [resize]
        self.flip, self.oracle_scores, self.oracle_boxes = settings.flip, settings.oracle_scores, settings.oracle_boxes
        self.detections = read_detections(settings.detections) if settings.detections else None
        self.refined: list[Detections] = []
        """Boxes in which the poses of each image of the last batch were predicted, in pixels of the original images;
        empty unless ``has_boxes``: for methods without boxes, and where several views are merged."""
        self.keypoint_scores = keypoint_score_rule(experiment.method, experiment.model)
        """What the scores of keypoints are, in words."""
        self.note = experiment.run.note
        self._sigmas = torch.tensor(self.schema.sigmas, device=self.device)
        self.precision = experiment.train.precision
        self.batch_size = experiment.data.eval_batch_size
        memory_format = torch.channels_last if experiment.train.channels_last else torch.contiguous_format
        self.model = model.to(self.device, memory_format=memory_format).eval()  # type: ignore[call-overload]
        self._plain = len(self.resizes) == 1 and not self.flip and not self.oracle_scores
        self.has_boxes = self._plain and hasattr(model, "refined")
        if not self._plain and not hasattr(model, "candidates"):
            raise ValueError(
                f"method {experiment.method!r} has no multi-scale or flip prediction and no oracle scores; "
                "leave evaluate.scales empty, evaluate.flip and evaluate.oracle_scores off"
            )
        self._in_boxes = self.oracle_boxes != "none" or self.detections is not None
        if self._in_boxes and not (self._plain and hasattr(model, "predict_in")):
            given = "detections" if self.detections is not None else f"oracle_boxes {self.oracle_boxes}"
            raise ValueError(
                f"evaluate.{given} is for top-down methods, and not together with evaluate.flip, evaluate.scales or "
                f"evaluate.oracle_scores; the method is {experiment.method!r}"
            )

    @classmethod
    def from_checkpoint(
        cls,
        path: str,
        *,
        device: torch.device | str | None = None,
        precision: Precision | None = None,
        channels_last: bool | None = None,
        backend: Backend | None = None,
        tracking: str = "",
    ) -> Self:
        """Create a predictor from a trained model.

        Args:
            path: A checkpoint, the folder of a run (its best checkpoint), ``models:/NAME@ALIAS``, or a file that
                ``jobs/export.py`` wrote (``*.onnx``, ``*.xml`` or ``*.trt.onnx``, always run by its own backend).
            device: Default: where the backend runs; for PyTorch the GPU if there is one.
            precision: Of the network; default: as it was trained and evaluated.
            channels_last: Memory layout of the network; default: as it was trained.
            backend: What computes the network. Default: what it was promoted with, else PyTorch. Others export a
                checkpoint on first use, see ``backends.cached_export``. They compute in the precision of the file
                whatever ``precision`` says; TensorRT on the GPU, the others on the CPU with as many threads as PyTorch
                has now.
            tracking: MLflow store of registered models; see ``registry.find_model``.

        Raises:
            CheckpointError: There is no checkpoint at ``path``, or it is damaged.
            ValueError: The library of the backend is not installed, or ``device`` is not the CPU with it.
        """
        model, experiment = open_model(locate(path, tracking=tracking), backend=backend)
        if only := device_for(model):
            device = device or only
            if torch.device(device).type != only:
                raise ValueError(f"this exported network runs on {only}, not on {device}; use backend 'torch' there")
        train = experiment.train
        if precision is not None:
            train = dataclasses.replace(train, precision=precision)
        if channels_last is not None:
            train = dataclasses.replace(train, channels_last=channels_last)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model, dataclasses.replace(experiment, train=train), device=device)

    @classmethod
    def from_registry(cls, address: str, **options: Any) -> Self:
        """Create a predictor from a registered model, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.

        Args:
            options: See :meth:`from_checkpoint`.

        Raises:
            ValueError: ``address`` is not an address of this form.
            CheckpointError: There is no such model, or its files are damaged.
        """
        if not address.startswith(MODELS):
            raise ValueError(f"{address!r} names no registered model; write {MODELS}NAME@ALIAS, or use from_checkpoint")
        return cls.from_checkpoint(address, **options)

    @property
    def score_rule(self) -> str:
        """How pose scores are computed, in words, for the protocol that is reported with every AP."""
        rule: str = getattr(self.model, "score_rule", "not stated")
        if self.detections is not None:
            rule = f"{rule}, detections from a file"
        if self.oracle_boxes != "none":
            rule = f"ORACLE: boxes corrected by the ground truth ({self.oracle_boxes}) after: {rule}"
        return f"ORACLE: true OKS before NMS instead of: {rule}" if self.oracle_scores else rule

    def transforms(self) -> list[EvalTransform]:
        """One evaluation transform for each scale; ``predict`` takes one batch for each."""
        return [EvalTransform(resize, self.schema) for resize in self.resizes]

    @overload
    def __call__(self, images: ImageInput) -> Prediction: ...
    @overload
    def __call__(self, images: list[ImageInput]) -> list[Prediction]: ...
    def __call__(self, images: ImageInput | list[ImageInput]) -> Prediction | list[Prediction]:
        """Predict the poses of one image or of a list of images.

        Raises:
            DataError: An image cannot be decoded.
            OSError: An image cannot be read.
            ValueError: Scores or boxes are to come from annotations, and these images have none.
        """
        arrays = [_load(image) for image in (images if isinstance(images, list) else [images])]
        found = [
            Prediction(image, poses, self.schema, self.keypoint_scores, self.note)
            for image, poses in zip(arrays, self.predict_images(arrays), strict=True)
        ]
        return found if isinstance(images, list) else found[0]

    def predict_images(self, images: Sequence[np.ndarray]) -> list[Poses]:
        """Predict the poses of decoded images, ``batch_size`` images at a time.

        Args:
            images: (H, W, 3) uint8 RGB, of any sizes.

        Returns:
            For each image its poses, in its own pixels, best first, on the CPU.

        Raises:
            ValueError: Scores or boxes are to come from annotations, and these images have none.
        """
        poses: list[Poses] = []
        for start in range(0, len(images), self.batch_size):
            poses += self.predict_prepared([self.prepare(image) for image in images[start : start + self.batch_size]])
        return poses

    def prepare(self, image: np.ndarray) -> list[Sample]:
        """Apply each of ``transforms()`` to a decoded image, (H, W, 3) uint8 RGB; safe to call in any thread.

        Raises:
            ValueError: Scores or boxes are to come from annotations, and an image has none.
        """
        self.refuse_oracles()
        return prepare_image(image, self.transforms())

    def refuse_oracles(self) -> None:
        """Check that nothing is taken from annotations, or from a file by image id: plain images have neither.

        Raises:
            ValueError: ``evaluate.oracle_scores``, ``evaluate.oracle_boxes`` or ``evaluate.detections`` is on.
        """
        if self.detections is not None:
            raise ValueError("evaluate.detections needs images of a data set, by id; leave it off to predict images")
        if self.oracle_scores or self.oracle_boxes != "none":
            name = "oracle_scores" if self.oracle_scores else "oracle_boxes"
            raise ValueError(f"evaluate.{name} needs annotated people; leave it off to predict images")

    def predict_prepared(self, prepared: Sequence[Sequence[Sample]]) -> list[Poses]:
        """Predict the poses of images prepared by :meth:`prepare`, as one batch."""
        return self.predict([collate(view) for view in zip(*prepared, strict=True)])

    @torch.inference_mode()
    def predict(self, views: Sequence[Batch]) -> list[Poses]:
        """Predict the poses of a batch of images from one view for each of ``transforms()``.

        Images that need padding to different shapes go through the network separately: padding changes the poses, and
        the poses of an image must not depend on the other images in its batch.

        Returns:
            For each image its poses, in pixels of the original image, on the CPU.
        """
        groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
        boxes: dict[int, Detections] = {}
        for row, shapes in enumerate(zip(*map(_own_shapes, views, self.resizes), strict=True)):
            groups.setdefault(shapes, []).append(row)
        if len(groups) == 1:
            return self._predict_alike(views)
        found: dict[int, Poses] = {}
        for shapes, rows in groups.items():
            parts = [view.part(rows, shape) for view, shape in zip(views, shapes, strict=True)]
            found.update(zip(rows, self._predict_alike(parts), strict=True))
            boxes.update(zip(rows, self.refined, strict=False))
        self.refined = [boxes[row] for row in range(len(boxes))]
        return [found[row] for row in range(len(found))]

    def _predict_alike(self, views: Sequence[Batch]) -> list[Poses]:
        with autocast(self.device, self.precision):
            if self._plain:
                images = views[0].images.to(self.device, non_blocking=True)
                if self._in_boxes:
                    given = None if self.detections is None else self._given(views[0])
                    model = cast(_Refiner, self.model)
                    found = model.predict_in(images, views[0].people, self.oracle_boxes, given)
                else:
                    found = self.model.predict(images, **self._frames(views[0], self.resizes[0]))
                merged, self.refined = _to_original(found, views[0]), self._refined(views[0])
            else:
                merged, self.refined = self._merge(views), []
        if not getattr(self.model, "clips_poses", True):
            return merged
        return [_clip(poses, size) for poses, size in zip(merged, views[0].original_sizes.tolist(), strict=True)]

    def _given(self, batch: Batch) -> list[Detections]:
        """The detections of the file for each image, in pixels of the input; none for an image without an entry."""
        assert self.detections is not None
        nobody = Detections(torch.zeros(0, 4), torch.zeros(0))
        found = [self.detections.get(image_id, nobody) for image_id in batch.image_ids.tolist()]
        return [move_detections(*pair) for pair in zip(found, batch.matrices.numpy(), strict=True)]

    def _refined(self, batch: Batch) -> list[Detections]:
        """The boxes that the model refined in each image, in pixels of the original images."""
        boxes = cast(_Refiner, self.model).refined if self.has_boxes else []
        back = [invert(matrix) for matrix in batch.matrices.numpy()]
        return [move_detections(found.to("cpu"), matrix) for found, matrix in zip(boxes, back, strict=False)]

    def _merge(self, views: Sequence[Batch]) -> list[Poses]:
        """Suppress the candidates of all views of an image together; oracle scores, if on, are set before that."""
        model = cast(_Candidates, self.model)
        found: list[list[Poses]] = [[] for _ in range(len(views[0]))]
        for view, resize in zip(views, self.resizes, strict=True):
            images = view.images.to(self.device, non_blocking=True)
            frames = self._frames(view, resize)
            sets = [model.candidates(images, **frames)]
            if self.flip:
                width = images.shape[-1]
                mirrored = {name: each.mirror(width) for name, each in frames.items()}
                back = resize.mirror(width)
                sets.append([self._unflip(p, back) for p in model.candidates(images.flip(-1), **mirrored)])
            for candidates in sets:
                if self.oracle_scores:
                    candidates = [
                        score_by_ground_truth(poses, people.to(self.device), self._sigmas)
                        for poses, people in zip(candidates, view.people, strict=True)
                    ]
                for slot, poses in zip(found, _to_original(candidates, view), strict=True):
                    slot.append(poses)
        return model.suppress([Poses.cat(parts) for parts in found])

    def _frames(self, view: Batch, resize: Resize) -> dict[str, Frames]:
        """The argument ``frames`` for models that take it (``takes_frames``); empty for others."""
        if not getattr(self.model, "takes_frames", False):
            return {}
        ratios = view.matrices[:, [0, 1], [0, 1]]  # evaluation only scales and moves images
        low = view.matrices[:, :, 2]
        boxes = torch.cat([low, low + ratios * view.original_sizes], 1).float()
        nominal = torch.tensor([resize.scale((w, h)) for w, h in view.original_sizes.tolist()])
        return {"frames": Frames(boxes, ratios.float(), nominal).to(self.device)}

    def _unflip(self, poses: Poses, back: np.ndarray) -> Poses:
        index = self.schema.flip_index
        mirrored = Poses(poses.keypoints[:, index], poses.keypoint_scores[:, index], poses.scores)
        return move_poses(mirrored, back)


def _own_shapes(view: Batch, resize: Resize) -> list[tuple[int, int]]:
    """(H, W) to which each image of a batch would be padded alone."""
    sizes = [resize.matrix((width, height))[1] for width, height in view.original_sizes.tolist()]
    return [(round_up(height), round_up(width)) for width, height in sizes]


def _to_original(poses: Sequence[Poses], batch: Batch) -> list[Poses]:
    back = [invert(matrix) for matrix in batch.matrices.numpy()]
    return [move_poses(p.to("cpu"), matrix) for p, matrix in zip(poses, back, strict=True)]


def _clip(poses: Poses, size: Sequence[int]) -> Poses:
    limit = torch.tensor(size, dtype=poses.keypoints.dtype)
    return Poses(torch.minimum(poses.keypoints.clamp(min=0), limit), poses.keypoint_scores, poses.scores)


def _load(image: ImageInput) -> np.ndarray:
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, bytes):
        return decode_image(image)
    with fsspec.open(str(image), "rb") as file:
        return decode_image(file.read(), what=str(image))
