"""Shards: plain tars with an index, planned, written and verified.

Doors: ``layout`` (read), ``build`` (write, on a cluster), ``verify``."""
