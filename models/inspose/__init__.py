"""InsPose: instance-aware dynamic networks for single-stage multi-person pose estimation (Shi et al., 2021)."""

from posefleet.models.inspose.model import Config, Model

__all__ = ["Config", "Model"]
