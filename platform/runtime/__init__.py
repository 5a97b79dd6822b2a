"""What every process needs: paths, redaction, logs, progress, node placement and the worker interface.

Doors: ``paths``, ``redaction``, ``logs``, ``progress``, ``placement``, ``worker``, ``activity``."""
