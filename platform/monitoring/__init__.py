"""Watches a training without changing a weight: stalls, stragglers and profiles.

Doors: ``monitor``, ``watchdog``, ``stragglers``, ``profiler``."""
