"""Decides whether a trained model is promoted to a served alias: the gate, its checks, and results of shadow traffic.

Doors: ``gate``, ``thresholds`` (its bounds), ``checks``, ``release`` (tags and texts of a version), ``shadow``,
``agreement`` (of two models)."""
