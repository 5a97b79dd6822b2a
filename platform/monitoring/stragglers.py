"""Which rank keeps the others waiting."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

SLOW = 1.5
"""Times the median of the others from which on a rank is called slow."""
LOOKS = 3
"""So many looks at the losses in a row, so that a hiccup is not told."""


@dataclass
class StragglerDetector:
    """Compares the ranks' own work from look to look."""

    nodes: Sequence[str]
    """Where each rank runs."""
    _suspect: tuple[int, int] = (-1, 0)
    _told: int = field(default=-1)

    def compare(self, own: Sequence[float], data: Sequence[float]) -> tuple[dict[str, float], str]:
        """
        Args:
            own: Seconds of each rank's own work for a micro-batch; 0 where it is not known yet.
            data: Those of them in which it waited for data.

        Returns:
            ``ranks/slowest`` and ``ranks/spread``, the slowest rank's time in those of the others' median; and a line
            to tell when a rank begins or ceases to be slow.
        """
        if len(own) < 2 or min(own) <= 0:
            return {}, ""
        slowest = max(range(len(own)), key=own.__getitem__)
        others = statistics.median(seconds for rank, seconds in enumerate(own) if rank != slowest)
        spread = own[slowest] / others
        return {"ranks/slowest": slowest, "ranks/spread": spread}, self._line(slowest, spread, others, own, data)

    def _line(self, slowest: int, spread: float, others: float, own: Sequence[float], data: Sequence[float]) -> str:
        rank, looks = self._suspect
        looks = 0 if spread < SLOW else looks + 1 if slowest == rank else 1
        self._suspect = (slowest, looks)
        if not looks and self._told >= 0:
            recovered, self._told = self._told, -1
            return f"rank {recovered} on {self.nodes[recovered]} keeps pace again"
        if looks < LOOKS or slowest == self._told:
            return ""
        self._told = slowest
        usual = statistics.median(seconds for r, seconds in enumerate(data) if r != slowest)
        starved = data[slowest] - usual > (own[slowest] - others) / 2
        return (
            f"rank {slowest} on {self.nodes[slowest]} is slow: {own[slowest]:.3f} s of its own for each batch, "
            f"{spread:.1f} times the others' {others:.3f} s, for {LOOKS} looks in a row; "
            + ("it waits for data" if starved else "it computes")
        )
