"""DetPoseNet: top-down pose estimation whose boxes are filtered by bottom-up poses (Ke et al.)."""

from posefleet.models.detposenet.model import Config, Model

__all__ = ["Config", "Model"]
