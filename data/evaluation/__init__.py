"""AP and AR by COCO's protocol, computed in parts, with error analysis and bootstrap intervals.

Doors: ``evaluate``, ``ground_truth``, ``accumulate``, ``matching``, ``precision_recall``, ``error_analysis``,
``bootstrap``."""
