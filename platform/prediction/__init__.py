"""Batch prediction of many images and videos on a Ray cluster; a killed run is finished by running it again.

Doors: ``batch`` (``predict_images``, ``WorkerPool``), ``inputs`` (``list_images``), ``worker``
(``PredictionOptions``)."""
