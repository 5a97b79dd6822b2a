"""Compares methods: trains them on one budget, scores them on one split, shows tables, figures and one HTML page.

Doors: ``report`` (scores runs and writes what it found), ``sources``, ``budget``, ``ablation``."""
