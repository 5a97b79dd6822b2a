"""From images to poses, for evaluation, batch prediction and serving alike.

Doors: ``predictor``, ``evaluate``, ``onnx``, ``split``, ``latency``."""
