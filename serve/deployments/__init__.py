"""The Ray Serve deployments: replicas that predict, and the controller that decides which version they serve.

Doors: ``replica``, ``versions``, ``metrics``, ``settings``, ``errors``."""
