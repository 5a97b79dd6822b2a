"""Samples to batches: the seeded order, shard and COCO sources, loader processes and shared memory.

Doors: ``source``, ``shard_dataset``, ``coco_dataset``, ``loader``, ``order``."""
