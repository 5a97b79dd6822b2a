"""Samples to batches: the seeded order, shard and COCO sources, several of them as one, loader processes and shared
memory.

Doors: ``source``, ``shard_dataset``, ``plain_tars`` (tars of anybody), ``coco_dataset``, ``union``, ``loader``,
``order``."""
