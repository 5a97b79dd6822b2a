"""MLflow: runs, a spool that keeps events while the server is down, and the model registry.

Doors: ``client``, ``runs``, ``run_folder``, ``tracker``, ``mirrors``, ``registry``.
Command: ``python -m posefleet.platform.tracking sync``."""
