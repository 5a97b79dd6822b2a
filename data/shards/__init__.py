"""Shards: plain tars with an index, planned, written and verified.

Doors: ``layout`` (read and write one shard), ``build`` (shard a data set, on a cluster), ``verify`` (check shards),
``unsharded`` (COCO's own files in place of shards)."""
