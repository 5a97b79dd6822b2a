"""LOGO-CAP: local-global contextual adaptation for pose estimation (Xue et al., CVPR 2022)."""

from posefleet.models.logocap.model import Config, Model

__all__ = ["Config", "Model"]
