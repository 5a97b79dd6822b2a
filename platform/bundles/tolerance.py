"""How far new predictions may lie from those of a bundle, as options of ``posefleet verify``; imports nothing slow."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Bounds for new predictions: no two kinds of machine compute the same bits."""

    pixels: float = 0.1
    """Largest allowed difference of a coordinate, pixels of the original image. Lower is stricter."""
    scores: float = 1e-3
    """Largest allowed difference of a score, 0..1. Lower is stricter."""
    share: float = 1e-3
    """Largest share of poses that may be farther apart, or be found in one of both only, as happens where a pose is at
    a threshold. Lower is stricter."""
    ap: float = 1e-3
    """Largest allowed difference of AP, 0..1. Lower is stricter."""

    def __post_init__(self) -> None:
        for name in ("pixels", "scores", "share", "ap"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"--tolerance.{name} {getattr(self, name)} must be 0 or more")
