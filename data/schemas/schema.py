"""Defines the keypoint schema: names, sigmas and skeleton of a keypoint set; flip pairs follow from the names."""

from dataclasses import dataclass


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
