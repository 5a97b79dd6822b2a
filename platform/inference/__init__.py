"""Predicts poses from images for evaluation, batch prediction and serving.

Doors: ``predictor``, ``evaluate``, ``execution``, ``backends`` (what computes a network), ``exported`` (what is in an
exported file), ``quantize``, ``agreement`` (of their poses), ``split``, ``sources``, ``latency``."""
