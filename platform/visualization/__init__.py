"""Draws people, poses and training targets on images, and figures and tables of runs and evaluations.

Doors: ``report`` (logs the files of a run), ``figures``, ``drawing``, ``schema_picture`` (a keypoint schema), ``plots``
(the look of figures), ``tables``, ``html`` (pages in one file)."""
