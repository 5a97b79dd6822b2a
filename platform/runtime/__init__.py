"""What every process needs: paths, redaction, logs, progress, placement and the worker seam. Imports nothing heavy.

Doors: ``paths``, ``redaction``, ``logs``, ``progress``, ``placement``, ``worker``, ``activity``."""
