"""A replica that predicts: bytes in, poses out. Decoding in some threads, the network in one, HTTP elsewhere."""

import asyncio
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

from posefleet.data.errors import DataError, NotAnImage, TooManyPixels
from posefleet.data.images import decode_untrusted, encode_jpeg
from posefleet.data.structures import Poses, Sample, padded_shape
from posefleet.memory import collect_garbage_rarely, keep_freed_memory
from posefleet.platform.inference.predictor import Predictor, describe_poses
from posefleet.platform.promotion.agreement import compare_poses
from posefleet.platform.visualization.drawing import draw_poses
from posefleet.serve.deployments.batching import Batcher
from posefleet.serve.deployments.errors import ErrorDetail
from posefleet.serve.deployments.metrics import ModelMetrics, ShadowMetrics
from posefleet.serve.deployments.settings import ServedModel
from posefleet.serve.deployments.versions import REPORT_S, ReplicaStatus, ServedVersion, ShadowStats

STUCK_S = 300.0
"""A batch that takes longer means a replica that hangs: Serve replaces it."""

_log = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """What a request wants of its image."""

    seconds: float
    """Until nobody waits any more."""
    score_threshold: float | None = None
    """None: the model's own setting."""
    keypoint_threshold: float = 0.0
    max_people: int | None = None
    overlay: bool = False


@dataclass(frozen=True, slots=True)
class PredictResult:
    """An image with its poses, as it goes back to the ingress."""

    image: dict[str, Any]
    """``ImagePoses`` in plain values, but for its name."""
    model: dict[str, Any]
    """``ModelVersion`` in plain values."""
    timings: dict[str, float]
    """Milliseconds of its stages: decode, queue, predict."""
    overlay: bytes | None
    """JPEG of the image with its poses, if asked for."""
    share_ms: float
    """Its part of the time that its batch took, milliseconds."""
    checkpoint: str
    poses: Poses | None
    """The same in tensors, for a challenger to be compared with; None where there is none."""


@dataclass(frozen=True, slots=True, eq=False)
class _Loaded:
    wanted: ServedVersion
    predictor: Predictor


@dataclass(slots=True, eq=False)
class _Job:
    """An image on its way through the model."""

    loaded: _Loaded
    views: list[Sample]
    deadline: float
    """Like the next two by ``time.monotonic``, seconds."""
    taken: float = 0.0
    """When its batch went into the network."""
    done: float = 0.0
    batch: int = 1
    """Images of the batch that it was in."""

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline


HEALTH: Any = {"health_check_period_s": 2, "health_check_timeout_s": 30}
"""How often Ray Serve asks a replica whether it is well."""


class Replica:
    """One replica of one model, or of its challenger."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, key: str, settings: ServedModel, most_pixels: int, tracking: str, versions: DeploymentHandle[Any]
    ) -> None:
        """
        Args:
            key: Of the model among the versions: its name, or that of its challenger.
            settings: Of the model.
            most_pixels: Of an image.
            tracking: Where models are registered.
            versions: Says which version to serve.

        Raises:
            ValueError: That version does not exist or cannot be loaded.
        """
        collect_garbage_rarely()
        keep_freed_memory()
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # strangers' files are no news
        self._key, self._settings, self._most_pixels, self._tracking = key, settings, most_pixels, tracking
        self._versions = versions
        self._replica = serve.get_replica_context().replica_id.unique_id
        self._decoding = ThreadPoolExecutor(settings.decode_threads, "decode")
        self._network = ThreadPoolExecutor(1, "network", initializer=_own_threads, initargs=(torch.get_num_threads(),))
        self._turn = asyncio.Lock()
        batching = settings.batching
        self._batches = Batcher(self._predict_batch, size=batching.size, wait_s=batching.wait_ms / 1e3)
        self._busy_since: float | None = None
        self._metrics, self._shadow_metrics = ModelMetrics(key), ShadowMetrics(key)
        self._shadowed: dict[tuple[str, str], ShadowStats] = {}
        self._failed: tuple[ServedVersion, str] | None = None
        self._loaded: _Loaded | None = None
        wanted = await versions.report.remote(self._report())
        if wanted is not None:
            self._loaded = await self._load(wanted)
        self._following = asyncio.create_task(self._follow())

    async def check_health(self) -> None:
        """Ray Serve asks every now and then.

        Raises:
            RuntimeError: The network hangs.
        """
        if self._busy_since is not None and time.monotonic() - self._busy_since > STUCK_S:
            raise RuntimeError(f"a batch has been in the network for more than {STUCK_S:g} s")

    async def predict(self, data: bytes, ask: PredictOptions) -> PredictResult | ErrorDetail:
        """Poses of an image.

        Args:
            data: The bytes of its file, from a stranger.

        Returns:
            Them, or why there are none.

        Raises:
            Exception: Whatever the network raised over this image alone.
        """
        start = time.monotonic()
        loaded = self._loaded
        if loaded is None:
            return ErrorDetail("no_model", f"{self._key} has no version to serve")
        loop = asyncio.get_running_loop()
        decoded = await loop.run_in_executor(self._decoding, self._decode, loaded, data)
        if isinstance(decoded, ErrorDetail):
            return decoded
        image, views = decoded
        ready = time.monotonic()
        job = _Job(loaded, views, start + ask.seconds)
        # Images that are padded to the same shape wait together, so that none is padded for the sake of others.
        poses = await self._batches(tuple(padded_shape([view]) for view in views), job)
        if poses is None:
            return ErrorDetail("deadline", f"no answer within {ask.seconds:.1f} s; the server has too much to do")
        times = {"decode": ready - start, "queue": job.taken - ready, "predict": job.done - job.taken}
        for stage, seconds in times.items():
            self._metrics.stage.observe(1e3 * seconds, {"stage": stage})
        share = 1e3 * times["predict"] / job.batch
        return await loop.run_in_executor(self._decoding, self._describe, loaded, image, poses, ask, times, share)

    async def shadow(self, data: bytes, champion: PredictResult) -> None:
        """Predict a live image, too, and note how far the poses agree with the champion's. Nobody waits for it."""
        seen = await self.predict(data, PredictOptions(seconds=30.0, score_threshold=0.0))
        loaded = self._loaded
        if isinstance(seen, ErrorDetail) or loaded is None:
            return
        assert champion.poses is not None and seen.poses is not None
        least, most = self._settings.score_threshold, self._settings.max_people
        shown = [poses[poses.scores >= least][:most] for poses in (champion.poses, seen.poses)]  # as clients see them
        found = compare_poses(shown[0], shown[1], loaded.predictor.schema)
        told = self._shadow_metrics
        told.images.inc()
        for value in found.similarities:
            told.oks.observe(value)
        for side, count, share in (
            ("champion", found.only_first, champion.share_ms),
            ("challenger", found.only_second, seen.share_ms),
        ):
            told.predict.observe(share, {"side": side})
            if count:
                told.alone.inc(count, {"side": side})
        self._note(
            ShadowStats(
                champion=champion.checkpoint,
                challenger=seen.checkpoint,
                images=1,
                pairs=len(found.similarities),
                oks=sum(found.similarities),
                only_champion=found.only_first,
                only_challenger=found.only_second,
                champion_ms=champion.share_ms,
                challenger_ms=seen.share_ms,
            )
        )

    def _note(self, seen: ShadowStats) -> None:
        pair = (seen.champion, seen.challenger)
        self._shadowed[pair] = self._shadowed[pair] + seen if pair in self._shadowed else seen

    # ------------------------------------------------------------------------------------------------ stages

    def _decode(self, loaded: _Loaded, data: bytes) -> tuple[np.ndarray, list[Sample]] | ErrorDetail:
        try:
            image = decode_untrusted(data, most_pixels=self._most_pixels)
        except NotAnImage as error:
            return ErrorDetail("not_an_image", str(error))
        except TooManyPixels as error:
            return ErrorDetail("too_many_pixels", str(error))
        except DataError as error:
            return ErrorDetail("damaged_image", str(error))
        return image, loaded.predictor.prepare(image)

    async def _predict_batch(self, jobs: list[_Job]) -> list[Poses | Exception | None]:
        """Poses by job, or why there are none; None where it is too late for them."""
        found: dict[int, Poses | Exception] = {}
        async with self._turn:
            waiting = [job for job in jobs if not job.late]
            for loaded in {id(job.loaded): job.loaded for job in waiting}.values():  # two during a swap
                group = [job for job in waiting if job.loaded is loaded]
                found |= await self._run(loaded, group)
        return [found.get(id(job)) for job in jobs]

    async def _run(self, loaded: _Loaded, group: list[_Job]) -> dict[int, Poses | Exception]:
        self._busy_since = taken = time.monotonic()
        loop = asyncio.get_running_loop()
        try:
            views = [job.views for job in group]
            poses = await loop.run_in_executor(self._network, loaded.predictor.predict_prepared, views)
        except Exception as error:
            if len(group) == 1:
                return {id(group[0]): error}
            _log.warning("%s: a batch of %d failed, its images are tried one by one: %s", self._key, len(group), error)
            alone = [await self._run(loaded, [job]) for job in group]
            return {key: value for one in alone for key, value in one.items()}
        finally:
            self._busy_since = None
        done = time.monotonic()
        self._metrics.batch.observe(len(group))
        for job in group:
            job.taken, job.done, job.batch = taken, done, len(group)
        return {id(job): found for job, found in zip(group, poses, strict=True)}

    def _describe(
        self,
        loaded: _Loaded,
        image: np.ndarray,
        poses: Poses,
        ask: PredictOptions,
        times: Mapping[str, float],
        share_ms: float,
    ) -> PredictResult:
        least = self._settings.score_threshold if ask.score_threshold is None else ask.score_threshold
        most = self._settings.max_people
        shown = poses[poses.scores >= least][: min(ask.max_people or most, most)]
        self._metrics.people.observe(len(shown))
        schema, overlay = loaded.predictor.schema, None
        if ask.overlay:
            overlay = encode_jpeg(draw_poses(image, shown, schema, keypoint_threshold=ask.keypoint_threshold))
        return PredictResult(
            image={
                "width": image.shape[1],
                "height": image.shape[0],
                "poses": describe_poses(shown, schema, keypoint_threshold=ask.keypoint_threshold),
            },
            model={"name": self._settings.name, "method": loaded.predictor.method, "version": loaded.wanted.version},
            timings={stage: round(1e3 * seconds, 3) for stage, seconds in times.items()},
            overlay=overlay,
            share_ms=share_ms,
            checkpoint=loaded.wanted.checkpoint,
            poses=poses if self._settings.shadow else None,
        )

    # ------------------------------------------------------------------------------------------------ versions

    def _report(self) -> ReplicaStatus:
        return ReplicaStatus(
            model=self._key,
            replica=self._replica,
            serves=self._loaded.wanted if self._loaded else None,
            failed=self._failed,
            shadowed=tuple(self._shadowed.values()),
        )

    async def _follow(self) -> None:
        """Report, and swap to another version when told so. Requests in flight end with the one they began with."""
        while True:
            await asyncio.sleep(REPORT_S)
            report = self._report()
            self._shadowed = {}
            try:
                wanted = await self._versions.report.remote(report)
            except Exception as error:  # whatever it is, it must not end serving
                _log.warning("%s: no word of versions: %s", self._key, error)
                for seen in report.shadowed:
                    self._note(seen)
                continue
            if self._failed and self._failed[0] == wanted:
                continue
            self._failed = None
            if wanted is None:
                self._loaded = None
            elif self._loaded is None or self._loaded.wanted != wanted:
                await self._swap(wanted)

    async def _swap(self, wanted: ServedVersion) -> None:
        try:
            self._loaded = await self._load(wanted)
        except Exception as error:
            _log.exception("%s: cannot load %s", self._key, wanted.checkpoint)
            self._failed = (wanted, str(error))
        else:
            _log.info("%s: serves %s now", self._key, wanted.checkpoint)

    async def _load(self, wanted: ServedVersion) -> _Loaded:
        loaded = await asyncio.to_thread(self._build, wanted)
        async with self._turn:  # its first images must not compete with live ones
            await asyncio.get_running_loop().run_in_executor(self._network, self._warm_up, loaded)
        return loaded

    def _build(self, wanted: ServedVersion) -> _Loaded:
        settings = self._settings
        predictor = Predictor.from_checkpoint(
            wanted.checkpoint,
            bfloat16=settings.bfloat16,
            channels_last=settings.channels_last,
            backend=settings.backend,
            tracking=self._tracking,
        )
        predictor.need_no_truth()
        if settings.compile:
            predictor.model.compile()
        return _Loaded(wanted, predictor)

    def _warm_up(self, loaded: _Loaded) -> None:
        for width, height in self._settings.warm_up:
            loaded.predictor.predict_images([np.full((height, width, 3), 127, np.uint8)])


ModelReplica: serve.Deployment = serve.deployment(max_ongoing_requests=64, **HEALTH)(Replica)


def _own_threads(count: int) -> None:
    """OpenMP counts threads by the thread that asks."""
    torch.set_num_threads(count)
