"""Pieces that the methods share: networks, geometry, assignment, losses and decoding. Plain functions of tensors
wherever nothing is learned."""
