"""Predicts poses from images for evaluation, batch prediction and serving.

Doors: ``predictor``, ``evaluate``, ``execution``, ``agreement`` (of two networks' poses), ``split``, ``sources``,
``latency``."""
