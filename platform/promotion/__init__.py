"""From a trained run to a served alias: the gate, its checks, the release, and shadow traffic.

Doors: ``gate``, ``checks``, ``release``, ``shadow``, ``agreement``."""
