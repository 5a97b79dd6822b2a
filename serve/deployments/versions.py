"""Decides which version of each model is served. One small replica decides, all replicas that predict follow it.

An alias such as ``models:/smpr@champion`` is resolved when the server starts, on a reload and when ``user_config``
changes, and at no other time. So all replicas of a model serve the same version, including those that start later.
A replica reports what it serves every ``REPORT_S`` seconds, gets the version that it should serve as the answer, and
swaps by itself. The answer is held until the version changes, so a swap begins at once although reports are rare.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ray import serve

from posefleet.data.schemas.schema import KeypointSchema
from posefleet.memory import collect_garbage_rarely
from posefleet.platform.checkpoints.format import Meta
from posefleet.platform.exports.backends import describe, locate
from posefleet.platform.runtime.paths import MODELS
from posefleet.platform.runtime.placement import STEADY
from posefleet.platform.runtime.redaction import redact
from posefleet.platform.tracking.registry import find_version
from posefleet.serve.deployments.errors import ErrorDetail
from posefleet.serve.deployments.settings import CHALLENGER

REPORT_S = 2.0
"""Seconds between two reports of a replica; the answer to a report is held for as long, unless the version changes.
Larger: less work for idle servers, but the statistics of challengers come later, and so does the end of a replica."""

_GONE_S = 4 * REPORT_S
"""A replica that has not reported for this many seconds counts as gone, and a reload does not wait for it."""

_LOOK_S = 0.1
"""Seconds between two looks at the reports during a reload."""

_MAX_PAIRS = 100
"""Maximum number of (champion, challenger) pairs whose statistics are kept; the one updated longest ago is dropped."""

_log = logging.getLogger("ray.serve")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedVersion:
    """One version of a model that replicas should serve; the files behind it never change."""

    checkpoint: str
    """``models:/NAME/VERSION``, or the path of a checkpoint."""
    name: str
    """Name of the registered model; empty for a checkpoint."""
    version: str | None
    """Version of the registered model; None for a checkpoint."""
    data: str | None
    """Fingerprint of the training data."""
    ap: float | None
    """AP of its last evaluation; None if it was never evaluated."""
    run_id: str | None
    """MLflow run id."""
    step: int
    """Optimiser step of the checkpoint."""
    method: str
    schema: KeypointSchema
    note: str = ""
    """What users of the model must know, as its run said; may be empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShadowStats:
    """Sums over the images that a champion and a challenger both predicted."""

    champion: str
    """Checkpoint of the champion."""
    challenger: str
    """Checkpoint of the challenger."""
    images: int = 0
    pairs: int = 0
    """People whom both found."""
    oks: float = 0.0
    """Sum over ``pairs`` of the OKS between the two poses."""
    only_champion: int = 0
    """People whom only the champion found."""
    only_challenger: int = 0
    champion_ms: float = 0.0
    """Milliseconds in the network: for each image the time of its batch divided by the images in the batch."""
    challenger_ms: float = 0.0

    def __add__(self, other: "ShadowStats") -> "ShadowStats":
        sums = ("images", "pairs", "oks", "only_champion", "only_challenger", "champion_ms", "challenger_ms")
        return replace(self, **{key: getattr(self, key) + getattr(other, key) for key in sums})


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaStatus:
    """What a replica reports about itself."""

    model: str
    """Key of the model among the controller's sources."""
    replica: str
    """Ray Serve's id of the replica."""
    serving: ServedVersion | None
    """None: it has no version yet."""
    failed: tuple[ServedVersion, str] | None = None
    """A version that the replica could not load, and why."""
    shadow_stats: tuple[ShadowStats, ...] = ()
    """Comparisons since the last report."""


class Fault(NamedTuple):
    """Why no replica serves a model."""

    summary: str
    """For everyone: no path and no address."""
    detail: str
    """For holders of the token: the whole reason, without passwords."""


NOT_STARTED = "no replica has started yet"
_UNRESOLVED = "its source in the server's configuration cannot be resolved; the server's log says why"
_NOT_LOADED = "its checkpoint cannot be loaded; the server's log says why"


class ServingStatus(NamedTuple):
    """How a model is served now."""

    source: str
    """The source in the configuration."""
    version: ServedVersion | None
    """The version that replicas should serve; None: not decided yet, or a challenger that does not exist."""
    replicas: int
    """Number of replicas that serve ``version``."""
    fault: Fault | None = None
    """Why no replica serves it, if something failed."""


@dataclass(slots=True)
class _ModelState:
    source: str
    target: ServedVersion | None = None
    """The version that replicas should serve."""
    decided: bool = False
    """Whether ``target`` was decided; a decided None means that there is no challenger."""
    reports: dict[str, tuple[float, ReplicaStatus]] = field(default_factory=dict)
    """By replica: when it last reported, by ``time.monotonic``, and what."""
    fault: Fault | None = None
    """What failed last, until a replica serves ``target``."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when ``target`` changes, and then replaced."""

    def decide(self, target: ServedVersion | None, *, decided: bool = True) -> None:
        self.target, self.decided = target, decided
        self.changed.set()
        self.changed = asyncio.Event()

    def drop_gone(self) -> list[ReplicaStatus]:
        """Forget the replicas that are gone; return the reports of the others."""
        now = time.monotonic()
        self.reports = {name: (at, status) for name, (at, status) in self.reports.items() if now - at < _GONE_S}
        return [status for _, status in self.reports.values()]


@serve.deployment(
    name="Versions",  # configurations name it, to set its user_config
    num_replicas=1,
    max_ongoing_requests=1000,
    ray_actor_options={"num_cpus": 0, "label_selector": dict(STEADY)},
    logging_config={"enable_access_log": False},
)
class VersionController:
    """The one replica that decides which version of each model is served."""

    def __init__(self, sources: Mapping[str, str], tracking: str) -> None:
        """
        Args:
            sources: The source of each model, by key. The source of a key ``NAME.challenger`` may not exist yet.
            tracking: URI of the MLflow registry; see ``ServerSettings.tracking``.
        """
        collect_garbage_rarely()
        self._models = {key: _ModelState(source) for key, source in sources.items()}
        self._tracking = tracking
        self._shadow_stats: dict[tuple[str, str, str], ShadowStats] = {}
        """By (model, checkpoint of the champion, of the challenger), the one updated last at the end."""
        self._user_config: Any = None

    async def reconfigure(self, user_config: Any) -> None:
        """Resolve every source again when ``user_config`` changes; Ray Serve calls this then, and at the start."""
        if self._user_config is not None and user_config != self._user_config:
            for key in self._models:
                await self._resolve_again(key)
        self._user_config = user_config

    async def report(self, status: ReplicaStatus, hold_s: float = 0.0) -> ServedVersion | None:
        """Record a replica's report.

        Args:
            status: The report.
            hold_s: How long to hold the answer while it would tell the replica nothing new, seconds.

        Returns:
            The version that the replica should serve; None: none, because there is no challenger.

        Raises:
            ValueError: The model's source cannot be resolved.
        """
        model = self._models[status.model]
        for stats in status.shadow_stats:
            self._add_stats(status.model.removesuffix(CHALLENGER), stats)
        model.drop_gone()
        model.reports[status.replica] = (time.monotonic(), replace(status, shadow_stats=()))
        if not model.decided:
            async with model.lock:
                if not model.decided:
                    # After a restart of this controller the alias may have moved; what replicas serve is what counts.
                    await self._decide_first(status.model, status.serving)
        if status.serving is not None and status.serving == model.target:
            model.fault = None
        elif status.failed and status.failed[0] == model.target:
            model.fault = Fault(_NOT_LOADED, redact(status.failed[1]))
        if hold_s and model.target in (status.serving, status.failed and status.failed[0]):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(hold_s):
                    await model.changed.wait()
        return model.target

    async def reload(self, name: str, timeout_s: float) -> dict[str, Any] | ErrorDetail:
        """Resolve a model's source again, and wait until every replica of the model serves the version found.

        If a replica cannot load that version, or not in time, all replicas go back to the version before.

        Args:
            name: Name of the model. The source of its challenger is resolved again, too, but not waited for.
            timeout_s: How long to wait for the replicas, seconds.
        """
        model = self._models[name]
        if f"{name}{CHALLENGER}" in self._models:
            await self._resolve_again(f"{name}{CHALLENGER}")
        async with model.lock:
            before, decided = model.target, model.decided
            try:
                model.decide(await self._resolve(name))
            except ValueError as error:
                return ErrorDetail("reload_failed", redact(f"{error}; {_still_serving(before)}"))
            if failure := await self._wait_until_served(model, timeout_s):
                rejected = model.target
                model.decide(before, decided=decided)
                await self._wait_until_failures_cleared(model)
                label = rejected.checkpoint if rejected else "no version"
                return ErrorDetail("reload_failed", redact(f"{label}: {failure}; {_still_serving(before)}"))
            return {
                "model": name,
                "before": before.version if before else None,
                "version": model.target.version if model.target else None,
                "replicas": len(model.drop_gone()),
            }

    async def models(self) -> dict[str, ServingStatus]:
        """How every model and challenger is served, by key."""
        statuses = {}
        for key, model in self._models.items():
            serving = [status.serving for status in model.drop_gone() if status.serving is not None]
            replicas = serving.count(model.target) if model.target else 0
            statuses[key] = ServingStatus(model.source, model.target, replicas, None if replicas else model.fault)
        return statuses

    async def shadow_stats(self, name: str) -> ShadowStats | None:
        """The comparison of a model's present champion with its present challenger; None: no image was compared yet."""
        champion, challenger = self._models[name].target, self._models[f"{name}{CHALLENGER}"].target
        if champion is None or challenger is None:
            return None
        return self._shadow_stats.get((name, champion.checkpoint, challenger.checkpoint))

    def _add_stats(self, name: str, stats: ShadowStats) -> None:
        """Add to the sums of the pair that the report names, so that a late report of an old pair changes no other."""
        pair = (name, stats.champion, stats.challenger)
        before = self._shadow_stats.pop(pair, None)
        self._shadow_stats[pair] = before + stats if before else stats
        if len(self._shadow_stats) > _MAX_PAIRS:
            del self._shadow_stats[next(iter(self._shadow_stats))]

    async def _decide_first(self, key: str, serving: ServedVersion | None) -> None:
        model = self._models[key]
        try:
            model.decide(serving or await self._resolve(key))
        except ValueError as error:
            model.fault = Fault(_UNRESOLVED, str(error))
            if not key.endswith(CHALLENGER):
                raise
            _log.error("%s: no challenger until the next reload: %s", key, error)
            model.decide(None)

    async def _resolve_again(self, key: str) -> None:
        model = self._models[key]
        async with model.lock:
            try:
                model.decide(await self._resolve(key))
            except ValueError as error:
                _log.error("%s: %s; %s", key, error, _still_serving(model.target))

    async def _resolve(self, key: str) -> ServedVersion | None:
        source = self._models[key].source
        try:
            return await asyncio.to_thread(_resolve_source, source, self._tracking)
        except Exception as error:  # stores that cannot be reached raise many kinds; callers handle ValueError
            if key.endswith(CHALLENGER) and isinstance(error, ValueError):
                _log.info("%s: no challenger: %s", key, error)
                return None
            raise ValueError(redact(str(error))) from None

    async def _wait_until_served(self, model: _ModelState, timeout_s: float) -> str:
        """Wait until all replicas serve the target. Return why they do not, empty if they do."""
        start = time.monotonic()
        deadline, first_report_by = start + timeout_s, start + min(timeout_s, _GONE_S)
        while True:
            live = model.drop_gone()
            failures = [status.failed[1] for status in live if status.failed and status.failed[0] == model.target]
            if failures:
                return failures[0]
            # Without any report, wait as long as a report may be late on a busy machine.
            if all(status.serving == model.target for status in live) and (live or time.monotonic() > first_report_by):
                return ""
            if time.monotonic() > deadline:
                late = sum(status.serving != model.target for status in live)
                return f"after {timeout_s:g} s {late} of {len(live)} replicas do not serve it"
            await asyncio.sleep(_LOOK_S)

    async def _wait_until_failures_cleared(self, model: _ModelState) -> None:
        """Wait until no replica reports the rejected version as failed, so that the version can be tried again."""
        for _ in range(20):
            if not any(status.failed for status in model.drop_gone()):
                return
            await asyncio.sleep(_LOOK_S)


def _resolve_source(source: str, tracking: str) -> ServedVersion:
    if source.startswith(MODELS):
        version = find_version(source, tracking)
        meta = describe(locate(version.address, tracking=tracking))
        return _served_version(version.address, meta, name=version.name, version=version.number)
    path = locate(source, tracking=tracking)
    return _served_version(path, describe(path), name="", version=None)


def _served_version(checkpoint: str, meta: Meta, *, name: str, version: str | None) -> ServedVersion:
    return ServedVersion(
        checkpoint=checkpoint,
        name=name,
        version=version,
        data=meta.provenance.get("data"),
        ap=meta.metrics.get("AP"),
        run_id=meta.provenance.get("run_id") or None,
        step=meta.step,
        method=meta.experiment.method,
        schema=meta.experiment.keypoints,
        note=meta.experiment.run.note,
    )


def _still_serving(version: ServedVersion | None) -> str:
    return f"still serving {version.checkpoint}" if version else "no version is served yet"
