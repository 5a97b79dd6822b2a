"""The gateway: sends images to a replica, tries again if the replica dies, and copies a share to challengers."""

import asyncio
import math
import random
import time
from collections.abc import Mapping
from dataclasses import replace
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
    may_scale_to_zero,
    read_token,
)
from posefleet.serve.deployments.versions import NOT_STARTED, ServingStatus
from posefleet.serve.http.schema import PoseQuery, Tracking
from posefleet.serve.http.uploads import Upload

_INLINE_BYTES = 64 * 1024
"""Images up to this many bytes travel inside the call; larger ones by reference, through shared memory."""

_ATTEMPTS = 3
"""How often an image is sent if the replica that has it dies. Predicting an image twice does no harm."""

_MAX_SHADOW_IMAGES = 32
"""Maximum number of images that wait for challengers. Further images are not compared, so that none pile up while a
challenger is too slow."""

_FAULT_S = 2.0
"""How long a request that has failed waits for the version controller to say why, seconds."""


class Gateway:
    """Connects HTTP requests with the replicas that predict."""

    def __init__(
        self,
        settings: ServerSettings,
        models: Mapping[str, DeploymentHandle[Any]],
        challengers: Mapping[str, DeploymentHandle[Any]],
        versions: DeploymentHandle[Any],
        local: Replica | None = None,
    ) -> None:
        """
        Args:
            settings: Settings of the server.
            models: Handle of each model's replicas, by the model's name.
            challengers: Handle of each challenger's replicas, by the name of its champion.
            versions: Handle of the version controller.
            local: A replica of the default model in this process, which then needs no handle.

        Raises:
            ValueError: The token cannot be read, or the settings require one and there is none.
        """
        token = read_token()
        if settings.access.token_for == "everything" and not token:
            raise ValueError(f"access.token_for is everything, but neither ${TOKEN} nor ${TOKEN_FILE} is set; set one")
        self.settings, self.versions = settings, versions
        self.models = {model.name: model for model in settings.models}
        self.metrics = IngressMetrics()
        self._handles, self._challengers, self._local = models, challengers, local
        self._shadow_tasks: set[asyncio.Task[None]] = set()

    def model(self, name: str | None) -> ServedModel:
        """The model called ``name``; None: the default model.

        Raises:
            ApiError: There is no such model.
        """
        if name is None:
            return self.settings.models[0]
        if name not in self.models:
            raise ApiError("unknown_model", f"no model {name!r}; there is {', '.join(self.models)}")
        return self.models[name]

    async def poses(
        self,
        model: ServedModel,
        uploads: list[Upload],
        query: PoseQuery,
        deadline: float,
        tracking: Tracking | None = None,
    ) -> list[PredictResult]:
        """Predict all images of a request, normally with one version of the model.

        A swap between two images splits the versions, and all images are then predicted again, ``_ATTEMPTS`` times at
        most.

        Args:
            deadline: When to give up, by ``time.monotonic``, seconds.
            tracking: Time and state of the film whose next frame the only image is.

        Raises:
            ApiError: An image has no result; the detail begins with its file name.
        """
        options = PredictOptions(
            timeout_s=math.inf, **query.model_dump(), tracking=tracking.model_dump() if tracking else None
        )
        for _ in range(_ATTEMPTS):
            results = await asyncio.gather(*(self._poses_of(model, upload, options, deadline) for upload in uploads))
            if len({result.checkpoint for result in results}) == 1:
                break
        return results

    async def _poses_of(
        self, model: ServedModel, upload: Upload, options: PredictOptions, deadline: float
    ) -> PredictResult:
        data = upload.data if self._local_replica(model) else _by_reference(upload.data)
        result = await self._predict(model, data, options, deadline)
        if isinstance(result, ErrorDetail):
            raise ApiError(result.reason, f"{upload.name}: {result.detail}" if upload.name else result.detail)
        if model.shadow and random.random() < model.shadow.share:
            self._start_shadow(model.name, _by_reference(data), result)
        return result

    def _local_replica(self, model: ServedModel) -> Replica | None:
        return self._local if model is self.settings.models[0] else None

    def _send(self, model: ServedModel, data: Any, options: PredictOptions) -> Any:
        """Start a prediction, in this process if it has a replica of the model.

        Returns:
            An awaitable of ``PredictResult | ErrorDetail`` with a method ``cancel``.
        """
        if replica := self._local_replica(model):
            return asyncio.create_task(replica.predict(data, options))
        return self._handles[model.name].predict.remote(data, options)

    async def _predict(
        self, model: ServedModel, data: Any, options: PredictOptions, deadline: float
    ) -> PredictResult | ErrorDetail:
        for attempts_left in reversed(range(_ATTEMPTS)):
            options = replace(options, timeout_s=deadline - time.monotonic())
            response = self._send(model, data, options)
            try:
                async with asyncio.timeout(max(0.0, options.timeout_s)):
                    result: PredictResult | ErrorDetail = await response
                    return result
            except (TimeoutError, TaskCancelledError):
                response.cancel()
                limit = self.settings.limits.deadline_s
                if fault := await self._fault(model):
                    return ErrorDetail("no_model", f"{model.name}: {fault}")
                return ErrorDetail("deadline", f"no answer within {limit:g} s; try again, or send fewer images at once")
            except asyncio.CancelledError:
                response.cancel()
                raise
            except BackPressureError:
                return ErrorDetail("busy", f"the queue of {model.name} is full; try again in a second")
            except DeploymentUnavailableError:
                return ErrorDetail("no_model", f"{model.name}: {await self._fault(model) or NOT_STARTED}")
            except RayActorError:
                if not attempts_left:
                    raise
        raise AssertionError("unreachable")

    def _start_shadow(self, name: str, data: Any, champion: PredictResult) -> None:
        """Send an image to the challenger, too, unless enough images wait for challengers."""
        if len(self._shadow_tasks) >= _MAX_SHADOW_IMAGES:
            self.metrics.refused.inc(1, {"model": f"{name}{CHALLENGER}", "reason": "busy"})
            return
        task = asyncio.create_task(self._shadow(name, data, champion))
        self._shadow_tasks.add(task)
        task.add_done_callback(self._shadow_tasks.discard)

    async def _shadow(self, name: str, data: Any, champion: PredictResult) -> None:
        try:
            await self._challengers[name].shadow.remote(data, champion)
        except Exception:  # a challenger that is busy, starting or broken is counted; clients must not notice
            self.metrics.refused.inc(1, {"model": f"{name}{CHALLENGER}", "reason": "shadow"})

    async def _fault(self, model: ServedModel) -> str | None:
        """Why no replica serves a model, in words for strangers; None if one does, or nobody knows."""
        try:
            async with asyncio.timeout(_FAULT_S):
                fault = (await self.served())[model.name].fault
        except Exception:  # the request has failed anyway; the reason for that is only more exact with this answer
            return None
        return fault.summary if fault else None

    async def served(self) -> dict[str, ServingStatus]:
        """How every model and challenger is served, by key."""
        statuses: dict[str, ServingStatus] = await self.versions.models.remote()
        return statuses

    async def unready(self) -> list[str]:
        """Models without a replica of the right version, each with the reason; not those that may scale to zero."""
        served = await self.served()
        return [
            f"{model.name}: {fault.summary if (fault := served[model.name].fault) else NOT_STARTED}"
            for model in self.settings.models
            if not served[model.name].replicas and not may_scale_to_zero(model)
        ]


def _by_reference(data: Any) -> Any:
    """Put large bytes into shared memory and return the reference; small bytes and references stay as they are."""
    return ray.put(data) if isinstance(data, bytes) and len(data) > _INLINE_BYTES else data
