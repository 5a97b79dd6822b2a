"""The Ray Serve deployments: replicas that predict, and the controller of versions.

Doors: ``replica``, ``versions``, ``metrics``, ``settings``, ``errors``."""
