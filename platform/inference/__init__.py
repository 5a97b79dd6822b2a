"""Predicts poses from images for evaluation, batch prediction and serving.

Doors: ``predictor``, ``evaluate``, ``execution``, ``onnx``, ``split``, ``sources``, ``latency``."""
