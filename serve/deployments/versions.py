"""Which version of each model is served: one small replica decides, all others follow it.

An alias such as ``models:/smpr@champion`` is looked up when the server starts, on a reload and when ``user_config``
changes, and nowhere else, so that all replicas of a model serve the same version, also those that come later. Replicas
report what they serve every ``REPORT_S`` seconds, get told what they should serve, and swap by themselves.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ray import serve

from posefleet.memory import collect_garbage_rarely
from posefleet.platform.checkpoints.format import Meta, read_meta
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.runtime.paths import MODELS, resolve_path
from posefleet.platform.runtime.placement import STEADY
from posefleet.platform.runtime.redaction import redacted
from posefleet.platform.tracking.registry import find_version
from posefleet.serve.deployments.errors import ErrorDetail
from posefleet.serve.deployments.settings import CHALLENGER

REPORT_S = 0.5
"""How often a replica says what it serves."""

_GONE_S = 10 * REPORT_S
"""A replica that has not reported for so long is not waited for."""

_PAIRS = 100
"""Pairs of champion and challenger whose comparison is kept, the latest."""

_log = logging.getLogger("ray.serve")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedVersion:
    """A version that replicas should serve; its files never change."""

    checkpoint: str
    """``models:/NAME/VERSION``, or the path of a checkpoint."""
    name: str
    """Of the registered model; empty for a checkpoint."""
    version: str | None
    """Of the registered model; None for a checkpoint."""
    data: str | None
    """Fingerprint of the training data."""
    ap: float | None
    run_id: str | None
    step: int
    method: str
    schema: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ShadowStats:
    """What was seen of a champion and a challenger on the same images, in sums."""

    champion: str
    """Checkpoints of the two."""
    challenger: str
    images: int = 0
    pairs: int = 0
    oks: float = 0.0
    only_champion: int = 0
    only_challenger: int = 0
    champion_ms: float = 0.0
    """Of each image, its share of the batch that it was in."""
    challenger_ms: float = 0.0

    def __add__(self, other: "ShadowStats") -> "ShadowStats":
        sums = ("images", "pairs", "oks", "only_champion", "only_challenger", "champion_ms", "challenger_ms")
        return replace(self, **{key: getattr(self, key) + getattr(other, key) for key in sums})


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaStatus:
    """What a replica says of itself."""

    model: str
    """Its key among the sources."""
    replica: str
    serves: ServedVersion | None
    """None: nothing yet."""
    failed: tuple[ServedVersion, str] | None = None
    """A version that it could not load, and why."""
    shadowed: tuple[ShadowStats, ...] = ()
    """Since its last report."""


@dataclass(slots=True)
class _ModelState:
    source: str
    wanted: ServedVersion | None = None
    known: bool = False
    """Whether somebody has decided what is wanted, if only that there is no challenger."""
    reports: dict[str, tuple[float, ReplicaStatus]] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def decide(self, wanted: ServedVersion | None) -> None:
        self.wanted, self.known = wanted, True

    def live(self) -> list[ReplicaStatus]:
        now = time.monotonic()
        self.reports = {name: (at, report) for name, (at, report) in self.reports.items() if now - at < _GONE_S}
        return [report for _, report in self.reports.values()]


@serve.deployment(
    name="Versions",
    num_replicas=1,
    max_ongoing_requests=1000,
    ray_actor_options={"num_cpus": 0, "label_selector": dict(STEADY)},
    logging_config={"enable_access_log": False},
)
class VersionController:
    """The replica that decides."""

    def __init__(self, sources: Mapping[str, str], tracking: str) -> None:
        """
        Args:
            sources: By key: what the configuration says. A key ``NAME.challenger`` may name what is not there yet.
            tracking: Where models are registered.
        """
        collect_garbage_rarely()
        self._models = {key: _ModelState(source) for key, source in sources.items()}
        self._tracking = tracking
        self._shadowed: dict[tuple[str, str, str], ShadowStats] = {}
        self._seen: Any = None

    async def reconfigure(self, user_config: Any) -> None:
        """Ray Serve calls this at the start and when ``user_config`` changes; then every source is looked up again."""
        if self._seen is not None and user_config != self._seen:
            for key in self._models:
                await self._renew(key)
        self._seen = user_config

    async def report(self, report: ReplicaStatus) -> ServedVersion | None:
        """Take a replica's report.

        Returns:
            What it should serve; None: nothing, as no challenger is there.

        Raises:
            ValueError: There is no such model.
        """
        model = self._models[report.model]
        for seen in report.shadowed:
            self._count(report.model.removesuffix(CHALLENGER), seen)
        model.live()  # forgets those that are gone
        model.reports[report.replica] = (time.monotonic(), replace(report, shadowed=()))
        if not model.known:
            async with model.lock:
                if not model.known:
                    # After a fault here the replicas know better than the alias, which may have moved meanwhile.
                    await self._begin(report.model, report.serves)
        return model.wanted

    async def reload(self, name: str, patience: float) -> dict[str, Any] | ErrorDetail:
        """Look a model's source up again, and wait until every replica of it serves what was found.

        Args:
            name: Of the model; its challenger is looked up, too.
            patience: Seconds.
        """
        model = self._models[name]
        if f"{name}{CHALLENGER}" in self._models:
            await self._renew(f"{name}{CHALLENGER}")
        async with model.lock:
            before, known = model.wanted, model.known
            try:
                model.decide(await self._find(name))
            except ValueError as error:
                return ErrorDetail("reload_failed", redacted(f"{error}; {_told(before)} is served as before"))
            problem = await self._settled(model, patience)
            if problem:
                refused, model.wanted, model.known = model.wanted, before, known
                await self._forgotten(model)
                why = f"{_told(refused)}: {problem}; {_told(before)} is served as before"
                return ErrorDetail("reload_failed", redacted(why))
            return {
                "model": name,
                "before": before.version if before else None,
                "version": model.wanted.version if model.wanted else None,
                "replicas": len(model.live()),
            }

    async def models(self) -> dict[str, tuple[str, ServedVersion | None, int]]:
        """By key: the source, what is wanted of it, and how many replicas serve that."""
        told = {}
        for key, model in self._models.items():
            ready = sum(report.serves is not None and report.serves == model.wanted for report in model.live())
            told[key] = (model.source, model.wanted, ready)
        return told

    async def shadowed(self, name: str) -> ShadowStats | None:
        """What shadowing showed of the present champion and challenger of a model; None: nothing yet."""
        pair = (self._models[name].wanted, self._models[f"{name}{CHALLENGER}"].wanted)
        if pair[0] is None or pair[1] is None:
            return None
        return self._shadowed.get((name, pair[0].checkpoint, pair[1].checkpoint))

    def _count(self, name: str, seen: ShadowStats) -> None:
        """Add to the sums of that pair, also where it is another than the present one: a late report harms none."""
        pair = (name, seen.champion, seen.challenger)
        before = self._shadowed.pop(pair, None)
        self._shadowed[pair] = before + seen if before else seen  # the last one now
        if len(self._shadowed) > _PAIRS:
            del self._shadowed[next(iter(self._shadowed))]

    async def _begin(self, key: str, serves: ServedVersion | None) -> None:
        model = self._models[key]
        try:
            model.decide(serves or await self._find(key))
        except ValueError as error:
            if not key.endswith(CHALLENGER):
                raise
            _log.error("%s: no challenger until the next reload: %s", key, error)
            model.decide(None)

    async def _renew(self, key: str) -> None:
        model = self._models[key]
        async with model.lock:
            try:
                model.decide(await self._find(key))
            except ValueError as error:
                _log.error("%s: %s; %s is served as before", key, error, _told(model.wanted))

    async def _find(self, key: str) -> ServedVersion | None:
        source = self._models[key].source
        try:
            return await asyncio.to_thread(_look_up, source, self._tracking)
        except Exception as error:  # also of stores that cannot be reached: all are told the same way
            if key.endswith(CHALLENGER) and isinstance(error, ValueError):
                _log.info("%s: no challenger: %s", key, error)
                return None
            raise ValueError(redacted(str(error))) from None

    async def _settled(self, model: _ModelState, patience: float) -> str:
        """Wait for the replicas; what went wrong, if anything."""
        start = time.monotonic()
        end, late_too = start + patience, start + min(patience, _GONE_S)
        while True:
            live = model.live()
            failures = [report.failed[1] for report in live if report.failed and report.failed[0] == model.wanted]
            if failures:
                return failures[0]
            if all(report.serves == model.wanted for report in live) and (live or time.monotonic() > late_too):
                return ""  # with nobody there, not before those have had time to report that a busy machine held up
            if time.monotonic() > end:
                late = sum(report.serves != model.wanted for report in live)
                return f"after {patience:g} s {late} of {len(live)} replicas do not serve it"
            await asyncio.sleep(REPORT_S / 5)

    async def _forgotten(self, model: _ModelState) -> None:
        """Wait until the replicas have heard that a version is refused, so that it may be tried again."""
        for _ in range(20):
            if not any(report.failed for report in model.live()):
                return
            await asyncio.sleep(REPORT_S / 5)


def _look_up(source: str, tracking: str) -> ServedVersion:
    if source.startswith(MODELS):
        version = find_version(source, tracking)
        meta = read_meta(find_checkpoint(version.address, tracking=tracking))
        return _wanted(version.address, meta, name=version.name, version=version.number)
    path = find_checkpoint(resolve_path(source), tracking=tracking)
    return _wanted(path, read_meta(path), name="", version=None)


def _wanted(checkpoint: str, meta: Meta, *, name: str, version: str | None) -> ServedVersion:
    known = meta.provenance
    return ServedVersion(
        checkpoint=checkpoint,
        name=name,
        version=version,
        data=known.get("data"),
        ap=meta.metrics.get("AP"),
        run_id=known.get("run_id") or None,
        step=meta.step,
        method=meta.experiment.method,
        schema=meta.experiment.schema,
    )


def _told(wanted: ServedVersion | None) -> str:
    return wanted.checkpoint if wanted else "nothing"
