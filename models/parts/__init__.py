"""Building blocks that at least two methods use."""
