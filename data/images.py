"""Image bytes to pixels."""

import cv2
import numpy as np

from posefleet.data.errors import DataError

# Ray and torch run many decoding processes; OpenCV's own threads would only make them fight.
cv2.setNumThreads(0)


def decode_image(data: bytes, *, what: str = "image") -> np.ndarray:
    """Decode JPEG, PNG or any format OpenCV knows, as a person sees it: EXIF orientation applied, always RGB.

    Grey and CMYK images become RGB. A truncated JPEG decodes as far as it goes; the doctor and the sharding
    job find those (:func:`posefleet.data.coco.verify_image`).

    Args:
        data: The file's bytes.
        what: Names the image in the error.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DataError: The bytes are not an image.
    """
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
    if image is None:
        raise DataError(f"{what}: cannot decode {len(data)} bytes as an image")
    return image


def encode_jpeg(image: np.ndarray, quality: int = 92) -> bytes:
    """JPEG bytes of an (H, W, 3) uint8 RGB image."""
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert ok
    return data.tobytes()
