"""A model's network in the file of another library, and what computes a network.

Doors: ``backends`` (which library, and the model of any address), ``exported`` (what is in an exported file),
``quantize`` (INT8)."""
