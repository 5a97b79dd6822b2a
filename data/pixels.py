"""Changes the pixels of a training image: colours, grey, blur, noise, JPEG artefacts, an erased rectangle.

Images are (H, W, 3) uint8 RGB and are not changed in place. OpenCV computes them in a hundredth to a half of the
processor time that torchvision takes for the same (docs/results.md).
"""

from dataclasses import replace

import cv2
import numpy as np
import torch

from posefleet.data.images import decode_image, encode_jpeg
from posefleet.data.structures import PAD_COLOUR, People

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in the grey value of a pixel (ITU-R BT.601)."""

_TO_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])  # of NTSC; Y is the grey value


def change_colours(
    image: np.ndarray, *, brightness: float = 1.0, contrast: float = 1.0, saturation: float = 1.0, hue: float = 0.0
) -> np.ndarray:
    """Change the colours of an image in one pass; values are cut to 0..255 once, at the end.

    Args:
        image: (H, W, 3) uint8 RGB.
        brightness: Factor on every value.
        contrast: Factor on the distance of every value to the image's mean grey value.
        saturation: Factor on the distance of every pixel to its grey value; 0 makes the image grey.
        hue: Degrees by which colours turn on the circle of hues, at the same grey value.
    """
    cos, sin = np.cos(np.deg2rad(hue)), np.sin(np.deg2rad(hue))
    turn = np.array([[1, 0, 0], [0, saturation * cos, -saturation * sin], [0, saturation * sin, saturation * cos]])
    matrix = brightness * contrast * np.linalg.inv(_TO_YIQ) @ turn @ _TO_YIQ
    shift = brightness * (1 - contrast) * float(LUMA @ cv2.mean(image)[:3]) if contrast != 1 else 0.0
    changed: np.ndarray = cv2.transform(image, np.column_stack([matrix, np.full(3, shift)]))
    return changed


def make_grey(image: np.ndarray) -> np.ndarray:
    """The image without colour, still with three channels."""
    grey: np.ndarray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return grey


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """The image after a Gaussian filter of ``sigma`` pixels."""
    blurred: np.ndarray = cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return blurred


def add_noise(image: np.ndarray, deviation: float, seed: int) -> np.ndarray:
    """Add normal noise of standard ``deviation`` (0..255) to every value; the same ``seed`` gives the same noise."""
    cv2.setRNGSeed(seed)  # of this thread; nothing else here draws from it
    values = np.empty((len(image), image.shape[1] * 3), np.int16)
    noise = cv2.randn(values, np.zeros(1), np.array([deviation]))
    noisy: np.ndarray = cv2.add(image, noise.reshape(image.shape), dtype=cv2.CV_8U)
    return noisy


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    """The image as a JPEG of ``quality`` 1 (worst) to 100 shows it."""
    return decode_image(encode_jpeg(image, quality))


def erase(image: np.ndarray, people: People, box: tuple[int, int, int, int]) -> tuple[np.ndarray, People]:
    """Fill a rectangle with ``PAD_COLOUR``, and mark the keypoints in it.

    Erased keypoints stay labelled, and become hidden (visibility 1): the rest of the person tells where they are. A
    person of whom every labelled keypoint is erased becomes one without keypoints, as if a crop had cut them off, so
    that no loss asks for a person that cannot be seen.

    Args:
        image: (H, W, 3) uint8 RGB.
        people: In pixels of the image.
        box: x1, y1, x2, y2 of the rectangle, whole pixels.
    """
    x1, y1, x2, y2 = box
    image = image.copy()
    image[y1:y2, x1:x2] = PAD_COLOUR
    low, high = torch.tensor([x1, y1]), torch.tensor([x2, y2])
    labelled = people.visibility > 0
    erased = labelled & ((people.keypoints >= low) & (people.keypoints < high)).all(-1)
    gone = ((erased == labelled).all(1) & labelled.any(1))[:, None]
    visibility = people.visibility.where(~erased, 1).where(~gone, 0)
    keypoints = people.keypoints.where(~gone[..., None], 0.0)
    return image, replace(people, keypoints=keypoints, visibility=visibility)
