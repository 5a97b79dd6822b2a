"""A replica that predicts: image bytes in, poses out. Some threads decode, one runs the network; HTTP is elsewhere."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from ray import serve
from ray.serve.handle import DeploymentHandle

from posefleet.data.images import encode_jpeg
from posefleet.data.structures import Poses, Sample, padded_shape
from posefleet.memory import collect_garbage_rarely, keep_freed_memory
from posefleet.platform.inference.execution import compile_network
from posefleet.platform.inference.predictor import Predictor, describe_poses
from posefleet.platform.prediction.tracker import UNTRACKED, PoseTracker
from posefleet.platform.promotion.agreement import compare_poses
from posefleet.platform.visualization.drawing import draw_poses
from posefleet.serve.deployments.batching import Batcher
from posefleet.serve.deployments.decoding import Decoder
from posefleet.serve.deployments.errors import ErrorDetail
from posefleet.serve.deployments.metrics import ModelMetrics, ShadowMetrics
from posefleet.serve.deployments.settings import Limits, ServedModel
from posefleet.serve.deployments.versions import REPORT_S, ReplicaStatus, ServedVersion, ShadowStats

STUCK_S = 300.0
"""A replica whose batch takes longer than this many seconds hangs, and Serve replaces it."""

HEALTH: Any = {"health_check_period_s": 2, "health_check_timeout_s": 30}
"""How often Ray Serve checks the health of a replica."""

_log = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """Options of one image's prediction."""

    timeout_s: float
    """Seconds from now until the client stops waiting; an image that is still queued then is not predicted."""
    score_threshold: float | None = None
    """Poses with a lower score are left out. None: the model's own setting."""
    keypoint_threshold: float = 0.0
    """Keypoints with a lower score are left out of their pose."""
    max_people: int | None = None
    """Maximum number of poses, best first. None, or more than the model's own setting: that setting."""
    overlay: bool = False
    """Whether to draw the poses over the image."""
    tracking: dict[str, Any] | None = None
    """``seconds`` of the frame and ``state`` of the tracker after the frame before, as in ``schema.Tracking``, if the
    image is a frame of a film."""


@dataclass(frozen=True, slots=True)
class PredictResult:
    """The poses of one image, as a replica returns them to the gateway."""

    image: dict[str, Any]
    """The fields of ``schema.ImagePoses`` but ``name``."""
    model: dict[str, Any]
    """The fields of ``schema.ModelVersion``."""
    timings: dict[str, float]
    """Milliseconds of each stage: decode, queue, predict."""
    overlay: bytes | None
    """JPEG of the image with its poses, if it was asked for."""
    share_ms: float
    """Time of its batch in the network divided by the images in the batch, milliseconds."""
    checkpoint: str
    """Checkpoint of the version that predicted."""
    poses: Poses | None
    """All poses, also those below the thresholds, to compare a challenger with; None where the model has none."""
    tracker_state: dict[str, Any] | None = None
    """Of the tracker after the frame, if the image is one of a film; None before its first frame with finite poses."""


@dataclass(frozen=True, slots=True, eq=False)
class _Loaded:
    version: ServedVersion
    predictor: Predictor


@dataclass(slots=True, eq=False)
class _Job:
    """An image on its way through the network. Times are those of ``time.monotonic``, seconds."""

    loaded: _Loaded
    views: list[Sample]
    deadline: float
    started: float = 0.0
    """When its batch entered the network."""
    finished: float = 0.0
    batch_size: int = 1
    """Images in its batch."""

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline


class Replica:
    """One replica of a model or of its challenger: decodes images, predicts them in batches, follows the version."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, key: str, settings: ServedModel, limits: Limits, tracking: str, versions: DeploymentHandle[Any]
    ) -> None:
        """
        Args:
            key: Key of the model at the version controller: its name, or ``NAME.challenger``.
            settings: Settings of the model.
            limits: Those of the server.
            tracking: URI of the MLflow registry.
            versions: Handle of the version controller.

        Raises:
            ValueError: The version to serve does not exist or cannot be loaded.
        """
        collect_garbage_rarely()
        keep_freed_memory()
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # else each damaged upload fills the log
        self._key, self._settings, self._tracking = key, settings, tracking
        self._versions = versions
        self._replica_id = serve.get_replica_context().replica_id.unique_id
        self._decoder = Decoder(limits, threads=settings.decode_threads)
        # OpenMP keeps its number of threads per calling thread, so the network's thread has to set it for itself.
        threads = torch.get_num_threads()
        self._network = ThreadPoolExecutor(1, "network", initializer=torch.set_num_threads, initargs=(threads,))
        self._network_lock = asyncio.Lock()
        batching = settings.batching
        self._batcher = Batcher(self._predict_batch, size=batching.size, wait_s=batching.wait_ms / 1e3)
        self._busy_since: float | None = None
        self._metrics, self._shadow_metrics = ModelMetrics(key), ShadowMetrics(key)
        self._shadow_stats: dict[tuple[str, str], ShadowStats] = {}
        self._failed: tuple[ServedVersion, str] | None = None
        self._loaded: _Loaded | None = None
        version = await versions.report.remote(self._status())
        if version is not None:
            try:
                self._loaded = await self._load(version)
            except Exception as error:
                self._failed = (version, str(error))
                with contextlib.suppress(Exception):  # what matters is why the version cannot be loaded
                    await versions.report.remote(self._status())
                raise
        self._following = asyncio.create_task(self._follow_version())

    async def check_health(self) -> None:
        """Check that neither the network nor the decoder hangs; Ray Serve calls this regularly.

        Raises:
            RuntimeError: A batch has been running for more than ``STUCK_S`` seconds, or an image has been decoding for
                more than ``decoding.STUCK_S``.
        """
        self._decoder.check_health()
        if self._busy_since is not None and time.monotonic() - self._busy_since > STUCK_S:
            raise RuntimeError(f"a batch has been running for more than {STUCK_S:g} s; this replica must be replaced")

    async def predict(self, data: bytes, options: PredictOptions) -> PredictResult | ErrorDetail:
        """Predict the poses of one image.

        Args:
            data: The bytes of an image file; they come from a client and may be anything.
            options: What the request asks for.

        Returns:
            The poses, or why there are none.

        Raises:
            Exception: Whatever the network raised when it was given this image alone.
        """
        start = time.monotonic()
        loaded = self._loaded
        if loaded is None:
            return ErrorDetail("no_model", f"{self._key} has no version to serve")
        tracker = None
        if options.tracking:
            tracker = PoseTracker(loaded.predictor.schema.sigmas)
            try:
                tracker.restore(options.tracking["state"])
            except ValueError as error:
                return ErrorDetail("bad_request", f"tracking.state.{error}")
        decoded = await self._decoder.decode(data, loaded.predictor.prepare, deadline=start + options.timeout_s)
        if isinstance(decoded, ErrorDetail):
            return decoded
        image, views, pixels = decoded
        try:
            return await self._predict(loaded, image, views, options, start, tracker)
        finally:
            self._decoder.budget.release(pixels)

    async def _predict(
        self,
        loaded: _Loaded,
        image: np.ndarray,
        views: list[Sample],
        options: PredictOptions,
        start: float,
        tracker: PoseTracker | None,
    ) -> PredictResult | ErrorDetail:
        ready = time.monotonic()
        job = _Job(loaded, views, start + options.timeout_s)
        # Only images of one padded shape share a batch, so that none is padded because of another.
        poses = await self._batcher(tuple(padded_shape([view]) for view in views), job)
        if poses is None:
            return ErrorDetail("deadline", f"no answer within {options.timeout_s:.1f} s; the server is overloaded")
        times = {"decode": ready - start, "queue": job.started - ready, "predict": job.finished - job.started}
        for stage, seconds in times.items():
            self._metrics.stage.observe(1e3 * seconds, {"stage": stage})
        share_ms = 1e3 * times["predict"] / job.batch_size
        return await self._decoder.run(self._describe, loaded, image, poses, options, times, share_ms, tracker)

    async def shadow(self, data: bytes, champion: PredictResult) -> None:
        """Predict a live image as challenger and add how far the poses agree with the champion's to the statistics."""
        challenger = await self.predict(data, PredictOptions(timeout_s=30.0, score_threshold=0.0))
        loaded = self._loaded
        if isinstance(challenger, ErrorDetail) or loaded is None:
            return
        assert champion.poses is not None and challenger.poses is not None
        threshold, limit = self._settings.score_threshold, self._settings.max_people
        visible = [poses[poses.scores >= threshold][:limit] for poses in (champion.poses, challenger.poses)]
        agreement = compare_poses(visible[0], visible[1], loaded.predictor.schema)
        metrics = self._shadow_metrics
        metrics.images.inc()
        for similarity in agreement.similarities:
            metrics.oks.observe(similarity)
        for side, only_one, share_ms in (
            ("champion", agreement.only_first, champion.share_ms),
            ("challenger", agreement.only_second, challenger.share_ms),
        ):
            metrics.predict.observe(share_ms, {"side": side})
            if only_one:
                metrics.only_one.inc(only_one, {"side": side})
        self._add_stats(
            ShadowStats(
                champion=champion.checkpoint,
                challenger=challenger.checkpoint,
                images=1,
                pairs=len(agreement.similarities),
                oks=sum(agreement.similarities),
                only_champion=agreement.only_first,
                only_challenger=agreement.only_second,
                champion_ms=champion.share_ms,
                challenger_ms=challenger.share_ms,
            )
        )

    def _add_stats(self, stats: ShadowStats) -> None:
        pair = (stats.champion, stats.challenger)
        self._shadow_stats[pair] = self._shadow_stats[pair] + stats if pair in self._shadow_stats else stats

    # ------------------------------------------------------------------------------------------------ stages

    async def _predict_batch(self, jobs: list[_Job]) -> list[Poses | Exception | None]:
        """Return the poses of each job, or the error it raised; None where its deadline is over."""
        results: dict[int, Poses | Exception] = {}
        async with self._network_lock:
            pending = [job for job in jobs if not job.late]
            for loaded in {id(job.loaded): job.loaded for job in pending}.values():  # two during a swap
                results |= await self._run(loaded, [job for job in pending if job.loaded is loaded])
        return [results.get(id(job)) for job in jobs]

    async def _run(self, loaded: _Loaded, jobs: list[_Job]) -> dict[int, Poses | Exception]:
        """Predict jobs in one batch, or one by one if the batch fails, so that one bad image fails alone."""
        self._busy_since = started = time.monotonic()
        loop = asyncio.get_running_loop()
        try:
            views = [job.views for job in jobs]
            poses = await loop.run_in_executor(self._network, loaded.predictor.predict_prepared, views)
        except Exception as error:
            if len(jobs) == 1:
                return {id(jobs[0]): error}
            _log.warning("%s: a batch of %d images failed, predicting them one by one: %s", self._key, len(jobs), error)
            single = [await self._run(loaded, [job]) for job in jobs]
            return {key: value for results in single for key, value in results.items()}
        finally:
            self._busy_since = None
        finished = time.monotonic()
        self._metrics.batch.observe(len(jobs))
        for job in jobs:
            job.started, job.finished, job.batch_size = started, finished, len(jobs)
        return {id(job): of_image for job, of_image in zip(jobs, poses, strict=True)}

    def _describe(
        self,
        loaded: _Loaded,
        image: np.ndarray,
        poses: Poses,
        options: PredictOptions,
        times: Mapping[str, float],
        share_ms: float,
        tracker: PoseTracker | None,
    ) -> PredictResult:
        settings = self._settings
        threshold = settings.score_threshold if options.score_threshold is None else options.score_threshold
        limit = min(options.max_people or settings.max_people, settings.max_people)
        chosen = poses.scores >= threshold
        visible = poses[chosen][:limit]
        self._metrics.people.observe(len(visible))
        schema, overlay = loaded.predictor.schema, None
        if options.overlay:
            overlay = encode_jpeg(draw_poses(image, visible, schema, keypoint_threshold=options.keypoint_threshold))
        described = describe_poses(visible, schema, keypoint_threshold=options.keypoint_threshold)
        if tracker and options.tracking:  # all poses count, so that a client's thresholds do not change the numbers
            tracks = _tracks(tracker, poses, options.tracking["seconds"])[chosen.cpu().numpy()][:limit]
            for pose, track in zip(described, tracks.tolist(), strict=True):
                pose["track"] = None if track == UNTRACKED else track
        return PredictResult(
            image={"width": image.shape[1], "height": image.shape[0], "poses": described},
            model={
                "name": settings.name,
                "method": loaded.predictor.method,
                "version": loaded.version.version,
                "keypoint_scores": loaded.predictor.keypoint_scores,
                "note": loaded.version.note,
            },
            timings={stage: round(1e3 * seconds, 3) for stage, seconds in times.items()},
            overlay=overlay,
            share_ms=share_ms,
            checkpoint=loaded.version.checkpoint,
            poses=poses if settings.shadow else None,
            tracker_state=tracker.state() if tracker else None,
        )

    # ------------------------------------------------------------------------------------------------ versions

    def _status(self) -> ReplicaStatus:
        return ReplicaStatus(
            model=self._key,
            replica=self._replica_id,
            serving=self._loaded.version if self._loaded else None,
            failed=self._failed,
            shadow_stats=tuple(self._shadow_stats.values()),
        )

    async def _follow_version(self) -> None:
        """Report regularly, and swap to the version in the answer. A request keeps the version that it began with."""
        while True:
            status, begun = self._status(), time.monotonic()
            self._shadow_stats = {}
            try:
                version = await self._versions.report.remote(status, REPORT_S)
            except Exception as error:  # the replica goes on with its version, whatever befalls the controller
                _log.warning("%s: the version controller does not answer: %s", self._key, error)
                for stats in status.shadow_stats:
                    self._add_stats(stats)
                await asyncio.sleep(REPORT_S)
                continue
            if version in (status.serving, status.failed and status.failed[0]):
                await asyncio.sleep(max(0.0, begun + REPORT_S - time.monotonic()))  # in case it held no answer
            if self._failed and self._failed[0] == version:
                continue
            self._failed = None
            if version is None:
                self._loaded = None
            elif self._loaded is None or self._loaded.version != version:
                await self._swap(version)

    async def _swap(self, version: ServedVersion) -> None:
        try:
            self._loaded = await self._load(version)
        except Exception as error:
            _log.exception("%s: cannot load %s", self._key, version.checkpoint)
            self._failed = (version, str(error))
        else:
            _log.info("%s: now serving %s", self._key, version.checkpoint)

    async def _load(self, version: ServedVersion) -> _Loaded:
        loaded = await asyncio.to_thread(self._build, version)
        async with self._network_lock:  # the warm-up must not compete with live images
            await asyncio.get_running_loop().run_in_executor(self._network, self._warm_up, loaded)
        return loaded

    def _build(self, version: ServedVersion) -> _Loaded:
        settings = self._settings
        predictor = Predictor.from_checkpoint(
            version.checkpoint,
            precision=settings.precision,
            channels_last=settings.channels_last,
            backend=settings.backend,
            tracking=self._tracking,
        )
        predictor.refuse_oracles()
        if settings.compile:
            compile_network(predictor.model)
        return _Loaded(version, predictor)

    def _warm_up(self, loaded: _Loaded) -> None:
        for width, height in self._settings.warm_up:
            loaded.predictor.predict_images([np.full((height, width, 3), 127, np.uint8)])


def _tracks(tracker: PoseTracker, poses: Poses, seconds: float) -> np.ndarray:
    """The numbers of the people; a frame with numbers that are not finite is left out, as in batch prediction."""
    finite = all(torch.isfinite(part).all() for part in (poses.keypoints, poses.keypoint_scores, poses.scores))
    return tracker(poses, seconds) if finite else np.full(len(poses), UNTRACKED, np.int32)


ModelReplica: serve.Deployment = serve.deployment(max_ongoing_requests=64, **HEALTH)(Replica)
