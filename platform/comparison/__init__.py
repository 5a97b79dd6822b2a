"""Methods side by side: trained on one budget, scored on one split, shown on one page.

Doors: ``compare``, ``sources``, ``budget``, ``ablation``, ``figures``, ``html``."""
