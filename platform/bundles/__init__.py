"""Bundles: one file with what somebody else needs to check the numbers that a run claims.

Doors: ``layout`` (what is in the file), ``write`` (makes one), ``verify`` (checks one), ``tolerance`` (its options)."""
