"""The gateway: takes images to a replica, retries, and shows a share of them to challengers."""

import asyncio
import random
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayActorError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from posefleet.serve.deployments.errors import ApiError, ErrorDetail
from posefleet.serve.deployments.metrics import IngressMetrics
from posefleet.serve.deployments.replica import PredictOptions, PredictResult, Replica
from posefleet.serve.deployments.settings import (
    CHALLENGER,
    TOKEN,
    TOKEN_FILE,
    ServedModel,
    ServerSettings,
    may_be_zero,
    read_token,
)
from posefleet.serve.deployments.versions import ServedVersion
from posefleet.serve.http.schema import PoseQuery
from posefleet.serve.http.uploads import Upload

_INLINE = 64 * 1024
"""Smaller bodies travel inside the call; larger ones by reference, through shared memory."""


_TRIES = 3
"""How often an image is sent on when the replica that had it dies: predicting twice does no harm."""


_SHADOWS = 32
"""Most images that wait for a challenger; while it cannot keep up, more are not compared, and nothing piles up."""


class Gateway:
    """The way from a request to the replicas and back."""

    def __init__(
        self,
        settings: ServerSettings,
        models: Mapping[str, DeploymentHandle[Any]],
        challengers: Mapping[str, DeploymentHandle[Any]],
        versions: DeploymentHandle[Any],
        here: Replica | None = None,
    ) -> None:
        """
        Args:
            here: A replica of the default model in this process.
        """
        token = read_token()  # an unreadable file is told now
        if settings.access.token_for == "everything" and not token:
            raise ValueError(f"access.token_for is everything, but neither ${TOKEN} nor ${TOKEN_FILE} gives a token")
        self.settings, self.versions = settings, versions
        self.models = {model.name: model for model in settings.models}
        self.metrics = IngressMetrics()
        self._handles, self._challengers, self._here = models, challengers, here
        self._background: set[asyncio.Task[None]] = set()

    def model(self, name: str | None) -> ServedModel:
        """The model of that name, or the default one.

        Raises:
            Refused: There is none.
        """
        if name is None:
            return self.settings.models[0]
        if name not in self.models:
            raise ApiError("unknown_model", f"no model {name!r}; there is {', '.join(self.models)}")
        return self.models[name]

    async def poses(
        self, model: ServedModel, uploads: list[Upload], query: PoseQuery, deadline: float
    ) -> list[PredictResult]:
        """The poses of every image, all by the same version.

        Raises:
            Refused: One cannot be had; its name is in the detail.
        """
        for _ in range(_TRIES):
            seen = await asyncio.gather(*(self._one(model, upload, query, deadline) for upload in uploads))
            if len({image.checkpoint for image in seen}) == 1:  # else a swap came in between
                break
        return seen

    async def _one(self, model: ServedModel, upload: Upload, query: PoseQuery, deadline: float) -> PredictResult:
        data = upload.data if self._near(model) else _carried(upload.data)
        found = await self._ask(model, data, query, deadline)
        if isinstance(found, ErrorDetail):
            raise ApiError(found.reason, f"{upload.name}: {found.detail}" if upload.name else found.detail)
        if model.shadow and random.random() < model.shadow.share:
            self._compare(model.name, _carried(data), found)
        return found

    def _near(self, model: ServedModel) -> Replica | None:
        return self._here if model is self.settings.models[0] else None

    def _send(self, model: ServedModel, data: Any, ask: PredictOptions) -> Any:
        """Ask a replica, this one if it can be: an awaitable of ``Seen | Refusal`` that can be cancelled."""
        if near := self._near(model):
            return asyncio.create_task(near.predict(data, ask))
        return self._handles[model.name].predict.remote(data, ask)

    async def _ask(
        self, model: ServedModel, data: Any, query: PoseQuery, deadline: float
    ) -> PredictResult | ErrorDetail:
        late = ErrorDetail(
            "deadline", f"no answer within {self.settings.limits.deadline_s:g} s; try again, or fewer at once"
        )
        for tries_left in reversed(range(_TRIES)):
            ask = PredictOptions(
                seconds=deadline - time.monotonic(),
                score_threshold=query.score_threshold,
                keypoint_threshold=query.keypoint_threshold,
                max_people=query.max_people,
                overlay=query.overlay,
            )
            response = self._send(model, data, ask)
            try:
                async with asyncio.timeout(max(0.0, ask.seconds)):
                    found: PredictResult | ErrorDetail = await response
                    return found
            except (TimeoutError, TaskCancelledError):
                response.cancel()
                return late
            except asyncio.CancelledError:
                response.cancel()
                raise
            except BackPressureError:
                return ErrorDetail("busy", f"{model.name} has too much to do; try again in a second")
            except DeploymentUnavailableError as error:
                return ErrorDetail("no_model", f"{model.name}: {error}")
            except RayActorError:
                if not tries_left:
                    raise
        raise AssertionError("unreachable")

    def _compare(self, name: str, data: Any, champion: PredictResult) -> None:
        """Hand an image to the challenger, too, unless it has enough to do."""
        if len(self._background) >= _SHADOWS:
            self.metrics.refused.inc(1, {"model": f"{name}{CHALLENGER}", "reason": "busy"})
            return
        task = asyncio.create_task(self._shadow(name, data, champion))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _shadow(self, name: str, data: Any, champion: PredictResult) -> None:
        try:
            await self._challengers[name].shadow.remote(data, champion)
        except Exception:  # the challenger is busy, starting or broken: its metrics show that, clients must not
            self.metrics.refused.inc(1, {"model": f"{name}{CHALLENGER}", "reason": "shadow"})

    async def wanted(self) -> dict[str, tuple[str, ServedVersion | None, int]]:
        """What is served, see ``Versions.models``."""
        told: dict[str, tuple[str, ServedVersion | None, int]] = await self.versions.models.remote()
        return told

    async def unready(self) -> list[str]:
        """Models of which no replica serves what it should, and which may not scale to zero."""
        told = await self.wanted()
        return [model.name for model in self.settings.models if not told[model.name][2] and not may_be_zero(model)]


def _carried(data: Any) -> Any:
    """Bytes as they go to another process: large ones as a reference; what is one stays one."""
    return ray.put(data) if isinstance(data, bytes) and len(data) > _INLINE else data
