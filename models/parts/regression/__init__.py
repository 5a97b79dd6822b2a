"""Pose regression on a pyramid, shared by methods that regress poses: the model (``pyramid_model``), its head, targets
(``positives``), OKS gate and loss. ``dense_model`` also serves methods without a pyramid of poses."""
