"""Gives the poses of a film's frames the numbers of the people they belong to.

A track predicts where its person is now: the last pose, moved on with the speed that it had. Poses are assigned to
tracks so that the sum of their similarities is as large as it can be (Hungarian method, as in SORT, Bewley et al.
2016). The similarity is OKS (Xiao et al. 2018) with wider tolerances, since people move; they grow while a person is
hidden. As in ByteTrack (Zhang et al. 2022), poses with low scores may go on with a track and never begin one. The
numbers depend on the poses and their times alone, in order, not on batches or workers.

A tracker's state is a plain value, so that whoever has it can go on with the film. Tracks hold no more than the state
does, tenths of pixels, so the numbers are the same whether it is handed on or not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import pi
from typing import Any

import numpy as np

from posefleet.data.structures import Poses

UNTRACKED = -1
"""Number of a pose that belongs to no track."""

MOST_TRACKS = 200
"""People that are followed at a time; beyond that, those who were seen longest ago are forgotten."""

MOST_TENTHS = 10**7
"""Largest coordinate of a track in tenths of a pixel, and largest speed in tenths of a pixel a second."""

MOST_NUMBER = 10**9
"""Largest number of a person in a state."""

Similarity = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(T, K, 2) expected keypoints, (N, K, 2) found ones, (T,) seconds since each track was seen -> (T, N) in 0..1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackOptions:
    """When a pose belongs to a track."""

    start_score: float = 0.2
    """Least score, 0..1, of a pose that begins a track. Raise it where poses of nobody get numbers."""
    least_similarity: float = 0.2
    """Least similarity, 0..1, of a pose and the place where a track is expected. Raise it for fewer swapped people,
    lower it where people move fast between frames."""
    keep_s: float = 2.0
    """Seconds that a person may be hidden and keep its number."""
    spread: float = 3.0
    """Tolerances of keypoints, in those of OKS, for a person who was seen in the frame before."""
    spread_per_s: float = 1.0
    """What a second without the person adds to them."""

    def __post_init__(self) -> None:
        for name in ("start_score", "least_similarity"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} must be between 0 and 1")
        if self.keep_s < 0 or self.spread <= 0 or self.spread_per_s < 0:
            raise ValueError("keep_s and spread_per_s must not be negative, and spread above 0")


@dataclass(slots=True)
class _Track:
    keypoints: np.ndarray
    """(K, 2) of the last pose, whole tenths of pixels."""
    seen: float
    """Seconds at which that was."""
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))
    """(2,) pixels a second, whole tenths."""
    poses: int = 1
    """1 after the first pose, then 2."""
    number: int = UNTRACKED

    def expected(self, seconds: float) -> np.ndarray:
        """(K, 2) keypoints at a time; who is hidden is expected to walk on for a second, then to stay."""
        return self.keypoints + self.velocity * min(seconds - self.seen, 1.0)

    def update(self, keypoints: np.ndarray, seconds: float) -> None:
        """Take a pose that was found."""
        if (passed := seconds - self.seen) > 0:
            velocity = np.median(keypoints - self.keypoints, axis=0) / passed
            self.velocity = _in_tenths(velocity if self.poses == 1 else 0.5 * (self.velocity + velocity)) / 10
        self.keypoints, self.seen, self.poses = keypoints, seconds, 2

    def state(self) -> dict[str, Any]:
        """The track as a plain value."""
        return {
            "number": None if self.number == UNTRACKED else self.number,
            "seen": self.seen,
            "poses": self.poses,
            "velocity": _in_tenths(self.velocity).astype(int).tolist(),
            "keypoints": _in_tenths(self.keypoints).astype(int).ravel().tolist(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "_Track":
        """The track that :meth:`state` gave."""
        return cls(
            keypoints=np.array(state["keypoints"], float).reshape(-1, 2) / 10,
            seen=float(state["seen"]),
            velocity=np.array(state["velocity"], float) / 10,
            poses=state["poses"],
            number=UNTRACKED if state["number"] is None else state["number"],
        )


def _in_tenths(pixels: np.ndarray) -> np.ndarray:
    """Whole numbers of tenths, float; at most ``MOST_TENTHS``."""
    result: np.ndarray = np.rint(10 * pixels).clip(-MOST_TENTHS, MOST_TENTHS)
    return result


class PoseTracker:
    """Tracks the people of one film; call it with the poses of every frame, in order.

    Args:
        sigmas: (K,) of the schema.
        options: When a pose belongs to a track.
        similarity: Of expected and found poses; default: OKS.
    """

    def __init__(
        self, sigmas: Sequence[float], options: TrackOptions | None = None, *, similarity: Similarity | None = None
    ) -> None:
        self._sigmas = np.asarray(sigmas, float)
        self._options = options or TrackOptions()
        self._similarity = similarity or self._oks
        self._tracks: list[_Track] = []
        self._numbers = 0
        self._seconds: float | None = None  # of the last frame

    def state(self) -> dict[str, Any] | None:
        """What the tracker knows after the frames so far, as a value for JSON; None before the first one.

        ``seconds`` of the last frame, ``next`` number of a person, and ``tracks``, each with its ``number`` (None: not
        yet), the seconds when it was ``seen``, its ``poses`` (1 or 2: more), its ``velocity`` (2 tenths of pixels a
        second) and its ``keypoints`` (2K tenths of pixels: x, y, x, ...).
        """
        if self._seconds is None:
            return None
        return {"seconds": self._seconds, "next": self._numbers, "tracks": [track.state() for track in self._tracks]}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on behind the frame after which another tracker gave this :meth:`state`.

        Args:
            state: A value with these fields, None for no frame yet; who has it from strangers checks types and ranges
                before.

        Raises:
            ValueError: It is of other keypoints, or its times or numbers contradict each other; the message begins
                with the field.
        """
        if state is None:
            return
        numbers = set[int]()
        for index, track in enumerate(state["tracks"]):
            where, number = f"tracks.{index}", track["number"]
            if len(track["keypoints"]) != 2 * len(self._sigmas):
                raise ValueError(
                    f"{where}.keypoints: {len(track['keypoints'])} numbers, but a pose of this model has "
                    f"{2 * len(self._sigmas)}; begin again with the state null"
                )
            if track["seen"] > state["seconds"]:
                raise ValueError(f"{where}.seen: {track['seen']} must not be after {state['seconds']}, the last frame")
            if number is None:
                continue
            if number >= state["next"] or number in numbers:
                raise ValueError(f"{where}.number: {number} must be below next, {state['next']}, and given once")
            numbers.add(number)
        self._tracks = [_Track.from_state(track) for track in state["tracks"]]
        self._numbers, self._seconds = state["next"], float(state["seconds"])

    def __call__(self, poses: Poses, seconds: float) -> np.ndarray:
        """The numbers of the people, from 0 on, in the order of ``poses``.

        A person gets a number when it was found in two frames in a row, or in the film's first one.

        Args:
            poses: N poses of the next frame, pixels.
            seconds: Its time; not before that of the frame before. Containers without times give 0 for every frame.

        Returns:
            (N,) int32, ``UNTRACKED`` where a pose belongs to nobody yet.
        """
        found = _in_tenths(poses.keypoints.double().cpu().numpy()) / 10
        scores = poses.scores.double().cpu().numpy()
        numbers = np.full(len(found), UNTRACKED, np.int32)
        free, seen = set(range(len(found))), set[int]()
        strong = scores >= self._options.start_score
        for eligible in (strong, ~strong):
            rows = [row for row in sorted(free) if eligible[row]]
            tracks = [track for track in self._tracks if id(track) not in seen]
            for track, row in self._assigned(tracks, found, rows, seconds):
                track.update(found[row], seconds)
                if track.number == UNTRACKED:
                    track.number = self._next_number()
                numbers[row] = track.number
                free.discard(row)
                seen.add(id(track))
        keep = self._options.keep_s
        self._tracks = [t for t in self._tracks if id(t) in seen or (t.poses > 1 and seconds - t.seen <= keep)]
        for row in sorted(free):
            if strong[row]:
                track = _Track(found[row], seconds)
                if self._seconds is None:
                    numbers[row] = track.number = self._next_number()
                self._tracks.append(track)
        if len(self._tracks) > MOST_TRACKS:
            self._tracks = sorted(self._tracks, key=lambda track: -track.seen)[:MOST_TRACKS]
        self._seconds = float(seconds)
        return numbers

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers - 1

    def _assigned(
        self, tracks: Sequence[_Track], found: np.ndarray, rows: Sequence[int], seconds: float
    ) -> list[tuple[_Track, int]]:
        if not tracks or not rows:
            return []
        from scipy.optimize import linear_sum_assignment  # half a second, for films alone

        expected = np.stack([track.expected(seconds) for track in tracks])
        hidden = np.array([seconds - track.seen for track in tracks])
        similarity = self._similarity(expected, found[list(rows)], hidden)
        pairs = zip(*linear_sum_assignment(-similarity), strict=True)
        least = self._options.least_similarity
        return [(tracks[t], rows[n]) for t, n in pairs if similarity[t, n] >= least]

    def _oks(self, expected: np.ndarray, found: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        sides = np.ptp(expected, axis=1)  # (T, 2)
        areas = np.maximum(
            0.5 * sides.prod(1), (0.2 * sides.max(1)) ** 2
        )  # a body's share of its box; nobody is a line
        areas = np.maximum(areas, LEAST_SIDE**2)
        spread = self._options.spread + self._options.spread_per_s * hidden
        variance = (2 * self._sigmas * spread[:, None]) ** 2 * areas[:, None]  # (T, K)
        distance2 = ((found[None] - expected[:, None]) ** 2).sum(-1)  # (T, N, K)
        similarity: np.ndarray = np.exp(-distance2 / (2 * variance[:, None])).mean(-1)
        return similarity


LEAST_SIDE = 20.0
"""Pixels that a person measures at least, for the tolerances of schemas of a single keypoint."""


def box_iou(expected: np.ndarray, found: np.ndarray, _: np.ndarray) -> np.ndarray:
    """Intersection over union of the boxes of keypoints, a :data:`Similarity`: what trackers of boxes compare."""
    low = np.maximum(expected.min(1)[:, None], found.min(1)[None])
    high = np.minimum(expected.max(1)[:, None], found.max(1)[None])
    shared = (high - low).clip(min=0).prod(-1)
    areas = [np.ptp(keypoints, axis=1).prod(1) for keypoints in (expected, found)]
    union = areas[0][:, None] + areas[1][None] - shared
    result: np.ndarray = np.where(union > 0, shared / np.maximum(union, 1e-9), 0.0)
    return result


class OneEuro:
    """Smooths the keypoints of tracks: the one-euro filter (Casiez et al. 2012), which lags less the faster they move.

    Args:
        cutoff: Hz of the low-pass filter for keypoints at rest. Lower is smoother and lags more.
        beta: What a speed of one body height a second adds to ``cutoff``, Hz.
    """

    def __init__(self, cutoff: float, *, beta: float = 4.0) -> None:
        if cutoff <= 0:
            raise ValueError(f"cutoff {cutoff} must be above 0 Hz")
        self._cutoff, self._beta = cutoff, beta
        self._last: dict[int, tuple[float, np.ndarray, np.ndarray]] = {}

    def __call__(self, keypoints: np.ndarray, tracks: np.ndarray, seconds: float) -> np.ndarray:
        """(N, K, 2) smoothed keypoints; those of ``UNTRACKED`` poses stay as they are."""
        result = keypoints.copy()
        for row, track in enumerate(tracks.tolist()):
            if track == UNTRACKED:
                continue
            values, speed = keypoints[row], np.zeros_like(keypoints[row])
            if track in self._last and (passed := seconds - self._last[track][0]) > 0:
                _, before, speed_before = self._last[track]
                speed = _low_pass((values - before) / passed, speed_before, 1.0, passed)
                height = max(float(np.ptp(values, axis=0).max()), LEAST_SIDE)
                cutoff = self._cutoff + self._beta * np.linalg.norm(speed, axis=-1, keepdims=True) / height
                values = _low_pass(values, before, cutoff, passed)
            self._last[track] = (seconds, values, speed)
            result[row] = values
        return result


def _low_pass(value: np.ndarray, before: np.ndarray, cutoff: np.ndarray | float, seconds: float) -> np.ndarray:
    """Exponential smoothing with the time constant of ``cutoff`` Hz."""
    share = 1 / (1 + 1 / (2 * pi * cutoff * seconds))
    result: np.ndarray = before + share * (value - before)
    return result
