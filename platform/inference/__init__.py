"""Predicts poses from images for evaluation, batch prediction and serving.

Doors: ``predictor``, ``evaluate``, ``onnx``, ``split``, ``sources``, ``latency``."""
