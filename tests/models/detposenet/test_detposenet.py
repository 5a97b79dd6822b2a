"""DetPoseNet: targets, losses, crops, filtering inside prediction, and learning by heart."""

from dataclasses import replace

import pytest
import torch

from posefleet.data.coco.annotations import people_of
from posefleet.data.evaluation.evaluate import evaluate
from posefleet.data.evaluation.ground_truth import GroundTruth
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import Detections, People, Poses
from posefleet.data.synthetic.scenes import SceneConfig, render_scene
from posefleet.models.detposenet.box_filter import FilterConfig
from posefleet.models.detposenet.coarse_net import CoarseConfig
from posefleet.models.detposenet.detector import Boxes, DetectorConfig
from posefleet.models.detposenet.masking import MaskingConfig
from posefleet.models.detposenet.model import Config, LossConfig, Model, OutputConfig
from posefleet.models.detposenet.refinement import PrsConfig
from posefleet.models.parts.layers.backbones import BackboneConfig
from posefleet.models.parts.ops.assign import pad_people

K = len(COCO17)
SMALL = Config(
    coarse=CoarseConfig(width=16, depth=2, norm="group"),
    detector=DetectorConfig(width=16, hidden=16, per_level=16, proposals=8),
    prs=PrsConfig(width=16, depth=2, size=64, stacks=2, norm="group", crops_per_image=2),
)
TEMPLATE = torch.tensor(
    [
        (50, 10), (54, 6), (46, 6), (60, 8), (40, 8), (70, 40), (30, 40), (78, 70), (22, 70), (80, 100), (20, 100),
        (62, 100), (38, 100), (64, 140), (36, 140), (66, 180), (34, 180),
    ],
    dtype=torch.float32,
)  # fmt: skip


def build(config: Config = SMALL) -> Model:
    torch.manual_seed(0)
    return Model(config, COCO17)


def standing(*shifts: float, visible: torch.Tensor | None = None) -> People:
    """The same person several times in an image, moved to the right."""
    keypoints = torch.stack([TEMPLATE + torch.tensor([shift, 0.0]) for shift in shifts])
    low, high = keypoints.amin(1) - 4, keypoints.amax(1) + 4
    count = len(shifts)
    visibility = torch.full((count, K), 2) if visible is None else visible.expand(count, -1)
    return People(
        keypoints,
        visibility.to(torch.uint8),
        torch.cat([low, high], 1),
        torch.full((count,), 6000.0),
        torch.zeros(count, dtype=torch.bool),
    )


def refined(model: Model) -> list[int]:
    """How many boxes were refined in each image of the last prediction."""
    return [len(found) for found in model.refined]


def noise(count: int, height: int = 192, width: int = 256) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def perfect_maps(model: Model, people: People, size: tuple[int, int]) -> dict[str, list[torch.Tensor]]:
    """What a coarse net that knows the people would say about an image of ``size`` (height, width)."""
    heat, paf, _ = model.coarse_targets(pad_people([people], torch.device("cpu")), (size[0] // 4, size[1] // 4))
    return {"heat": [heat], "paf": [paf]}


# ------------------------------------------------------------------------------------------------ targets


def test_coarse_targets_are_gaussians_of_7_pixels_and_fields() -> None:
    heat, paf, weights = build().coarse_targets(pad_people([standing(0.0)], torch.device("cpu")), (48, 64))
    assert heat.shape == (1, 17, 48, 64) and paf.shape == (1, 38, 48, 64)
    wrist = COCO17.keypoints.index("right_wrist")  # at (20, 100): cell (5, 25)
    assert heat[0, wrist, 25, 5] == 1
    assert heat[0, wrist, 25, 6].item() == pytest.approx(torch.tensor(-(4**2) / (2 * 7**2)).exp().item(), rel=1e-5)
    assert weights.min() == 1


def test_cells_of_crowds_and_of_people_without_keypoints_teach_nothing() -> None:
    person = standing(0.0)
    ghost = People(
        person.keypoints * 0, person.visibility * 0, torch.tensor([[100.0, 20, 120, 40]]), person.areas, person.crowd
    )
    _, _, weights = build().coarse_targets(
        pad_people([People.cat([person, ghost]), person], torch.device("cpu")), (48, 64)
    )
    expected = torch.ones(48, 64)
    expected[6:10, 26:30] = 0
    torch.testing.assert_close(weights[0, 0], expected)
    assert weights[1].min() == 1


def test_an_unlabelled_box_hides_nothing_that_is_drawn_but_a_segmentation_does() -> None:
    person = standing(0.0)
    box = torch.tensor([[-1.0, -1, 260, 200]])
    ghost = People(person.keypoints * 0, person.visibility * 0, box, person.areas, person.crowd)
    both = People.cat([person, ghost])
    heat, paf, weights = build().coarse_targets(pad_people([both], torch.device("cpu")), (48, 64))
    drawn = ((heat > 0).any(1) | (paf != 0).any(1))[0]
    assert torch.equal(weights[0, 0] > 0, drawn) and 20 < drawn.sum() < drawn.numel() / 2
    both = replace(both, outlined=torch.tensor([False, True]), mask=torch.arange(64).expand(48, 64) >= 20)
    _, _, weights = build().coarse_targets(pad_people([both], torch.device("cpu")), (48, 64))
    assert (weights[0, 0, :, :20] == 1).all() and (weights[0, 0, :, 20:] == 0).all()


def test_refinement_targets_have_a_peak_of_one_cell_at_every_scale() -> None:
    model = build(replace(SMALL, prs=PrsConfig(width=16, norm="group")))
    keypoints = torch.full((1, K, 2), 96.0)
    labelled = torch.arange(K)[None] != 3
    targets = model.refinement_targets(keypoints, labelled)
    assert [t.shape[-1] for t in targets] == [64, 32, 16, 8]
    for scale, target in enumerate(targets):
        cell = 24 // 2**scale
        assert target[0, 0, cell, cell] == 1
        assert target[0, 0, cell, cell + 1].item() == pytest.approx(0.6065, abs=1e-4)
        assert not target[0, 3].any()


@pytest.mark.parametrize(("rule", "peak"), [("maxpool", 1.0), ("avgpool", 1.0)])
def test_coarser_targets_can_be_pooled(rule: str, peak: float) -> None:
    model = build(replace(SMALL, prs=PrsConfig(width=16, norm="group", coarser_targets=rule)))
    finest, *coarser = model.refinement_targets(torch.full((1, K, 2), 98.0), torch.ones(1, K, dtype=torch.bool))
    pool = torch.nn.functional.max_pool2d if rule == "maxpool" else torch.nn.functional.avg_pool2d
    for scale, target in enumerate(coarser, start=1):
        torch.testing.assert_close(target, pool(finest, 2**scale))
    assert finest.max() <= peak


def test_target_points_lie_on_the_limbs_of_their_person() -> None:
    (points,) = build().target_points((192, 256), [standing(0.0, 120.0)])[0]
    assert set(points.person.tolist()) == {0, 1}
    left = points.points[points.person == 0]
    assert left[:, 0].min() >= 8 and left[:, 0].max() <= 92
    assert (points.stride == 4).all()


# ------------------------------------------------------------------------------------------------ crops and losses


def crops_of(model: Model, people: list[People]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    pixels = model.normalise(noise(len(people)))
    return model._training_crops(pixels, pad_people(people, torch.device("cpu")))


def test_crops_of_a_batch_go_to_whoever_there_is() -> None:
    model = build()
    crops = crops_of(model, [standing(0.0, 60.0, 120.0), People.empty(K)])
    assert crops.pixels.shape == (4, 3, 64, 64)
    assert crops.used.tolist() == [True, True, True, False]
    assert crops.labelled[:3].all() and not crops.labelled[3].any()
    side = 1.25 * 182  # the box is 182 px high
    nose = crops.keypoints[:3, 0]
    torch.testing.assert_close(nose[:, 1], torch.full((3,), (10 - (93 - side / 2)) * 64 / side))
    assert model.diagnostics["crops"] == 1.5 and model.diagnostics["left_out"] == 0


def test_with_too_many_people_some_are_drawn() -> None:
    model = build()
    crops = crops_of(model, [standing(*range(0, 100, 10))])
    assert crops.used.all() and len(crops.used) == 2
    assert model.diagnostics["left_out"].item() == pytest.approx(0.8)


def test_people_without_keypoints_are_not_refined() -> None:
    ghost = standing(0.0, visible=torch.zeros(K))
    crops = crops_of(build(), [ghost])
    assert not crops.used.any() and not crops.labelled.any()
    losses = build()(noise(1), [ghost])
    assert losses["mss"] == losses["msr"] == 0


def test_keypoints_outside_a_crop_teach_nothing() -> None:
    person = standing(0.0)
    narrow = People(
        person.keypoints, person.visibility, torch.tensor([[30.0, 0.0, 70.0, 50.0]]), person.areas, person.crowd
    )
    crops = crops_of(build(), [narrow])
    y = TEMPLATE[:, 1]
    assert crops.labelled[0].tolist() == ((y < 25 + 31.25) & (TEMPLATE[:, 0] > 18.75)).tolist()


def test_a_hidden_keypoint_gets_no_gradient_at_any_scale() -> None:
    model = build()
    visible = torch.where(torch.arange(K) == 9, 0, 2)
    crops = crops_of(model, [standing(0.0, visible=visible)])
    stacks, regressed = model.refiner(crops.pixels)
    maps = [m for scales in (*stacks, regressed) for m in scales]
    leaves = [m.detach().requires_grad_() for m in maps]  # the network's own maps feed one another
    terms = model._refinement_terms([leaves[:2], leaves[2:4]], leaves[4:], crops)
    (terms["mss"].total + terms["msr"].total).backward()
    for leaf in leaves:
        taught = leaf.grad[:1].abs().sum((0, 2, 3)) > 0
        assert taught.tolist() == (visible > 0).tolist()


def test_the_loss_is_the_mean_over_scales_and_the_sum_over_stacks() -> None:
    """Maps of zero: the error of a scale is the mean square of its targets."""
    model = build()
    crops = crops_of(model, [standing(0.0, 60.0)])
    targets = model.refinement_targets(crops.keypoints, crops.labelled)
    zeros = [torch.zeros_like(t) for t in targets]
    terms = model._refinement_terms([zeros, zeros], zeros, crops)
    errors = [(t.square().mean((2, 3)) * model.structure).mean(1).mean() for t in targets]
    mean = sum(errors) / len(errors)
    torch.testing.assert_close(terms["msr"].total / terms["msr"].divisor, mean)
    torch.testing.assert_close(terms["mss"].total / terms["mss"].divisor, 2 * mean)


@pytest.mark.parametrize(
    ("config", "stacks", "regressed"),
    [
        (replace(SMALL, prs=replace(SMALL.prs, mss=False)), 1, True),
        (replace(SMALL, prs=replace(SMALL.prs, msr=False)), 2, False),
        (replace(SMALL, loss=LossConfig(scale_weights=(1.0, 0.0))), 1, True),
    ],
)
def test_scales_can_be_switched_off(config: Config, stacks: int, regressed: bool) -> None:
    model = build(config)
    crops = crops_of(model, [standing(0.0, 60.0)])
    targets = model.refinement_targets(crops.keypoints, crops.labelled)
    finest = (targets[0].square().mean((2, 3)) * model.structure).mean(1).mean()
    zeros = [torch.zeros_like(t) for t in targets]
    terms = model._refinement_terms([zeros], zeros if regressed else [], crops)
    assert ("msr" in terms) == regressed
    found = terms["mss"].total / terms["mss"].divisor
    assert (found == finest).item() == (stacks == 1)


def test_without_the_structure_all_keypoints_weigh_the_same() -> None:
    assert build(replace(SMALL, loss=LossConfig(sa_loss=False))).structure.unique().tolist() == [1.0]
    hrnet = PrsConfig(
        network="hrnet_w48",
        size=64,
        depth=2,
        backbone=BackboneConfig(name="hrnet_w32", pretrained=False, frozen_stages=0, norm="trained"),
    )
    assert build(replace(SMALL, prs=hrnet)).structure.unique().tolist() == [1.0]


@pytest.mark.parametrize(
    ("learn", "names"),
    [
        ("both", {"heat", "paf", "rpn_cls", "rpn_box", "roi_cls", "roi_box", "mss", "msr"}),
        ("coarse", {"heat", "paf", "rpn_cls", "rpn_box", "roi_cls", "roi_box"}),
        ("prs", {"mss", "msr"}),
    ],
)
def test_parts_can_learn_alone(learn: str, names: set[str]) -> None:
    model = build(replace(SMALL, learn=learn))
    losses = model(noise(1), [standing(0.0)])
    assert set(losses) == names
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad != (p.grad is not None)] == []


def test_nothing_flows_from_the_refinement_into_the_coarse_net() -> None:
    model = build()
    losses = model(noise(1), [standing(0.0)])
    (losses["mss"] + losses["msr"]).backward()
    assert all(p.grad is None for p in model.coarse.parameters())


def test_masked_crops_train() -> None:
    model = build(replace(SMALL, masking=MaskingConfig(kind="both", probability=1.0)))
    torch.manual_seed(0)
    masked = crops_of(model, [standing(0.0)])
    plain = crops_of(build(), [standing(0.0)])
    assert not torch.equal(masked.pixels[0], plain.pixels[0])
    torch.testing.assert_close(masked.keypoints, plain.keypoints)
    assert torch.equal(masked.labelled, plain.labelled)


# ------------------------------------------------------------------------------------------------ prediction


def test_two_people_close_together_are_refined_once_each_whatever_the_number_of_boxes() -> None:
    model, people = build().eval(), standing(40.0, 60.0)
    boxes = torch.cat([people.boxes, people.boxes[:1] + 2])
    found = [Boxes(boxes, torch.tensor([0.9, 0.8, 0.7]))]
    maps = perfect_maps(model, people, (192, 256))
    chosen = model.filter(found, maps, (192, 256))
    poses = model.refine(model.normalise(noise(1)), chosen)
    assert refined(model) == [2] and len(poses[0]) == 2
    torch.testing.assert_close(model.refined[0].boxes, chosen[0].boxes)
    every = build(replace(SMALL, filter=FilterConfig(mode="none"))).eval()
    assert len(every.filter(found, maps, (192, 256))[0].boxes) == 3


def test_boxes_can_be_corrected_by_the_annotated_ones() -> None:
    model = build(replace(SMALL, filter=FilterConfig(mode="none"))).eval()
    images, people = noise(2), [standing(0, 60), standing(30)]
    assert [len(poses) for poses in model.predict_in(images, people, "annotated")] == [2, 1] == refined(model)
    model.predict(images)
    plain = refined(model)
    model.predict_in(images, people, "no_missed")
    more = refined(model)
    model.predict_in(images, people, "no_false")
    assert all(few <= some <= many for few, some, many in zip(refined(model), plain, more, strict=True))


def test_given_detections_replace_those_of_the_detector() -> None:
    model = build(replace(SMALL, filter=FilterConfig(mode="none"))).eval()
    images, people = noise(2), [standing(0, 60), standing(30)]
    given = [Detections(p.boxes, torch.linspace(0.9, 0.5, len(p))) for p in people]
    found = model.predict_in(images, people, "none", given)
    assert [len(poses) for poses in found] == [2, 1]
    for mine, theirs in zip(model.refined, given, strict=True):
        torch.testing.assert_close(mine.boxes, theirs.boxes)
        torch.testing.assert_close(mine.scores, theirs.scores)
    model.predict_in(images, people, "no_missed", [given[0][:1], given[1]])
    assert refined(model) == [2, 1]


def test_an_image_without_boxes_has_no_poses() -> None:
    model = build().eval()
    nobody = Boxes(torch.zeros(0, 4), torch.zeros(0))
    someone = Boxes(standing(0.0).boxes, torch.tensor([0.5]))
    assert [len(p) for p in model.refine(model.normalise(noise(2)), [nobody, someone])] == [0, 1]
    assert [len(p) for p in model.refine(model.normalise(noise(2)), [nobody, nobody])] == [0, 0]


class Oracle(torch.nn.Module):
    """A refinement that knows where keypoints are in a crop, mirrored crops included."""

    def __init__(self, model: Model, keypoints: torch.Tensor) -> None:
        super().__init__()
        self.model, self.keypoints, self.calls = model, keypoints, 0

    def forward(self, crops: torch.Tensor) -> tuple[list[list[torch.Tensor]], list[torch.Tensor]]:
        keypoints = self.keypoints
        if self.calls % 2:
            keypoints = (torch.tensor([64.0, 0.0]) + keypoints * torch.tensor([-1.0, 1.0]))[:, COCO17.flip_index]
        self.calls += 1
        maps = self.model.refinement_targets(keypoints, torch.ones(keypoints.shape[:2], dtype=torch.bool))
        return [maps], []


@pytest.mark.parametrize("flip", [False, True])
def test_perfect_maps_give_the_keypoints_back(flip: bool) -> None:
    """A box of 80 px has a crop of 100 px on 64: 6.25 px a cell, and an error of at most a quarter of that."""
    model = build(replace(SMALL, prs=replace(SMALL.prs, flip_average=flip))).eval()
    keypoints = torch.rand(1, K, 2, generator=torch.Generator().manual_seed(0)) * 48 + 8
    model.refiner = Oracle(model, keypoints)
    boxes = torch.tensor([[60.0, 40.0, 140.0, 100.0]])  # the crop is (50, 20) to (150, 120)
    (poses,) = model.refine(model.normalise(noise(1)), [Boxes(boxes, torch.tensor([0.8]))])
    expected = keypoints * 100 / 64 + torch.tensor([50.0, 20.0])
    assert (poses.keypoints - expected).abs().max() <= 6.25 / 4 + 1e-3
    assert 0.8 * 0.85 < poses.scores.item() <= 0.8


def test_keypoints_below_the_floor_do_not_count_in_the_score() -> None:
    model = build(replace(SMALL, output=OutputConfig(keypoint_floor=0.99))).eval()
    keypoints = torch.full((1, K, 2), 33.0)
    keypoints[0, 0] = 32.0  # the only one on the grid: peak 1
    model.refiner = Oracle(model, keypoints)
    model.config = replace(model.config, prs=replace(model.config.prs, flip_average=False))
    (poses,) = model.refine(
        model.normalise(noise(1)), [Boxes(torch.tensor([[60.0, 40.0, 140.0, 100.0]]), torch.tensor([0.8]))]
    )
    assert poses.scores.item() == pytest.approx(0.8)
    assert poses.keypoint_scores[0, 0] == 1 and poses.keypoint_scores[0, 1] < 0.99


def test_poses_found_twice_are_merged_only_when_passes_are_merged() -> None:
    model = build()
    twice = Poses(TEMPLATE.repeat(2, 1, 1), torch.ones(2, K), torch.tensor([0.9, 0.8]))
    assert len(model.suppress([twice])[0]) == 1
    assert model.config.output.final_oks_nms == 0
    assert "no NMS of poses" in model.score_rule


@pytest.mark.parametrize("kind", ["shared", "torchvision"])
def test_every_detector_and_filter_predicts(kind: str) -> None:
    detector = SMALL.detector
    if kind == "torchvision":
        detector = DetectorConfig(kind="torchvision", size=64, score_floor=0.0, max_boxes=5)
    for mode in ("coarse", "none"):
        config = replace(SMALL, detector=detector, filter=FilterConfig(mode=mode))
        model = build(config).eval()
        assert len(model.predict(noise(2, 64, 96))) == 2
    losses = model.train()(noise(1), [standing(0.0)])
    assert ("rpn_cls" in losses) == (kind == "shared")


def test_an_hourglass_has_at_least_one_scale() -> None:
    with pytest.raises(ValueError, match="depth 0 at least 1"):
        CoarseConfig(depth=0)
    with pytest.raises(ValueError, match="depth 0 at least 1"):
        PrsConfig(depth=0)


def test_scale_weights_must_fit_the_scales() -> None:
    with pytest.raises(ValueError, match=r"loss\.scale_weights .* prs\.depth 4"):
        Config(loss=LossConfig(scale_weights=(1.0, 1.0)))


# ------------------------------------------------------------------------------------------------ learning

LEARNER = Config(
    coarse=CoarseConfig(width=64, depth=3, norm="group"),
    detector=DetectorConfig(width=64, hidden=128, per_level=100, proposals=24, anchor_scale=6),
    prs=PrsConfig(size=96, stacks=1, width=64, depth=3, norm="group", crops_per_image=2, flip_average=False),
    loss=LossConfig(kpt=100, prs=100),
)


def learn(model: Model, images: torch.Tensor, people: list[People], steps: int) -> None:
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for _ in range(steps):
        losses = model(images, people)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(learning, 35.0)
        optimizer.step()
        schedule.step()


def scenes(count: int, people: tuple[int, int]) -> list:
    config = SceneConfig(width=(128, 128), height=(128, 128), people=people, scale=(0.5, 1.0), crowd_rate=0)
    return [render_scene(replace(config, unlabelled_rate=0), seed) for seed in range(count)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_four_pictures_are_learned_by_heart() -> None:
    rendered = scenes(4, (1, 2))
    images = torch.stack([torch.from_numpy(image.copy()) for image, _ in rendered]).permute(0, 3, 1, 2)
    people = [people_of(annotations, COCO17) for _, annotations in rendered]
    model = build(LEARNER)
    learn(model, images, people, 300)
    records = [(i, (128, 128), annotations) for i, (_, annotations) in enumerate(rendered)]
    found = dict(enumerate(model.eval().predict(images)))
    assert evaluate(GroundTruth.from_records(records), found, COCO17).statistics["AP50"] > 0.9
    assert sum(refined(model)) <= 1.6 * sum(len(p) for p in people)  # the paper's runs per person


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_refinement_learns_eight_crops_by_heart() -> None:
    rendered = scenes(8, (1, 1))
    images = torch.stack([torch.from_numpy(image.copy()) for image, _ in rendered]).permute(0, 3, 1, 2)
    people = [people_of(annotations, COCO17)[:1] for _, annotations in rendered]
    model = build(replace(LEARNER, learn="prs"))
    learn(model, images, people, 300)
    model.eval()
    padded = pad_people(people, torch.device("cpu"))
    with torch.no_grad():
        crops = model._training_crops(model.normalise(images), padded)
        _, regressed = model.refiner(crops.pixels)
    flat = regressed[0].flatten(2).argmax(-1)
    cells = torch.stack([flat % 24, flat // 24], dim=-1)
    near = ((cells - crops.keypoints / 4).abs() <= 1).all(-1)
    assert near[crops.labelled].float().mean() >= 0.95
