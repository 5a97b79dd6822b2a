"""The bounds of the checks of ``posefleet promote`` and ``posefleet export``, their options; imports nothing slow."""

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True, kw_only=True)
class GateThresholds:
    """Bounds that a candidate must meet; those of ``shadow_*`` are for a challenger that predicted live images."""

    tolerance: Annotated[float, "AP"] = 0.01
    """How far the candidate's AP may lie below the champion's: the 95% bootstrap interval over images of the difference
    must lie above minus this value. Lower is stricter; a negative value demands a gain."""
    keypoint_floor: Annotated[float, "AP"] = 0.0
    """Minimum AP of each single keypoint, 0..1. Higher is stricter."""
    latency_ms: Annotated[float, "MS"] = 0.0
    """Longest time from decoded image to its poses on this machine, milliseconds. 0: measured, but no bound."""
    latency_people: int = 10
    """Number of people in the image on which the time is measured. With more, methods that work per person take
    longer."""
    served_images: int = 64
    """Number of images on which served and evaluated poses are compared. More images are more reliable and slower."""
    shadow_images: int = 100
    """Minimum number of live images that both versions must have predicted."""
    shadow_people: int = 1000
    """Minimum number of people that the champion must have found in these images."""
    shadow_oks: Annotated[float, "OKS"] = 0.8
    """Minimum mean OKS, 0..1, between the two poses of each person whom both versions found. Higher is stricter."""
    shadow_missed: Annotated[float, "SHARE"] = 0.1
    """Largest share, 0..1, of the champion's people that the challenger may miss. Lower is stricter."""
    shadow_slower: Annotated[float, "TIMES"] = 2.0
    """Largest ratio of the challenger's time to the champion's. Lower is stricter. 0: no bound."""

    def __post_init__(self) -> None:
        if min(self.latency_people, self.served_images) < 1:
            raise ValueError("--gate.latency_people and --gate.served_images must be at least 1")


@dataclass(frozen=True, kw_only=True)
class ExportThresholds:
    """How an exported network is compared with PyTorch's: float32 by its poses, INT8 and float16 by their AP."""

    images: int = 16
    """Float32: number of images on which the poses are compared. More images are more reliable and slower."""
    pixels: float = 0.1
    """Float32: largest allowed difference of a coordinate, pixels of the original image. Lower is stricter."""
    scores: float = 1e-3
    """Float32: largest allowed difference of a score, 0..1. Lower is stricter."""
    ap_drop: Annotated[float, "AP"] = 0.01
    """INT8, float16: how far its AP may lie below PyTorch's: the 95% bootstrap interval over images of the difference
    must lie above minus this value. Lower is stricter, and needs more images."""
    keypoint_drop: Annotated[float, "AP"] = 0.03
    """INT8, float16: how much AP each single keypoint may lose. Lower is stricter."""
    slower: Annotated[float, "TIMES"] = 0.0
    """Largest ratio of its time for an image to PyTorch's on this machine. Lower is stricter; 1: it must not be
    slower. 0: measured, but no bound."""
    people: int = 10
    """Number of people in the image on which the time is measured. With more, methods that work per person take
    longer."""

    def __post_init__(self) -> None:
        for name in ("images", "people"):
            if getattr(self, name) < 1:
                raise ValueError(f"--check.{name} {getattr(self, name)} must be at least 1")
