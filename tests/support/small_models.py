"""A small configuration of every method, and batches to try it on; shared by the contract tests and their workers."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch

from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.shipped import COCO17, compact
from posefleet.data.structures import People
from posefleet.models import load_method
from posefleet.models.parts.layers.backbones import BackboneConfig
from posefleet.models.parts.ops.decode import DecodeConfig
from posefleet.platform.checkpoints.format import Meta
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.loading import build_experiment, read_yaml

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"
K = len(COCO17)
BACKBONE = BackboneConfig(name="test_resnet", pretrained=False)
"""timm's smallest ResNet: 0.4 million weights, few operations."""


def _smpr() -> object:
    from posefleet.models.smpr.config import Config, PoseDecodeConfig, PoseHeadConfig

    head = PoseHeadConfig(channels=16, tower_depth=1, heatmap_channels=16, offset_groups=2)
    return Config(backbone=BACKBONE, head=head, decode=PoseDecodeConfig(score_floor=0.0))


def _pfs() -> object:
    from posefleet.models.pfs import Config, DecodeConfig, PfsHeadConfig

    head = PfsHeadConfig(channels=16, tower_depth=1, heatmap_channels=16, offset_groups=2, centerness=True)
    return Config(backbone=BACKBONE, head=head, decode=DecodeConfig(score_floor=0.0, max_poses=20))


def _inspose() -> object:
    from posefleet.models.inspose.model import Config, InstanceHeadConfig

    head = InstanceHeadConfig(
        channels=16,
        tower_depth=1,
        feature_channels=16,
        feature_depth=1,
        map_channels=16,
        direct_channels=16,
        controller_std=0.1,
    )
    return Config(backbone=BACKBONE, head=head, decode=DecodeConfig(score_floor=0.0, top_k=100))


def _logocap() -> object:
    from posefleet.models.logocap.adaptation import AdaptConfig
    from posefleet.models.logocap.model import CentreHeadConfig, Config, DecodeConfig
    from posefleet.models.logocap.targets import TargetConfig

    return Config(
        backbone=BackboneConfig(name="resnet18", pretrained=False),  # untrained, smaller ones find none, or others
        head=CentreHeadConfig(heat_channels=8, offset_channels=16, embedding_channels=8, norm="group"),
        adapt=AdaptConfig(kem_size=5, message_channels=(16, 16, 8), mixture=4, window=13, instances=4),
        target=TargetConfig(heat_sigma=1.0, centre_sigma=1.0, offset_radius=2, refined_sigma=1.0, min_area=16),
        decode=DecodeConfig(centres=8, min_centre=0.0),
    )


def _detposenet() -> object:
    from posefleet.models.detposenet.box_filter import FilterConfig
    from posefleet.models.detposenet.coarse_net import CoarseConfig
    from posefleet.models.detposenet.detector import DetectorConfig
    from posefleet.models.detposenet.model import Config
    from posefleet.models.detposenet.refinement import PrsConfig

    return Config(
        coarse=CoarseConfig(width=16, depth=2, norm="group"),
        detector=DetectorConfig(width=16, hidden=16, proposals=8, per_level=16),
        filter=FilterConfig(mode="nms"),
        prs=PrsConfig(width=16, depth=2, size=32, stacks=1, norm="group", crops_per_image=2),
    )


SMALL: dict[str, Callable[[], object]] = {
    "detposenet": _detposenet,
    "inspose": _inspose,
    "logocap": _logocap,
    "pfs": _pfs,
    "smpr": _smpr,
}
"""Method -> a configuration that takes milliseconds; it must find something in an untrained network."""


def shipped(name: str) -> object:
    """The configuration that a method has for a laptop."""
    found = [path for path in (CONFIGS / f"{name}_demo.yaml", CONFIGS / f"{name}.yaml") if path.exists()]
    assert found, f"{name} has no jobs/configs/{name}.yaml"
    return build_experiment(read_yaml(found[0])).model


def small(name: str) -> object:
    """The small configuration of a method; one that has none is tried as it is shipped."""
    return SMALL[name]() if name in SMALL else shipped(name)


def build(name: str, seed: int = 0, schema: KeypointSchema = COCO17) -> torch.nn.Module:
    """The small model of a method, the same one for the same seed."""
    torch.manual_seed(seed)
    model: torch.nn.Module = load_method(name).Model(small(name), schema)
    return model


def saved(name: str, folder: Path, schema: KeypointSchema = COCO17) -> str:
    """A checkpoint of the small model of a method, for images of 96 to 128 px, at step 6 of the run r1."""
    data = {"train": "shards", "resize": {"short_side": 96, "long_side": 128}}
    values = {"method": name, "data": data, "schema": compact(schema)}
    experiment = replace(build_experiment(values), model=small(name))
    meta = Meta(experiment=experiment, step=6, position=24, metrics={}, provenance={"run_id": "r1", "data": "d" * 64})
    return CheckpointStore(str(folder)).save(meta, build(name, schema=schema).state_dict(), {})


def schema_of(count: int, *, skeleton: bool = True) -> KeypointSchema:
    """``count`` keypoints that no other schema has: a middle one where ``count`` is odd, the others in pairs.

    Their deviations differ by as much as COCO's. The skeleton is a chain, and empty if not wanted.
    """
    sides = [f"{side}_{number}" for number in range(count // 2) for side in ("left", "right")]
    names = tuple([*["tip"][: count % 2], *sides])
    sigmas = tuple(0.025 + 0.08 * (i // 2) / max(count // 2, 1) for i in range(count))
    edges = tuple(pairwise(names)) if skeleton else ()
    pairs = tuple(zip(sides[::2], sides[1::2], strict=True))
    return KeypointSchema(name=f"own{count}", keypoints=names, sigmas=sigmas, skeleton=edges, flip_pairs=pairs)


def images(count: int, height: int = 96, width: int = 128) -> torch.Tensor:
    """(count, 3, height, width) uint8 noise with structure: coarse blocks."""
    random = torch.Generator().manual_seed(1)
    blocks = torch.randint(0, 256, (count, 3, height // 16, width // 16), generator=random, dtype=torch.uint8)
    return blocks.repeat_interleave(16, 2).repeat_interleave(16, 3)


def people(count: int, seed: int = 2, size: tuple[int, int] = (96, 128), keypoints: int = K) -> People:
    """``count`` people with all ``keypoints`` labelled, somewhere in an image of ``size`` (height, width)."""
    random = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 1, 2, generator=random) * torch.tensor([size[1], size[0]]) * 0.5
    centre = centre + torch.tensor([size[1], size[0]]) * 0.25
    points = centre + (torch.rand(count, keypoints, 2, generator=random) - 0.5) * 40
    around = points if keypoints > 1 else torch.cat([points - 15, points + 15], 1)
    return People(
        points,
        torch.full((count, keypoints), 2, dtype=torch.uint8),
        torch.cat([around.amin(1), around.amax(1)], 1),
        torch.full((count,), 900.0),
        torch.zeros(count, dtype=torch.bool),
    )
