"""Compares methods: trains them on one budget, scores them on one split, shows tables, figures and one HTML page.

Doors: ``compare``, ``sources``, ``budget``, ``ablation``, ``figures``, ``html``; ``cost`` has an entry's ``Cost``."""
