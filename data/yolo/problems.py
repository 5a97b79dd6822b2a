"""Counts what is wrong with the files of a data set, and keeps a line for each."""

from collections import Counter


class Problems:
    """What is wrong with a data set, by kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """Kind, such as ``wrong columns`` -> how often."""
        self.lines: list[str] = []
        """A line for each, which begins with the file and, where it has one, the number of its line."""
        self.harmless = 0
        """How many of them lose no label, such as a text file among images."""

    def add(self, kind: str, place: str, what: str, *, harmless: bool = False) -> None:
        """Count one more of ``kind`` at ``place``."""
        self.counts[kind] += 1
        self.harmless += harmless
        self.lines.append(f"{place}: {what}")

    def __len__(self) -> int:
        return len(self.lines)

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {kind}" for kind, count in self.counts.items()) or "none"
