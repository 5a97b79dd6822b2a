"""How much boxes overlap, in NumPy; boxes are (left, top, right, bottom), pixels."""

import numpy as np


def intersections(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(M, N) areas that boxes ``a`` (M, 4) and ``b`` (N, 4) have in common, square pixels."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inner: np.ndarray = (high - low).clip(0).prod(-1)
    return inner


def areas(boxes: np.ndarray) -> np.ndarray:
    """(N,) areas of boxes (N, 4), square pixels."""
    found: np.ndarray = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return found


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(M, N) intersection over union of boxes ``a`` (M, 4) and ``b`` (N, 4); 0 where neither has an area."""
    inner = intersections(a, b)
    union = areas(a)[:, None] + areas(b)[None] - inner
    shares: np.ndarray = np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)
    return shares
