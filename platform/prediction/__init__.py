"""Batch prediction of many images over the cluster; safe to kill and start again.

Doors: ``batch``, ``worker``, ``inputs``, ``tables``, ``video``."""
