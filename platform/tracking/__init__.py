"""MLflow: runs, a spool that outlives an outage, and the model registry.

Doors: ``client``, ``runs``, ``tracker``, ``spool``, ``registry``.
Command: ``python -m posefleet.platform.tracking sync``."""
