"""A folder in COCO's layout as a data set: what is missing, damaged or turned is named, and counted in the scores."""

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from posefleet.data.errors import DataError
from posefleet.data.images import decode_image, verify_image
from posefleet.data.loading.coco_dataset import FolderDataset
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.transforms import EvalTransform, Resize

VIEW = EvalTransform(Resize(short_side=32, long_side=64), COCO17)


def dataset(coco: Any, **allowed: bool) -> FolderDataset:
    return FolderDataset(coco.source, COCO17, VIEW, **allowed)


def test_missing_images_are_named_and_their_people_stay_in_the_records(tiny_coco: Any) -> None:
    for number in (2, 5):
        (tiny_coco.folder / f"{number:012d}.jpg").unlink()
    with pytest.raises(DataError, match=r"2 of 6 images are not in .*: 000000000002.jpg, 000000000005.jpg; .*--allow"):
        dataset(tiny_coco)
    found = dataset(tiny_coco, allow_missing=True)
    assert [sample.image_id for sample in found.samples(range(len(found)))] == [1, 3, 4, 6]
    assert sorted(record["image_id"] for record in found.records()) == [1, 2, 3, 4, 5, 6]
    by_rank = [record["image_id"] for rank in range(3) for record in found.records(rank, 3)]
    assert sorted(by_rank) == [1, 2, 3, 4, 5, 6]
    assert "2 of 6 images are not in" in found.notes[-1] and "count as missed" in found.notes[-1]


def test_an_image_outside_the_folder_is_said_to_be_that(tiny_coco: Any) -> None:
    tiny_coco.images[0]["file_name"] = "../train2017/000000000001.jpg"
    with pytest.raises(DataError, match=r"\.\./train2017/000000000001\.jpg \(leads out of the folder\)"):
        dataset(tiny_coco.save())


def test_a_folder_without_any_image_is_an_error_in_any_case(tiny_coco: Any) -> None:
    for file in tiny_coco.folder.iterdir():
        file.unlink()
    with pytest.raises(DataError, match="6 of 6 images"):
        dataset(tiny_coco, allow_missing=True)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda file, jpeg: file.write_bytes(file.read_bytes()[:1000]), "corrupt_image"),
        (lambda file, jpeg: file.write_bytes(jpeg(1, (32, 24))), "size_mismatch"),
        (lambda file, jpeg: turn(file), "exif_mismatch"),
    ],
)
def test_an_image_that_sharding_skips_is_refused_or_left_out(
    spoil: Callable[..., object], code: str, tiny_coco: Any, noise_jpeg: Callable[..., bytes]
) -> None:
    """Before, a truncated image was scored with grey in it, and one of another size with people elsewhere."""
    spoil(tiny_coco.folder / "000000000003.jpg", noise_jpeg)
    with pytest.raises(DataError, match=rf"{code}: 000000000003\.jpg"):
        dataset(tiny_coco).samples(range(6))
    found = dataset(tiny_coco, allow_errors=True)
    assert [sample.image_id for sample in found.samples(range(len(found)))] == [1, 2, 4, 5, 6]
    assert [record["image_id"] for record in found.records()] == [1, 2, 4, 5, 6]
    assert f"1 image left out, {code}: 3" in found.notes


def turn(file: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(file) as image:
        image.save(file, exif=exif)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [0, 1, 3, 6, 8, 9])
def test_the_checks_find_the_size_that_training_decodes(kind: str, orientation: int, tmp_path: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "a"
    Image.new("RGB", (60, 40)).save(file, kind, exif=exif)
    assert verify_image(file.read_bytes()) == decode_image(file.read_bytes()).shape[1::-1]
