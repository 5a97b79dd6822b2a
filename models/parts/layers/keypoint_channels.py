"""States which channels of a layer belong to which keypoints, so that weights can move to a model of another schema.

A :class:`Channel` says what one channel is of. Two channels with the same label, in models of different schemas, mean
the same, wherever they are in their layers.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Channel(NamedTuple):
    """What one output or input channel of a layer is of."""

    what: str
    """A word that tells channels of the same keypoints apart, such as ``x``."""
    keypoints: tuple[str, ...] = ()
    """Names of its keypoints: one, both ends of a limb, or none if the channel does not depend on the schema."""


class KeypointChannels(NamedTuple):
    """Labels of the channels of one layer, in order, where their number depends on the schema."""

    outputs: Sequence[Channel] | None = None
    """Of dimension 0 of the weight, and of the bias. None: the outputs do not depend on the schema."""
    inputs: Sequence[Channel] | None = None
    """Of dimension 1 of the weight, of a layer without groups. None: the inputs do not depend on the schema."""


Layout = dict[str, KeypointChannels]
"""Name of a layer in the model -> labels of its channels."""


def coordinates(keypoints: Sequence[str]) -> list[Channel]:
    """2K channels: x and y of each keypoint in turn."""
    return [Channel(axis, (name,)) for name in keypoints for axis in ("x", "y")]


def one_each(keypoints: Sequence[str], what: str = "map") -> list[Channel]:
    """K channels, one for each keypoint."""
    return [Channel(what, (name,)) for name in keypoints]


def fields(keypoints: Sequence[str], limbs: Iterable[tuple[int, int]]) -> list[Channel]:
    """2L channels: x and y of a field along each limb in turn, from the first keypoint of the limb to the second."""
    return [Channel(axis, (keypoints[a], keypoints[b])) for a, b in limbs for axis in ("x", "y")]


def others(count: int, what: str = "feature") -> list[Channel]:
    """``count`` channels that do not depend on the schema, each with its own label."""
    return [Channel(f"{what} {index}") for index in range(count)]


def under(name: str, layout: Layout) -> Layout:
    """The layout of a part as that of the model that holds it as ``name``."""
    return {f"{name}.{layer}" if layer else name: channels for layer, channels in layout.items()}
