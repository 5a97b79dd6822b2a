"""Batch prediction of many images and videos on a Ray cluster; a killed run is finished by running it again. And of a
camera or stream, as it comes.

Doors: ``batch`` (``predict_images``, ``WorkerPool``), ``inputs`` (``list_images``), ``worker``
(``PredictionOptions``), ``live`` (``predict_stream``), ``stream`` (``is_stream``),
``tracker`` (``PoseTracker``)."""
