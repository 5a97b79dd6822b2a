"""What every process needs: paths, errors, redaction, logs, progress, node placement and the worker interface.

Doors: ``paths``, ``errors``, ``redaction``, ``logs``, ``progress``, ``placement``, ``worker``, ``activity``."""
