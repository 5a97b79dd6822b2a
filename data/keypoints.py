"""Defines the keypoint schemas: names, sigmas and skeleton of each keypoint set; flip pairs follow from the names."""

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, kw_only=True, slots=True)
class KeypointSchema:
    """One set of K keypoints."""

    name: str
    """Name that configs and shards use."""
    keypoints: tuple[str, ...]
    """(K,) names, in the order of annotations and predictions."""
    sigmas: tuple[float, ...]
    """(K,) standard deviation of annotators for each keypoint, in units of sqrt(person area). OKS uses k = 2 sigma."""
    skeleton: tuple[tuple[str, str], ...]
    """Edges between keypoints, for drawing."""

    def __post_init__(self) -> None:
        if len(self.sigmas) != len(self.keypoints):
            raise ValueError(f"{self.name}: {len(self.sigmas)} sigmas for {len(self.keypoints)} keypoints")
        unknown = {end for edge in self.skeleton for end in edge} - set(self.keypoints)
        if unknown:
            raise ValueError(f"{self.name}: the skeleton names {sorted(unknown)}, which are not keypoints")

    def __len__(self) -> int:
        return len(self.keypoints)

    @property
    def flip_pairs(self) -> tuple[tuple[str, str], ...]:
        """(left, right) names of the keypoints that a horizontal flip swaps."""
        return tuple(
            (name, "right" + name.removeprefix("left"))
            for name in self.keypoints
            if name.startswith("left") and "right" + name.removeprefix("left") in self.keypoints
        )

    @property
    def flip_index(self) -> list[int]:
        """(K,) permutation that swaps left and right: ``flipped = keypoints[:, schema.flip_index]``."""
        swap = {a: b for left, right in self.flip_pairs for a, b in ((left, right), (right, left))}
        return [self.keypoints.index(swap.get(name, name)) for name in self.keypoints]

    @property
    def edges(self) -> list[tuple[int, int]]:
        """The skeleton as pairs of keypoint indices."""
        return [(self.keypoints.index(a), self.keypoints.index(b)) for a, b in self.skeleton]


COCO17 = KeypointSchema(
    name="coco17",
    keypoints=(
        "nose", "left_eye", "right_eye", "left_ear", "right_ear",
        "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
        "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
    ),
    sigmas=(
        0.026, 0.025, 0.025, 0.035, 0.035,
        0.079, 0.079, 0.072, 0.072, 0.062, 0.062,
        0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
    ),
    skeleton=(
        ("left_ankle", "left_knee"), ("left_knee", "left_hip"), ("right_ankle", "right_knee"),
        ("right_knee", "right_hip"), ("left_hip", "right_hip"), ("left_shoulder", "left_hip"),
        ("right_shoulder", "right_hip"), ("left_shoulder", "right_shoulder"), ("left_shoulder", "left_elbow"),
        ("right_shoulder", "right_elbow"), ("left_elbow", "left_wrist"), ("right_elbow", "right_wrist"),
        ("left_eye", "right_eye"), ("nose", "left_eye"), ("nose", "right_eye"), ("left_eye", "left_ear"),
        ("right_eye", "right_ear"), ("left_ear", "left_shoulder"), ("right_ear", "right_shoulder"),
    ),
)  # fmt: skip

CROWDPOSE14 = KeypointSchema(
    name="crowdpose14",
    keypoints=(
        "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
        "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle", "head", "neck",
    ),
    sigmas=(
        0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089, 0.079, 0.079,
    ),
    skeleton=(
        ("left_ankle", "left_knee"), ("left_knee", "left_hip"), ("right_ankle", "right_knee"),
        ("right_knee", "right_hip"), ("left_hip", "right_hip"), ("left_shoulder", "left_hip"),
        ("right_shoulder", "right_hip"), ("left_shoulder", "neck"), ("right_shoulder", "neck"),
        ("left_shoulder", "left_elbow"), ("right_shoulder", "right_elbow"), ("left_elbow", "left_wrist"),
        ("right_elbow", "right_wrist"), ("head", "neck"),
    ),
)  # fmt: skip


@cache
def _schemas() -> dict[str, KeypointSchema]:
    return {schema.name: schema for schema in (COCO17, CROWDPOSE14)}


def load_schema(name: str) -> KeypointSchema:
    """The keypoint schema with the name ``name``.

    Raises:
        ValueError: There is no such schema.
    """
    if name not in _schemas():
        raise ValueError(f"unknown keypoint schema {name!r}; known: {', '.join(_schemas())}")
    return _schemas()[name]
