"""Images whose annotators label only some keypoints: no method learns the others from them."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import build, images, people, schema_of, small
from torch import Tensor, nn

from posefleet.data.loading.union import Supervision
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.union import places_in
from posefleet.data.structures import People, Sample, collate
from posefleet.data.transforms import IDENTITY, Augment, Resize, TrainTransform
from posefleet.models import available_methods, load_method
from posefleet.models.parts.layers.keypoint_channels import KeypointChannels

METHODS = available_methods()
UNION = schema_of(6)
HALF = UNION.subset([0, 1, 4, 5])
"""What the source labels: two of the three pairs."""
MISSING = {"left_1", "right_1"}
ALL = Supervision(tuple(range(6)))
SOME = Supervision.of(UNION, HALF)


def partly(person: People) -> People:
    """People of the source, made from people with all keypoints."""
    rows = [UNION.keypoints.index(name) for name in HALF.keypoints]
    own = People(person.keypoints[:, rows], person.visibility[:, rows], person.boxes, person.areas, person.crowd)
    return SOME.spread(own)


def rows_of(model: nn.Module, schema: KeypointSchema) -> dict[str, tuple[Tensor, list[bool]]]:
    """Name of an output layer -> its weight, and for each row whether it is of a keypoint that is not labelled."""
    found = {}
    layout: dict[str, KeypointChannels] = model.keypoint_channels(schema)  # type: ignore[operator]
    for name, channels in layout.items():
        if channels.outputs is not None:
            layer = model.get_submodule(name)
            found[name] = layer.weight, [bool(MISSING.intersection(c.keypoints)) for c in channels.outputs]
    return found


def _teaching(config: object) -> object:
    """The settings with which untrained poses, bad as they are, train all layers."""
    if hasattr(config, "adapt"):
        return replace(config, adapt=replace(config.adapt, positive_oks=0.0))  # type: ignore[type-var]
    if hasattr(config, "filter") and hasattr(config.filter, "threshold"):
        return replace(config, filter=replace(config.filter, threshold=0.0))  # type: ignore[type-var]
    return config


def gradients(method: str, batch: list[People], change: Callable[[object], object] | None = None) -> nn.Module:
    """The model after the backward pass of a batch."""
    torch.manual_seed(0)
    config = _teaching(small(method))
    config = config if change is None else change(config)
    model = load_method(method).Model(config, UNION)
    losses = model.train()(images(len(batch)), batch)
    assert all(torch.isfinite(loss) for loss in losses.values()), losses
    sum(losses.values()).backward()
    return model


def assert_only_labelled_rows_learn(model: nn.Module) -> None:
    for name, (weight, missing) in rows_of(model, UNION).items():
        by_row = weight.grad.flatten(1).abs().amax(1)
        assert (by_row[torch.tensor(missing)] == 0).all(), name
        assert by_row[~torch.tensor(missing)].any(), name


@pytest.mark.parametrize("method", METHODS)
def test_keypoints_that_a_source_does_not_label_get_no_gradient_from_it(method: str) -> None:
    batch = [partly(people(2, keypoints=6)), partly(people(0, keypoints=6))]
    assert_only_labelled_rows_learn(gradients(method, batch))


@pytest.mark.parametrize("method", METHODS)
def test_without_the_marks_they_would(method: str) -> None:
    """Keypoints that are only unlabelled are negatives of maps: this is what the marks prevent."""
    batch = [
        replace(partly(people(2, keypoints=6)), supervised=None, supervised_maps=None, seam=None) for _ in range(2)
    ]
    model = gradients(method, batch)
    learned = [
        name
        for name, (weight, missing) in rows_of(model, UNION).items()
        if weight.grad.flatten(1).abs().amax(1)[torch.tensor(missing)].any()
    ]
    assert learned


def _inspose_paths(config: object) -> object:
    return replace(config, head=replace(config.head, tags=True, gradient_mul=0.5))  # type: ignore[attr-defined, type-var]


def _smpr_paths(config: object) -> object:
    head = replace(config.head, gradient_mul=0.5)  # type: ignore[attr-defined, type-var]
    return replace(config, head=head, loss=replace(config.loss, heatmap_target="gaussian"))  # type: ignore[attr-defined, type-var]


def _pfs_all_cells(config: object) -> object:
    assign = replace(config.assign, region="pseudo", ignore_unlabelled=False)  # type: ignore[attr-defined, type-var]
    return replace(config, assign=assign)  # type: ignore[type-var]


def _detposenet_stacks(config: object) -> object:
    return replace(config, prs=replace(config.prs, stacks=2))  # type: ignore[attr-defined, type-var]


def _logocap_paper(config: object) -> object:
    loss = replace(config.loss, kam_weight="oks", refine_weight="none", heat_weight="inside")  # type: ignore[attr-defined, type-var]
    return replace(config, loss=loss)  # type: ignore[type-var]


OTHER_SETTINGS = {
    "smpr": _smpr_paths,
    "inspose": _inspose_paths,
    "pfs": _pfs_all_cells,
    "detposenet": _detposenet_stacks,
    "logocap": _logocap_paper,
}


@pytest.mark.parametrize("method", OTHER_SETTINGS)
def test_nor_with_other_settings(method: str) -> None:
    """Those that open other paths: sampling points, tags, maps that later stacks read, whole boxes, other weights."""
    batch = [partly(people(3, keypoints=6)), partly(people(1, seed=5, keypoints=6))]
    assert_only_labelled_rows_learn(gradients(method, batch, OTHER_SETTINGS[method]))


def _sample(supervision: Supervision, seed: int) -> Sample:
    everybody = people(2, seed=seed, keypoints=6)
    marked = partly(everybody) if supervision is SOME else ALL.spread(everybody)
    pixels = images(1)[0].permute(1, 2, 0).contiguous().numpy()
    return Sample(pixels, marked, seed, IDENTITY, (128, 96))


@pytest.mark.parametrize("method", METHODS)
def test_nor_after_a_flip_or_in_a_mosaic(method: str) -> None:
    resize = Resize(short_side=96, long_side=128)
    augment = Augment(crop=0, flip=1.0, mosaic=1.0, mosaic_scale=(0.6, 0.9))
    transform = TrainTransform(resize, augment, UNION)
    four = [_sample(SOME, seed) for seed in range(4)]
    made = [transform(four[0], np.random.default_rng(0)), transform.compose(four, np.random.default_rng(1))]
    batch = collate(made)
    torch.manual_seed(0)
    model = build(method, schema=UNION)
    losses = model.train()(batch.images, batch.people)
    sum(losses.values()).backward()
    for name, (weight, missing) in rows_of(model, UNION).items():
        assert (weight.grad.flatten(1).abs().amax(1)[torch.tensor(missing)] == 0).all(), name


@pytest.mark.parametrize("method", METHODS)
def test_marks_that_leave_nothing_out_change_nothing(method: str) -> None:
    """A source that labels everything trains as if it were the only one."""
    plain = [people(2, keypoints=6), people(1, seed=5, keypoints=6)]
    marked = [ALL.spread(person) for person in plain]
    before, after = (gradients(method, batch) for batch in (plain, marked))
    for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5 * float(a.grad.abs().max()), msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_the_sources_of_a_batch_learn_apart(method: str) -> None:
    """An image of a source that labels everything teaches all keypoints, beside one that does not."""
    model = gradients(method, [partly(people(2, keypoints=6)), ALL.spread(people(2, seed=5, keypoints=6))])
    for name, (weight, missing) in rows_of(model, UNION).items():
        assert weight.grad.flatten(1).abs().amax(1)[torch.tensor(missing)].any(), name


def test_a_flip_swaps_what_is_labelled() -> None:
    """In the mirror image of a person whose left hand only is labelled, the right hand is."""
    left = UNION.subset([0, 2])
    marked = Supervision(places_in(UNION, left))
    own = people(1, keypoints=2)
    sample = Sample(np.zeros((96, 128, 3), np.uint8), marked.spread(own), 1, IDENTITY, (128, 96))
    flipped = TrainTransform(Resize(short_side=96, long_side=128), Augment(crop=0, flip=1.0), UNION)
    (found,) = [flipped(sample, np.random.default_rng(0)).people]
    expected = torch.tensor([False, True, False, True, False, False])
    assert torch.equal(found.supervised[0], expected) and torch.equal(found.supervised_maps[0, 0], expected)
    assert not (found.visibility[0][~expected] > 0).any()
