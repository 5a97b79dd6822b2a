"""Transforms samples: resize, crop, flip, rotate; and moves poses back to the original image.

The pixel convention of the whole project
-----------------------------------------
Coordinates are continuous: an image of width W spans [0, W], pixel i covers [i, i + 1) and its centre is i + 0.5.
COCO's keypoints and boxes are used unchanged in that frame; nothing is added on reading or subtracted on
writing. So a resize multiplies coordinates by newW / W and newH / H, and a horizontal flip is x -> W - x.
OpenCV's affine warp indexes pixel centres instead, hence the half-pixel shifts in :func:`warp`. One exception serves
weights of other projects: ``Resize.fit``.

Every geometric change is one (2, 3) float64 matrix from the original image to the input image. The sample carries
the matrix; its inverse moves predictions back to the original image.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from posefleet.data.masks import draw_mask
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import PAD_COLOUR, Detections, People, Poses, Sample

IDENTITY = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


# ---------------------------------------------------------------------------------------------------- matrices


def scaling(x: float, y: float) -> np.ndarray:
    """(2, 3) matrix that multiplies coordinates by ``x`` and ``y``."""
    return np.array([[x, 0.0, 0.0], [0.0, y, 0.0]])


def translation(x: float, y: float) -> np.ndarray:
    """(2, 3) matrix that moves points by (x, y) pixels."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y]])


def mirror(width: float) -> np.ndarray:
    """(2, 3) matrix of the horizontal flip x -> width - x."""
    return np.array([[-1.0, 0.0, width], [0.0, 1.0, 0.0]])


def rotation(degrees: float, centre: tuple[float, float]) -> np.ndarray:
    """(2, 3) matrix that turns points clockwise on screen around ``centre``."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0]])
    return chain(translation(-centre[0], -centre[1]), turn, translation(*centre))


def chain(*matrices: np.ndarray) -> np.ndarray:
    """(2, 3) matrix that applies ``matrices`` from the first to the last."""
    result = np.eye(3)
    for matrix in matrices:
        result = np.vstack([matrix, [0.0, 0.0, 1.0]]) @ result
    return result[:2]


def invert(matrix: np.ndarray) -> np.ndarray:
    """(2, 3) matrix that undoes ``matrix``."""
    return np.linalg.inv(np.vstack([matrix, [0.0, 0.0, 1.0]]))[:2]


def move_points(points: Tensor, matrix: np.ndarray | Tensor) -> Tensor:
    """Apply a (2, 3) matrix to (..., 2) points."""
    m = torch.as_tensor(matrix).to(points)
    return points @ m[:, :2].T + m[:, 2]


# ---------------------------------------------------------------------------------------------------- pixels


def warp(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resample ``image`` bilinearly so that point p of it lands at ``matrix`` p.

    Args:
        image: (H, W, 3) uint8.
        matrix: (2, 3), continuous coordinates of ``image`` -> of the result.
        size: (width, height) of the result; pixels outside the image get ``PAD_COLOUR``.
    """
    if (upright := _resize_and_crop(image, matrix, size)) is not None:
        return upright
    centres = chain(translation(0.5, 0.5), matrix, translation(-0.5, -0.5))
    return cv2.warpAffine(
        image, centres, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=PAD_COLOUR
    )


def _resize_and_crop(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """The result of :func:`warp` if ``matrix`` only resizes to whole pixels, mirrors and crops; else None.

    Most training images and all evaluation images need no more, and this is about three times as fast.
    """
    height, width = image.shape[:2]
    (x_scale, x_shear, x_shift), (y_shear, y_scale, y_shift) = matrix.tolist()
    mirrored = x_scale < 0
    # Size of the resized image, and in it the top left corner of the crop before the flip.
    exact = abs(x_scale) * width, y_scale * height, x_shift - size[0] if mirrored else -x_shift, -y_shift
    columns, rows, x, y = whole = [round(value) for value in exact]
    if x_shear or y_shear or not np.allclose(exact, whole, rtol=0, atol=1e-6):
        return None
    if x < 0 or y < 0 or x + size[0] > columns or y + size[1] > rows:
        return None
    if (columns, rows) != (width, height):
        image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_LINEAR)
    image = image[y : y + size[1], x : x + size[0]]
    return cv2.flip(image, 1) if mirrored else image


# ---------------------------------------------------------------------------------------------------- people


def move_people(
    people: People, matrix: np.ndarray, size: tuple[int, int], schema: KeypointSchema, *, flipped: bool = False
) -> People:
    """Move people of the original image to an input image.

    Keypoints outside the input image become unlabelled, boxes are clipped, areas scale with the determinant (a crop
    does not change the scale of a person), centres stay those of whole people. A person whose box does not overlap the
    input image is dropped; a keypoint person of whom only the box remains stays as an unlabelled person. A mask is not
    moved, and left out.

    Args:
        people: In pixels of the original image.
        matrix: (2, 3), original image -> input image.
        size: (width, height) of the input image.
        schema: The keypoints of ``people``.
        flipped: Whether ``matrix`` mirrors; then left and right keypoints are swapped.
    """
    limit = torch.tensor(size, dtype=torch.float32)
    keypoints = move_points(people.keypoints, matrix)
    labelled = people.visibility > 0
    inside = labelled & ((keypoints >= 0) & (keypoints <= limit)).all(-1)
    keypoints = torch.where(inside[..., None], keypoints, 0.0)
    visibility = torch.where(inside, people.visibility, 0)
    if flipped:
        index = torch.tensor(schema.flip_index)
        keypoints, visibility = keypoints[:, index], visibility[:, index]

    x1, y1, x2, y2 = people.boxes.unbind(1)
    corners = move_points(torch.stack([x1, y1, x2, y1, x2, y2, x1, y2], 1).view(-1, 4, 2), matrix)
    low, high = corners.amin(1), corners.amax(1)
    boxes = torch.cat([torch.minimum(low.clamp(min=0), limit), torch.minimum(high.clamp(min=0), limit)], 1)
    determinant = float(abs(np.linalg.det(matrix[:, :2])))
    centres = move_points(people.centres, matrix)
    moved = People(
        keypoints,
        visibility,
        boxes,
        people.areas * determinant,
        people.crowd,
        outlined=people.outlined,
        centres=centres,
    )
    meets_frame = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1) | inside.any(1)
    return moved if bool(meets_frame.all()) else moved[meets_frame]


def move_poses(poses: Poses, matrix: np.ndarray | Tensor) -> Poses:
    """Poses with every keypoint moved by a (2, 3) matrix; with :func:`invert`, back to the original image."""
    return Poses(move_points(poses.keypoints, matrix), poses.keypoint_scores, poses.scores)


def move_detections(detections: Detections, matrix: np.ndarray | Tensor) -> Detections:
    """Detections with both corners of every box moved by a (2, 3) matrix that only scales and shifts."""
    corners = move_points(detections.boxes.view(-1, 2, 2), matrix)
    return Detections(corners.flatten(1), detections.scores)


# ---------------------------------------------------------------------------------------------------- recipes

_MULTIPLE = 64
"""Pixels of which the sides of a centred input are multiples."""


def fitted_size(size: tuple[int, int], short_side: int, long_side: int) -> tuple[int, int]:
    """``size`` (width, height) scaled to ``short_side``, or less so that the long side is at most ``long_side``."""
    width, height = size
    scale = fitted_scale(size, short_side, long_side)
    return max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))


def fitted_scale(size: tuple[int, int], short_side: int, long_side: int) -> float:
    """The scale of :func:`fitted_size` before sizes are rounded to whole pixels."""
    return min(short_side / min(size), long_side / max(size))


@dataclass(frozen=True, kw_only=True, slots=True)
class Resize:
    """Resize of an image to an input, which keeps the aspect ratio."""

    short_side: int = 800
    """Pixels of the short side after the resize. More finds smaller people, and takes more time and memory."""
    long_side: int = 1333
    """Maximum pixels of the long side; an elongated image is made smaller than ``short_side`` to keep it."""
    fit: Literal["scale", "centre"] = "scale"
    """``scale``: the input is the scaled image. ``centre``, as weights of the HigherHRNet family (DEKR, LOGO-CAP)
    expect it: the scaled image is in the middle of a black input whose sides are multiples of 64, and matrices move
    indices of pixels, so that the middle of pixel i is at i. It needs a ``short_side`` that is a multiple of 64."""

    def __post_init__(self) -> None:
        if not 0 < self.short_side <= self.long_side:
            raise ValueError(f"short_side {self.short_side} must be positive and at most long_side {self.long_side}")
        if self.fit == "centre" and self.short_side % _MULTIPLE:
            raise ValueError(
                f"short_side {self.short_side} must be a multiple of {_MULTIPLE}, because fit is 'centre'; take "
                f"{-(-self.short_side // _MULTIPLE) * _MULTIPLE}, or fit 'scale'"
            )

    def matrix(self, original_size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
        """The (2, 3) matrix for an image of ``original_size`` (width, height), and the size of the input."""
        if self.fit == "scale":
            size = fitted_size(original_size, self.short_side, self.long_side)
            return scaling(size[0] / original_size[0], size[1] / original_size[1]), size
        scale = min(self.short_side / min(original_size), self.long_side / max(original_size))
        width, height = (int((scale * side + _MULTIPLE - 1) // _MULTIPLE * _MULTIPLE) for side in original_size)
        x, y = ((side + 1) // 2 for side in original_size)
        return chain(translation(-x, -y), scaling(scale, scale), translation(width / 2, height / 2)), (width, height)

    def mirror(self, width: float) -> np.ndarray:
        """(2, 3) matrix of the horizontal flip of an input of ``width`` pixels."""
        return mirror(width if self.fit == "scale" else width - 1)

    def warp(self, image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """:func:`warp`, for a matrix that begins with that of :meth:`matrix`."""
        if self.fit == "scale":
            return warp(image, matrix, size)
        return cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)

    def scale(self, original_size: tuple[int, int]) -> float:
        """The scale of an image of ``original_size`` (width, height), before its size is rounded to whole pixels."""
        return fitted_scale(original_size, self.short_side, self.long_side)


@dataclass(frozen=True, kw_only=True, slots=True)
class Augment:
    """Random geometric augmentation of training samples, applied after the resize."""

    crop: int = 800
    """Side in pixels of the random crop; a side that is shorter is not cropped. 0: no crop. Less saves memory and time,
    and cuts off more people."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of a random zoom, drawn log-uniformly. Wider shows people in more sizes."""
    rotate: float = 0.0
    """Maximum random rotation to either side, degrees."""
    crop_attempts: int = 10
    """Maximum crops that are drawn until one has a keypoint person. More give fewer inputs without people."""

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip {self.flip} must be a probability, 0 to 1")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {self.scale} must be (low, high) with 0 < low <= high")


@dataclass(frozen=True, slots=True)
class TrainTransform:
    """Transform of training samples: resize, then augment, with random numbers from the caller.

    The result's ``people.mask`` has the outlines of crowds and of people without keypoints.
    """

    resize: Resize
    augment: Augment
    schema: KeypointSchema

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        augment = self.augment
        original = sample.original_size
        matrix, size = self.resize.matrix(original)
        if augment.scale != (1.0, 1.0):
            zoom = float(np.exp(rng.uniform(*np.log(augment.scale))))
            zoomed = max(1, int(size[0] * zoom + 0.5)), max(1, int(size[1] * zoom + 0.5))
            matrix, size = chain(matrix, scaling(zoomed[0] / size[0], zoomed[1] / size[1])), zoomed
        if augment.rotate:
            matrix = chain(matrix, rotation(rng.uniform(-augment.rotate, augment.rotate), (size[0] / 2, size[1] / 2)))
        flipped = bool(rng.random() < augment.flip)
        if flipped:
            matrix = chain(matrix, self.resize.mirror(size[0]))
        outlined = _outlined(sample)
        matrix, size, people = self._crop(replace(sample.people, outlined=outlined), matrix, size, flipped, rng)
        if outlined.any():
            drawn = zip(sample.outlines, outlined.tolist(), strict=True)
            chosen = [outline for outline, wanted in drawn if outline is not None and wanted]
            people = replace(people, mask=torch.from_numpy(draw_mask(chosen, original, matrix, size)))
        return Sample(self.resize.warp(sample.image, matrix, size), people, sample.image_id, matrix, original)

    def _crop(
        self,
        people: People,
        matrix: np.ndarray,
        size: tuple[int, int],
        flipped: bool,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, tuple[int, int], People]:
        crop = self.augment.crop
        if not crop or max(size) <= crop:
            return matrix, size, move_people(people, matrix, size, self.schema, flipped=flipped)
        window = min(crop, size[0]), min(crop, size[1])
        worth_a_redraw = bool(people.labelled.any())
        for _ in range(max(1, self.augment.crop_attempts)):
            left = int(rng.integers(0, size[0] - window[0], endpoint=True))
            top = int(rng.integers(0, size[1] - window[1], endpoint=True))
            cropped = chain(matrix, translation(-left, -top))
            moved = move_people(people, cropped, window, self.schema, flipped=flipped)
            if not worth_a_redraw or bool(moved.labelled.any()):
                break
        return cropped, window, moved


def _outlined(sample: Sample) -> torch.Tensor:
    """(M,) bool, the people of a stored sample whose segmentation is drawn: crowds, and people without keypoints."""
    people = sample.people
    if not sample.outlines:
        return people.outlined
    return torch.tensor([outline is not None for outline in sample.outlines]) & ~people.labelled


@dataclass(frozen=True, slots=True)
class EvalTransform:
    """Transform of evaluation samples: resize only. Nothing is trained with them, so they have no mask."""

    resize: Resize
    schema: KeypointSchema
    flipped: bool = field(default=False)
    """Whether the image is mirrored, for test-time augmentation."""

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> Sample:
        matrix, size = self.resize.matrix(sample.original_size)
        if self.flipped:
            matrix = chain(matrix, self.resize.mirror(size[0]))
        people = move_people(sample.people, matrix, size, self.schema, flipped=self.flipped)
        image = self.resize.warp(sample.image, matrix, size)
        return Sample(image, people, sample.image_id, matrix, sample.original_size)
