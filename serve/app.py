"""The HTTP face: ``serve run serve/config.yaml``. It takes requests in and hands images on; it never decodes one.

POST /v1/poses                       poses by the default model
POST /v1/models/{name}/poses         poses by that model
GET  /v1/models                      what is served
POST /v1/models/{name}/reload        look the model up again, swap without a failed request (token)
GET  /v1/models/{name}/shadow        how far champion and challenger agree on live images
GET  /healthz, /readyz               this replica lives; every model has a replica that serves
GET  /, /docs                        a page to try it on, and the API's description
"""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from posefleet.memory import collect_garbage_rarely
from posefleet.platform.runtime.placement import SERVING, STEADY
from posefleet.serve.deployments.replica import HEALTH, ModelReplica, Replica
from posefleet.serve.deployments.settings import (
    CHALLENGER,
    ServedModel,
    ServerSettings,
)
from posefleet.serve.deployments.versions import VersionController
from posefleet.serve.http.gateway import Gateway
from posefleet.serve.http.routes import create_api


def build(args: Mapping[str, Any]) -> serve.Application:
    """The application of a Serve config's ``args``, see ``settings.ServerSettings``.

    Raises:
        pydantic.ValidationError: They do not say what a server needs.
    """
    settings = ServerSettings.model_validate(dict(args))
    sources = {model.name: model.source for model in settings.models}
    sources |= {f"{model.name}{CHALLENGER}": model.shadow.source for model in settings.models if model.shadow}
    versions = VersionController.bind(sources, settings.tracking)  # type: ignore[attr-defined]

    def replicas(
        key: str, model: ServedModel, options: Mapping[str, Any], deployment: Any = ModelReplica, *first: Any
    ) -> serve.Application:
        placed = {"ray_actor_options": {"label_selector": dict(SERVING), **options.get("ray_actor_options", {})}}
        bound: serve.Application = deployment.options(name=key, **{**options, **placed}).bind(
            *first, key, model, settings.limits.image_pixels, settings.tracking, versions
        )
        return bound

    far = settings.models[1:] if settings.direct else settings.models
    models = {model.name: replicas(model.name, model, model.deployment) for model in far}
    challengers = {
        model.name: replicas(f"{model.name}{CHALLENGER}", model, model.shadow.deployment)
        for model in settings.models
        if model.shadow
    }
    gateway = (settings, models, challengers, versions)
    if settings.direct:
        default = settings.models[0]
        return replicas(default.name, default, default.deployment, DirectReplica, *gateway)
    ingress: serve.Application = Ingress.options(**settings.ingress).bind(*gateway)  # type: ignore[attr-defined]
    return ingress


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0, "label_selector": dict(STEADY)})
@serve.ingress()
class Ingress:
    """A replica that speaks HTTP."""

    def __init__(
        self,
        settings: ServerSettings,
        models: Mapping[str, DeploymentHandle[Any]],
        challengers: Mapping[str, DeploymentHandle[Any]],
        versions: DeploymentHandle[Any],
    ) -> None:
        collect_garbage_rarely()
        self._gateway = Gateway(settings, models, challengers, versions)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self._gateway)


@serve.deployment(max_ongoing_requests=256, **HEALTH)  # uploads that are under way count, too
@serve.ingress()
class DirectReplica(Replica):
    """A replica of the default model that speaks HTTP itself: one way less for every image."""

    async def __init__(  # type: ignore[misc]  # as of Replica
        self,
        settings: ServerSettings,
        models: Mapping[str, DeploymentHandle[Any]],
        challengers: Mapping[str, DeploymentHandle[Any]],
        versions: DeploymentHandle[Any],
        *replica: Any,
    ) -> None:
        """
        Args:
            settings: Like the next three of the ``Gateway``.
            replica: Arguments of ``Replica``.
        """
        self._gateway = Gateway(settings, models, challengers, versions, here=self)
        await super().__init__(*replica)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self._gateway)
