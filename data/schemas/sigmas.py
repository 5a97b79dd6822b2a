"""The standard deviations of annotators for keypoints of known names, and the default for all others."""

from collections.abc import Sequence

from posefleet.data.schemas.names import parts_of

DEFAULT_SIGMA = 0.067
"""Sigma of a keypoint of unknown name: the mean of COCO's seventeen."""

_KNOWN = {
    "nose": 0.026, "eye": 0.025, "ear": 0.035, "shoulder": 0.079, "elbow": 0.072, "wrist": 0.062, "hip": 0.107,
    "knee": 0.087, "ankle": 0.089,  # COCO
    "head": 0.079, "neck": 0.079,  # CrowdPose
    "big toe": 0.089, "small toe": 0.089, "heel": 0.089,  # Halpe
}  # fmt: skip
"""Sigma by name without its side."""

KNOWN_SOURCE = "table of known names (COCO, CrowdPose, Halpe)"


def known_sigma(name: str) -> float | None:
    """The sigma of a keypoint by its name in any spelling; None if the name is not in the table."""
    return _KNOWN.get(" ".join(parts_of(name)[1]))


def infer_sigmas(names: Sequence[str]) -> tuple[tuple[float, ...], str]:
    """A sigma for each name, from the table of known names, else ``DEFAULT_SIGMA``; and where they come from."""
    known = [known_sigma(name) for name in names]
    unknown = [name for name, sigma in zip(names, known, strict=True) if sigma is None]
    if not unknown:
        source = f"inferred: {KNOWN_SOURCE}"
    elif len(unknown) == len(names):
        source = f"default {DEFAULT_SIGMA}"
    else:
        source = f"inferred: {KNOWN_SOURCE}; default {DEFAULT_SIGMA} for {', '.join(unknown)}"
    return tuple(DEFAULT_SIGMA if sigma is None else sigma for sigma in known), source
