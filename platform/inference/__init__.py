"""Predicts poses from images for evaluation, batch prediction and serving.

Other packages import ``predictor``, ``evaluate``, ``onnx``, ``split`` and ``latency``."""
