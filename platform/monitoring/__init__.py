"""Finds stalls and stragglers of a training, measures its interruptions, profiles its steps; changes no weight.

Doors: ``watchdog``, ``stragglers``, ``profiler``, ``interruptions``."""
