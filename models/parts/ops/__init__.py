"""Plain functions of tensors: ``cells`` of a pyramid, ``assign``, ``heatmaps`` (targets), ``losses``, ``oks``, ``nms``
and ``decode``; ``counts`` of keypoints in settings."""
