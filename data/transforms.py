"""Transforms samples: resize, crop, flip, rotate, mosaic, pixels; and moves poses back to the original image.

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

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from posefleet.data.masks import draw_mask
from posefleet.data.pixels import add_noise, blur, change_colours, compress, erase, make_grey
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import MASK_STRIDE, PAD_COLOUR, Detections, People, Poses, Sample, mask_shape

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
    if x_shear or y_shear or any(abs(a - b) > 1e-6 for a, b in zip(exact, whole, strict=True)):
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
    moved, and left out. In a mirrored image the annotators label the mirrors of their keypoints.

    Args:
        people: In pixels of the original image.
        matrix: (2, 3), original image -> input image.
        size: (width, height) of the input image.
        schema: The keypoints of ``people``.
        flipped: Whether ``matrix`` mirrors; then left and right keypoints are swapped.
    """
    if not len(people) and people.supervised_maps is None:  # plain images, whose prediction need not wait for this
        return replace(people, mask=None)
    limit = torch.tensor(size, dtype=torch.float32)
    keypoints = move_points(people.keypoints, matrix)
    labelled = people.visibility > 0
    inside = labelled & ((keypoints >= 0) & (keypoints <= limit)).all(-1)
    keypoints = torch.where(inside[..., None], keypoints, 0.0)
    visibility = torch.where(inside, people.visibility, 0)
    supervised, maps = people.supervised, people.supervised_maps
    if flipped:
        index = torch.tensor(schema.flip_index)
        keypoints, visibility = keypoints[:, index], visibility[:, index]
        supervised = None if supervised is None else supervised[:, index]
        maps = None if maps is None else maps[..., index]

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
        supervised=supervised,
        supervised_maps=maps,
        seam=people.seam,
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
    """Random augmentation of training samples, applied after the resize: first geometry, then pixels.

    What is off draws no random number, so a change of pixels leaves the crops of a run as they were.
    """

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
    mosaic: float = 0.0
    """Probability that an input is a mosaic of four images, each with its own zoom, rotation, flip and crop. More mixes
    people and backgrounds more, which helps small data sets most, and cuts off more people. 0: off."""
    mosaic_scale: tuple[float, float] = (0.5, 1.0)
    """Range of the zoom of an image in a mosaic, instead of ``scale``; an image is never smaller than its place. Lower
    shows more of each image, in a smaller size."""
    brightness: float = 0.0
    """Maximum relative change of brightness: colours are multiplied by a factor drawn from 1 - brightness to
    1 + brightness. As for all changes of pixels, more makes the model depend less on light and camera, and the training
    longer. 0: off."""
    contrast: float = 0.0
    """Maximum relative change of contrast, the distance of colours to the image's mean grey. 0: off."""
    saturation: float = 0.0
    """Maximum relative change of saturation, the distance of colours to grey. 0: off."""
    hue: float = 0.0
    """Maximum turn of hues to either side, degrees of the colour circle, at most 180. 0: off."""
    grey: float = 0.0
    """Probability of an image without colour."""
    blur: float = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.3, 2.0)
    """Range of the blur's deviation, pixels of the input. Above about 3 the small keypoints of a face vanish."""
    noise: float = 0.0
    """Probability of normal noise, independent in every value."""
    noise_deviation: tuple[float, float] = (2.0, 12.0)
    """Range of the noise's standard deviation; colours are 0 to 255."""
    jpeg: float = 0.0
    """Probability of the artefacts of a JPEG."""
    jpeg_quality: tuple[int, int] = (30, 90)
    """Range of the JPEG's quality, 1 to 100. Lower shows more artefacts."""
    erase: float = 0.0
    """Probability that a rectangle is filled with the mean colour. Keypoints in it stay labelled, as hidden ones. A
    person all of whose keypoints are in it becomes one without keypoints, which losses skip."""
    erase_area: tuple[float, float] = (0.02, 0.2)
    """Range of the rectangle's part of the input. More hides more keypoints."""

    def __post_init__(self) -> None:
        for name in ("flip", "mosaic", "grey", "blur", "noise", "jpeg", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} must be a probability, 0 to 1")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} {getattr(self, name)} must be from 0 (off) to 1: factors are 1 - it to 1 + it"
                )
        if not 0 <= self.hue <= 180:
            raise ValueError(f"hue {self.hue} must be from 0 (off) to 180 degrees")
        for name, most in (
            ("scale", np.inf),
            ("mosaic_scale", np.inf),
            ("blur_sigma", np.inf),
            ("noise_deviation", 255),
            ("jpeg_quality", 100),
            ("erase_area", 1),
        ):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most:
                limit = "" if most == np.inf else f" <= {most}"
                raise ValueError(f"{name} {(low, high)} must be (low, high) with 0 < low <= high{limit}")


GROUP = 8
"""Positions among which a mosaic is made: those of [8 k, 8 k + 8). A batch of whole groups decodes no image twice."""


@dataclass(frozen=True, slots=True)
class TrainTransform:
    """Transform of training samples: resize, then augment, with random numbers from the caller.

    The result's ``people.mask`` has the outlines of crowds and of people without keypoints.
    """

    resize: Resize
    augment: Augment
    schema: KeypointSchema

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return self._change_pixels(self._place(sample, rng), rng)

    def partners(self, position: int, rng: np.random.Generator) -> tuple[int, ...]:
        """Positions of three other samples that :meth:`compose` needs for an input; none if it is no mosaic."""
        if not self.augment.mosaic or rng.random() >= self.augment.mosaic:
            return ()
        group = position - position % GROUP
        others = [other for other in range(group, group + GROUP) if other != position]
        return tuple(rng.choice(others, 3, replace=False).tolist())

    def compose(self, samples: Sequence[Sample], rng: np.random.Generator) -> Sample:
        """A mosaic of four stored samples, around a random point in the middle half of the input.

        The result has the size that the first sample would have without a zoom, and its id and matrix. People are cut
        where their image is. One whose centre is outside their part of the mosaic has it outside of the input.
        """
        width, height = size = self._window(self.resize.matrix(samples[0].original_size)[1])
        x, y = (int(side * rng.uniform(0.25, 0.75)) // MASK_STRIDE * MASK_STRIDE for side in size)
        corners = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
        image, parts = np.empty((height, width, 3), np.uint8), []
        mask = torch.zeros(mask_shape(height, width), dtype=torch.bool)
        matrix = IDENTITY
        supervised: list[Tensor | None] = [None] * 4
        for sample, place in zip(samples, rng.permutation(4).tolist(), strict=True):
            left, top, right, bottom = corners[place]
            if left == right or top == bottom:
                continue  # an input of a few pixels
            part = self._place(sample, rng, (right - left, bottom - top))
            image[top:bottom, left:right] = part.image
            parts.append(_shifted(part.people, left, top, part.image.shape))
            supervised[place] = part.people.supervised_maps
            if part.people.mask is not None:
                rows, columns = part.people.mask.shape
                first_row, first_column = top // MASK_STRIDE, left // MASK_STRIDE
                mask[first_row : first_row + rows, first_column : first_column + columns] = part.people.mask
            if sample is samples[0]:
                matrix = chain(part.matrix, translation(left, top))
        people = replace(People.cat(parts), mask=mask if mask.any() else None)
        if any(maps is not None for maps in supervised):
            people = replace(people, supervised_maps=_joined(supervised), seam=torch.tensor([x, y]).float())
        composed = Sample(image, people, samples[0].image_id, matrix, samples[0].original_size)
        return self._change_pixels(composed, rng)

    def _place(self, sample: Sample, rng: np.random.Generator, place: tuple[int, int] | None = None) -> Sample:
        """The sample after all geometry; in a mosaic, with the size (width, height) of its ``place``."""
        augment = self.augment
        original = sample.original_size
        matrix, size = self.resize.matrix(original)
        scale = augment.scale if place is None else augment.mosaic_scale
        if place is not None or scale != (1.0, 1.0):
            zoom = float(np.exp(rng.uniform(*np.log(scale))))
            if place is not None:
                zoom = max(zoom, place[0] / size[0], place[1] / size[1])
            zoomed = max(1, int(size[0] * zoom + 0.5)), max(1, int(size[1] * zoom + 0.5))
            matrix, size = chain(matrix, scaling(zoomed[0] / size[0], zoomed[1] / size[1])), zoomed
        if augment.rotate:
            matrix = chain(matrix, rotation(rng.uniform(-augment.rotate, augment.rotate), (size[0] / 2, size[1] / 2)))
        flipped = bool(rng.random() < augment.flip)
        if flipped:
            matrix = chain(matrix, self.resize.mirror(size[0]))
        outlined = _outlined(sample)
        window = place or self._window(size)
        matrix, people = self._crop(replace(sample.people, outlined=outlined), matrix, size, window, flipped, rng)
        if outlined.any():
            drawn = zip(sample.outlines, outlined.tolist(), strict=True)
            chosen = [outline for outline, wanted in drawn if outline is not None and wanted]
            people = replace(people, mask=torch.from_numpy(draw_mask(chosen, original, matrix, window)))
        return Sample(self.resize.warp(sample.image, matrix, window), people, sample.image_id, matrix, original)

    def _window(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of the crop of an image of ``size``."""
        crop = self.augment.crop or max(size)
        return min(crop, size[0]), min(crop, size[1])

    def _crop(
        self,
        people: People,
        matrix: np.ndarray,
        size: tuple[int, int],
        window: tuple[int, int],
        flipped: bool,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, People]:
        """The matrix and the people of a random crop of size ``window`` from an image of ``size``."""
        if size == window:
            return matrix, move_people(people, matrix, size, self.schema, flipped=flipped)
        worth_a_redraw = bool(people.labelled.any())
        for _ in range(max(1, self.augment.crop_attempts)):
            left = int(rng.integers(0, size[0] - window[0], endpoint=True))
            top = int(rng.integers(0, size[1] - window[1], endpoint=True))
            cropped = chain(matrix, translation(-left, -top))
            moved = move_people(people, cropped, window, self.schema, flipped=flipped)
            if not worth_a_redraw or bool(moved.labelled.any()):
                break
        return cropped, moved

    def _change_pixels(self, sample: Sample, rng: np.random.Generator) -> Sample:
        augment, image, people = self.augment, sample.image, sample.people
        ranges = {name: getattr(augment, name) for name in ("brightness", "contrast", "saturation")}
        if augment.hue or any(ranges.values()):
            factors = {name: 1 + most * rng.uniform(-1, 1) for name, most in ranges.items() if most}
            hue = augment.hue * rng.uniform(-1, 1) if augment.hue else 0.0
            image = change_colours(image, hue=hue, **factors)
        if augment.grey and rng.random() < augment.grey:
            image = make_grey(image)
        if augment.blur and rng.random() < augment.blur:
            image = blur(image, rng.uniform(*augment.blur_sigma))
        if augment.noise and rng.random() < augment.noise:
            image = add_noise(image, rng.uniform(*augment.noise_deviation), int(rng.integers(2**31)))
        if augment.jpeg and rng.random() < augment.jpeg:
            image = compress(image, int(rng.integers(*augment.jpeg_quality, endpoint=True)))
        if augment.erase and rng.random() < augment.erase:
            box = _rectangle((image.shape[1], image.shape[0]), rng.uniform(*augment.erase_area), rng)
            image, people = erase(image, people, box)
        return replace(sample, image=image, people=people)


def _shifted(people: People, x: int, y: int, shape: tuple[int, ...]) -> People:
    """People of an image of ``shape`` (height, width, ...), moved to where it is in a mosaic, without their mask."""
    offset = torch.tensor([x, y], dtype=torch.float32)
    labelled = (people.visibility > 0)[..., None]
    inside = ((people.centres >= 0) & (people.centres <= torch.tensor([shape[1], shape[0]]))).all(1, keepdim=True)
    return replace(
        people,
        keypoints=(people.keypoints + offset).where(labelled, 0.0),
        boxes=people.boxes + offset.repeat(2),
        centres=(people.centres + offset).where(inside, _OUTSIDE),
        mask=None,
    )


def _joined(parts: Sequence[Tensor | None]) -> Tensor:
    """The ``supervised_maps`` of a mosaic from those of its four parts; a part of no pixels teaches nothing."""
    some = next(part for part in parts if part is not None)
    rows = [torch.zeros_like(some[0, 0]) if part is None else part[0, 0] for part in parts]
    joined: Tensor = torch.stack(rows).unflatten(0, (2, 2))
    return joined


_OUTSIDE = -1e4
"""Coordinate, in pixels, of a centre that no input shows: in a mosaic it would be in the image of others."""


def _rectangle(size: tuple[int, int], part: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of a random rectangle that covers about ``part`` of an image of ``size`` (width, height)."""
    aspect = float(np.exp(rng.uniform(-1.2, 1.2)))  # width / height, 0.3 to 3.3 as in random erasing (Zhong et al.)
    area = part * size[0] * size[1]
    width, height = (max(1, round(side)) for side in ((area * aspect) ** 0.5, (area / aspect) ** 0.5))
    width, height = min(width, size[0]), min(height, size[1])
    x, y = (int(rng.integers(0, free, endpoint=True)) for free in (size[0] - width, size[1] - height))
    return x, y, x + width, y + height


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
