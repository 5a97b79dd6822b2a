"""Checkpoints: a folder that describes itself, appears whole or not at all, and is read without pickle.

Doors: ``format``, ``store``, ``load``, ``resolve``."""
