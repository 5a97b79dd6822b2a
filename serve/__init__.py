"""HTTP serving of trained models on Ray Serve. Door: ``app``, which a Serve configuration names (``app:build``)."""
