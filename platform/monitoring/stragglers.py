"""Finds the rank that keeps the others waiting."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

SLOW = 1.5
"""A rank whose time is at least this many times the median of the others is slow."""
SLOW_IN_A_ROW = 3
"""A rank is reported after this many slow comparisons in a row, so that a single hiccup is not."""


@dataclass
class StragglerDetector:
    """Compares how long the ranks' own work takes, each time that the losses are logged."""

    nodes: Sequence[str]
    """The node of each rank."""
    _candidate: tuple[int, int] = (-1, 0)
    """The slowest rank, and for how many comparisons in a row it has been slow."""
    _reported: int = field(default=-1)
    """The rank that was reported as slow and has not recovered; -1: none."""

    def compare(self, own: Sequence[float], data: Sequence[float]) -> tuple[dict[str, float], str]:
        """Compare the ranks once.

        Args:
            own: Seconds of each rank's own work for a micro-batch; 0 where it is not known yet.
            data: The part of these seconds in which the rank waited for data.

        Returns:
            ``ranks/slowest`` and ``ranks/spread``, the slowest rank and its time over the median of the others'
            (nothing while a time is unknown); and a line to log when a rank becomes slow or recovers, otherwise "".
        """
        if len(own) < 2 or min(own) <= 0:
            return {}, ""
        slowest = max(range(len(own)), key=own.__getitem__)
        others = statistics.median(seconds for rank, seconds in enumerate(own) if rank != slowest)
        spread = own[slowest] / others
        return {"ranks/slowest": slowest, "ranks/spread": spread}, self._line(slowest, spread, others, own, data)

    def _line(self, slowest: int, spread: float, others: float, own: Sequence[float], data: Sequence[float]) -> str:
        rank, count = self._candidate
        count = 0 if spread < SLOW else count + 1 if slowest == rank else 1
        self._candidate = (slowest, count)
        if not count and self._reported >= 0:
            recovered, self._reported = self._reported, -1
            return f"rank {recovered} on {self.nodes[recovered]} keeps pace again"
        if count < SLOW_IN_A_ROW or slowest == self._reported:
            return ""
        self._reported = slowest
        others_data = statistics.median(seconds for r, seconds in enumerate(data) if r != slowest)
        starved = data[slowest] - others_data > (own[slowest] - others) / 2
        return (
            f"rank {slowest} on {self.nodes[slowest]} is slow: {own[slowest]:.3f} s of its own for each batch, "
            f"{spread:.1f} times the others' {others:.3f} s, for {SLOW_IN_A_ROW} comparisons in a row; "
            + ("it waits for data" if starved else "it computes")
        )
