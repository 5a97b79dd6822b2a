"""Every method works for any keypoints: one or many, with a skeleton or without, and for people of any shape."""

import math
from dataclasses import replace

import pytest
import torch
from small_models import build, images, people, schema_of, small
from torch import nn

from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.shipped import COCO17, load_schema
from posefleet.data.structures import People, Poses
from posefleet.models import available_methods
from posefleet.models.detposenet.limbs import limbs_of
from posefleet.models.logocap.suppression import suppress_near
from posefleet.models.parts.ops.counts import in_proportion
from posefleet.models.parts.ops.nms import suppress_poses
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.inference.predictor import Predictor

METHODS = available_methods()
COUNTS = (1, 4, 21, 133)
"""Numbers of keypoints; the other tests of the methods have 17."""
CASES = [(method, schema_of(count)) for method in METHODS for count in COUNTS]
CASES += [("detposenet", schema_of(count, skeleton=False)) for count in (4, 17, 133)]  # no other method reads it


def name_of(value: object) -> str:
    if isinstance(value, KeypointSchema):
        return f"{len(value)}{'' if value.skeleton or len(value) == 1 else ' without skeleton'}"
    return str(value)


def assert_trains(model: nn.Module, batch: list[People]) -> None:
    """The losses and all gradients are finite, and every parameter has one."""
    losses = model.train()(images(len(batch)), batch)
    assert all(torch.isfinite(loss) for loss in losses.values()), losses
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(("method", "schema"), CASES, ids=name_of)
def test_a_method_trains_and_predicts(method: str, schema: KeypointSchema) -> None:
    model = build(method, seed=4, schema=schema)
    assert_trains(model, [people(2, keypoints=len(schema)), people(0, keypoints=len(schema))])
    found = model.eval().predict(images(2))
    assert sum(map(len, found)) > 0
    for poses in found:
        assert poses.keypoints.shape == (len(poses), len(schema), 2)
        assert poses.keypoint_scores.shape == (len(poses), len(schema))
        assert torch.isfinite(poses.keypoints).all()
        assert ((poses.scores >= 0) & (poses.scores <= 1)).all() and (poses.scores.diff() <= 0).all()


def odd_people(count: int) -> People:
    """People whose boxes have no area: keypoints on a line, in a point, only one labelled, a box that is a point."""
    everybody = people(4, keypoints=count)
    points, visibility, boxes = everybody.keypoints, everybody.visibility, everybody.boxes
    points[0, :, 1] = points[0, :1, 1]
    points[1] = points[1, :1]
    visibility[2, 1:] = 0
    boxes[:2] = torch.cat([points[:2].amin(1), points[:2].amax(1)], 1)
    areas = torch.tensor([0.0, 0.0, 900.0, 900.0])
    return replace(everybody, areas=areas, centres=None)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("method", METHODS)
def test_people_without_an_area_train(method: str, count: int) -> None:
    assert_trains(build(method, schema=schema_of(count)), [odd_people(count), people(1, keypoints=count)])


@pytest.mark.parametrize("method", ["inspose", "pfs", "smpr"])
def test_a_person_of_a_single_keypoint_has_the_cells_of_the_annotated_box(method: str) -> None:
    model = build(method, schema=schema_of(1))
    person = people(1, size=(256, 320), keypoints=1)
    wide = replace(person, boxes=person.keypoints[:, 0].repeat(1, 2) + torch.tensor([[-70.0, -70.0, 70.0, 70.0]]))
    point = replace(person, boxes=person.keypoints[:, 0].repeat(1, 2))
    small, large, none = (found[0] for found in model.target_points((256, 320), [person, wide, point]))
    assert len(small.points) and len(large.points)
    assert small.stride.max() < large.stride.min()
    assert len(none.points) or method == "inspose"  # which leaves out boxes thinner than ``min_side``


@pytest.mark.parametrize("points", [[[50.0, 40.0]], [[20.0, 40.0], [80.0, 40.0], [60.0, 40.0]]], ids=["one", "a line"])
def test_duplicates_without_an_area_are_suppressed(points: list[list[float]]) -> None:
    """Their boxes overlap, though a tight box of one keypoint, or of some on a line, has no area."""
    pose = torch.tensor(points)
    keypoints = torch.stack([pose, pose + 0.5, pose + 60])
    scores = torch.tensor([0.9, 0.8, 0.7])
    poses = Poses(keypoints, scores[:, None].expand(keypoints.shape[:2]), scores)
    (kept,) = suppress_poses([poses], rule="hard")
    assert kept.scores.tolist() == pytest.approx([0.9, 0.7])
    (near,) = suppress_near([poses], distance=0.05, keypoints=0, limit=10)
    assert near.scores.tolist() == pytest.approx([0.9, 0.7])


def test_numbers_of_keypoints_in_settings_are_in_proportion() -> None:
    assert [in_proportion(8, count) for count in (1, 4, 14, 17, 133)] == [0, 2, 7, 8, 63]
    assert build("logocap", schema=schema_of(4)).near_keypoints == 2


def test_limbs_are_the_skeleton_and_what_connects_it() -> None:
    assert limbs_of(COCO17) == COCO17.edges  # with its cycles
    assert limbs_of(schema_of(4, skeleton=False)) == [(0, 1), (1, 2), (2, 3)]
    assert limbs_of(schema_of(1)) == []
    forest = replace(schema_of(6), skeleton=(("left_0", "left_2"), ("right_0", "left_1")))  # 0 - 4, 1 - 2
    assert limbs_of(forest) == [(0, 4), (1, 2), (0, 1), (2, 3), (4, 5)]
    whole = load_schema("coco_wholebody133")
    reached, todo = set(), [0]
    while todo:
        reached.add(here := todo.pop())
        todo += [b if a == here else a for a, b in limbs_of(whole) if here in (a, b) and not {a, b} <= reached]
    assert len(reached) == 133 and len(limbs_of(whole)) == len(whole.edges) + 68 + 2  # faces, and two hand roots


def test_meshes_of_candidates_have_a_limit() -> None:
    """A mesh that is twenty times as wide as another would be sampled at four hundred times as many cells."""
    model = build("logocap", schema=load_schema("coco_wholebody133"))
    assert model.span == math.ceil(4 * 5 / 4) + 2  # kem_size 5, so four steps of at most five pixels, stride 4


def test_taps_of_the_alignment_spread_over_keypoints_that_have_other_names() -> None:
    channels = build("inspose", schema=schema_of(21)).head.taps.view(9, 2)
    assert (channels[:, 1] // 2).tolist() == [0, 2, 5, 8, 10, 12, 15, 18, 20]
    assert (build("inspose", schema=schema_of(1)).head.taps.view(9, 2) == torch.tensor([1, 0])).all()
    assert (build("inspose").head.taps.view(9, 2)[:, 1] // 2).tolist() == [0, 5, 6, 9, 10, 11, 12, 15, 16]


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("method", METHODS)
def test_the_flip_test_swaps_the_pairs_of_the_schema(method: str, count: int) -> None:
    """An image and its mirror image have the same two views, so their poses are mirror images."""
    schema = schema_of(count)
    values = {"method": method, "schema": schema.as_dict(), "evaluate": {"flip": True}}
    settings = build_experiment({**values, "data": {"train": "", "resize": {"short_side": 96, "long_side": 128}}})
    predictor = Predictor(build(method, seed=4, schema=schema), replace(settings, model=small(method)))
    picture = images(1)[0].permute(1, 2, 0).numpy()
    found, mirrored = predictor.predict_images([picture, picture[:, ::-1].copy()])
    assert len(found) > 0
    expected = found.keypoints[:, schema.flip_index] * torch.tensor([-1.0, 1.0]) + torch.tensor([128.0, 0.0])
    torch.testing.assert_close(mirrored.scores, found.scores, atol=1e-4, rtol=0)
    apart = (mirrored.keypoints[:, None] - expected[None]).abs().amax((-2, -1))
    assert (apart.amin(1) < 0.05).all()  # of equal scores the order may differ
