"""SMPR: single-stage multi-person pose regression (Lin et al., 2020)."""

from posefleet.models.smpr.config import Config
from posefleet.models.smpr.model import Model

__all__ = ["Config", "Model"]
