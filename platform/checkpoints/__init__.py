"""Checkpoints: a folder that describes itself, is written atomically, and is read without pickle.

Doors: ``format``, ``store``, ``saver``, ``load``, ``released``, ``resolve``,
``transfer`` (weights of another schema)."""
