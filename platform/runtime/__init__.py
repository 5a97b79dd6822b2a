"""What every process needs: paths, errors, redaction, logs, progress, placement, locks, and the worker interface.

Doors: ``paths``, ``errors``, ``redaction``, ``logs``, ``progress``, ``placement``, ``worker``, ``activity``,
``lock``, ``ports``, ``processes``, ``leftovers``."""
