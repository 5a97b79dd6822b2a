"""What every process needs: paths, errors, redaction, logs, progress, node placement, locks, the worker interface.

Doors: ``paths``, ``errors``, ``redaction``, ``logs``, ``progress``, ``placement``, ``worker``, ``activity``, ``lock``."""
