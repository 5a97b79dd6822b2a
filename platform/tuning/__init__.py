"""Searches for settings: the space, the study, trials on Ray Tune, and the report.

Doors: ``space``, ``study``, ``ray_tuner``, ``decoding``, ``report``."""
