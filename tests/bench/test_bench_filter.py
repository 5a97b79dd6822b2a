"""The benchmark of DetPoseNet's filter finds everybody where nothing is difficult."""

import bench_filter as bench
import pytest
import torch

from posefleet.models.detposenet.box_filter import Filtered

TEMPLATE = (
    (50, 10), (54, 6), (46, 6), (60, 8), (40, 8), (70, 40), (30, 40), (78, 70), (22, 70), (80, 100), (20, 100),
    (62, 100), (38, 100), (64, 140), (36, 140), (66, 180), (34, 180),
)  # fmt: skip


def scene(*shifts: float) -> bench.Scene:
    """People who stand side by side in an image of 256 px."""
    annotations = [
        {
            "keypoints": [value for x, y in TEMPLATE for value in (x + shift, y, 2)],
            "bbox": [16 + shift, 2, 68, 184],
            "area": 6000.0,
            "iscrowd": 0,
            "num_keypoints": 17,
        }
        for shift in shifts
    ]
    return bench.Scene((256, 256), annotations)


def test_everybody_is_found_by_exact_detections() -> None:
    results = bench.measure([[scene(0, 120)], [scene(60)]], bench.ROWS, off=0.0)
    assert [result.evaluation.ap for result in results.values()] == pytest.approx([1.0] * len(bench.ROWS))
    ours, dropped = results["our filter"], results["  boxes without a pose dropped"]
    assert ours.people == 3 and ours.sources["normal"] == 3 and ours.of_seeds == pytest.approx([1.0, 1.0])
    assert sum(dropped.sources.values()) <= sum(ours.sources.values())
    lines = list(bench.table(results, repeats=1))
    assert len(lines) == 1 + len(bench.ROWS) and "+0.000 (+0.000..+0.000)" in lines[-1]


def test_a_box_becomes_the_person_whom_it_overlaps_most() -> None:
    people = scene(0, 120).people
    boxes = torch.tensor([[100.0, 0, 210, 190], [0, 250, 5, 255]])
    found = bench.refined(Filtered(boxes, torch.tensor([0.3, 0.6]), [-1, -1], ["normal", "normal"]), people)
    torch.testing.assert_close(found.keypoints[1], people.keypoints[1])
    torch.testing.assert_close(found.keypoints[0], torch.tensor([[2.5, 252.5]]).expand(17, -1))
    torch.testing.assert_close(found.scores, torch.tensor([0.6, 0.3]))
