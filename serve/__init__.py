"""The HTTP face of the champions."""
