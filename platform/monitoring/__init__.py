"""Finds stalls and stragglers of a training, and profiles its steps, without changing a weight.

Doors: ``watchdog``, ``stragglers``, ``profiler``."""
