"""Faults that are put into labels are found by what predictions say, and right labels are not suspect."""

import numpy as np
import pytest
import torch
from label_faults import Fault, found_by, with_faults

from posefleet.data.coco.records import Record, make_record
from posefleet.data.review.suspects import KINDS, Kind, Suspect, find_suspects
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import Poses

PERSON = np.array(
    [(50, 10), (54, 6), (46, 6), (60, 8), (40, 8), (70, 40), (30, 40), (78, 70), (22, 70), (80, 100), (20, 100),
     (62, 100), (38, 100), (64, 140), (36, 140), (66, 180), (34, 180)], float,
)  # fmt: skip
SIZE = (400, 200)
IMAGES = 80


def annotation(number: int, image_id: int, points: np.ndarray) -> Record:
    labels = np.concatenate([points, np.full((17, 1), 2.0)], 1)
    low, high = points.min(0), points.max(0)
    box = [*low.tolist(), *(high - low).tolist()]
    area = 0.6 * float((high - low).prod())
    return {"id": number, "image_id": image_id, "category_id": 1, "iscrowd": 0, "bbox": box, "area": area,
            "keypoints": labels.ravel().tolist(), "num_keypoints": 17}  # fmt: skip


def data_set(rng: np.random.Generator) -> tuple[dict, dict[int, Poses]]:
    """Two people in every image, and a good model's poses: a few pixels off, with one pose of nobody at a low score."""
    annotations, poses = [], {}
    for image_id in range(IMAGES):
        people = [PERSON + np.array([rng.uniform(low, low + 40), 5]) for low in (30, 230)]
        annotations += [annotation(2 * image_id + i + 1, image_id, points) for i, points in enumerate(people)]
        found = [points + rng.normal(0, 1.5, points.shape) for points in people]
        found.append(PERSON * 0.4 + rng.uniform(0, 100, 2))
        scores = torch.tensor([rng.uniform(0.7, 0.9), rng.uniform(0.6, 0.7), rng.uniform(0.05, 0.2)])
        poses[image_id] = Poses(
            torch.tensor(np.array(found), dtype=torch.float32), scores[:, None].expand(-1, 17), scores
        )
    images = [{"id": i, "file_name": f"{i}.jpg", "width": SIZE[0], "height": SIZE[1]} for i in range(IMAGES)]
    return {"images": images, "annotations": annotations}, poses


def records_of(content: dict) -> list[Record]:
    by_image: dict[int, list[Record]] = {}
    for each in content["annotations"]:
        by_image.setdefault(each["image_id"], []).append(each)
    return [make_record(image, by_image.get(image["id"], [])) for image in content["images"]]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_fault_is_at_the_top_of_the_list(kind: Kind) -> None:
    content, poses = data_set(np.random.default_rng(0))
    wrong, faults = with_faults(content, COCO17, 0.05, seed=1, kinds=[kind])
    suspects = find_suspects(records_of(wrong), poses, COCO17)
    top = suspects[: len(faults)]
    found = [named(suspect, faults, poses) for suspect in top]
    assert all(found) and len({fault.annotation_id for fault in found if fault}) == len(faults) == 8
    assert {suspect.kind for suspect in top} == {kind}
    assert top[-1].doubt > 1.5 * max([suspect.doubt for suspect in suspects[len(faults) :]], default=0.0)


def test_right_labels_are_hardly_suspect() -> None:
    content, poses = data_set(np.random.default_rng(0))
    suspects = find_suspects(records_of(content), poses, COCO17)
    assert max([suspect.doubt for suspect in suspects], default=0.0) < 3
    assert not [suspect for suspect in suspects if suspect.kind in ("missed", "merged", "flag")]


def test_what_a_model_usually_gets_wrong_raises_less_doubt() -> None:
    """The same error of a wrist is worth less where the model's wrists are bad in all images."""

    def doubt(noise: float) -> float:
        rng = np.random.default_rng(0)
        content, poses = data_set(rng)
        for found in poses.values():
            found.keypoints[:2, 9] += torch.tensor(rng.normal(0, noise, (2, 2)), dtype=torch.float32)
        labels = content["annotations"][0]["keypoints"]
        labels[27] += 40
        (own,) = (
            s for s in find_suspects(records_of(content), poses, COCO17)
            if s.annotation_id == 1 and s.keypoints == ("left_wrist",)
        )  # fmt: skip
        return own.doubt

    assert doubt(1.0) > doubt(12.0) + 2


def test_the_pose_of_somebody_annotated_elsewhere_is_not_missed() -> None:
    """Poses in a crowd's box, and second poses of one person, are not people who lack an annotation."""
    content, poses = data_set(np.random.default_rng(0))
    found = poses[3]
    twice = torch.cat([found.keypoints[:2], found.keypoints[:1] + 4])
    poses[3] = Poses(twice, torch.full((3, 17), 0.8), torch.tensor([0.85, 0.8, 0.75]))
    crowd = {
        "id": 900,
        "image_id": 4,
        "category_id": 1,
        "iscrowd": 1,
        "bbox": [0, 0, 400, 200],
        "area": 9e4,
        "keypoints": [],
    }
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 4] + [crowd]
    suspects = find_suspects(records_of(content), poses, COCO17)
    assert not [suspect for suspect in suspects if suspect.kind in ("missed", "flag")]


def test_images_without_predictions_people_or_poses_are_no_trouble() -> None:
    content, poses = data_set(np.random.default_rng(0))
    del poses[0]
    poses[1] = Poses.empty(17)
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 2]
    images = {suspect.image_id for suspect in find_suspects(records_of(content), poses, COCO17)}
    assert 0 not in images and 1 not in images and 2 in images
    assert find_suspects([], {}, COCO17) == []


def named(suspect: Suspect, faults: list[Fault], poses: dict[int, Poses]) -> Fault | None:
    return found_by(suspect, faults, poses[suspect.image_id], COCO17)
