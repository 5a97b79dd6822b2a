"""The Serve application that ``serve run serve/config.yaml`` starts: its deployments and how they are wired.

POST /v1/poses                       poses by the default model
POST /v1/models/{name}/poses         poses by one model
GET  /v1/models                      the served models and their versions
POST /v1/models/{name}/reload        resolve the model's source again, swap without a failed request (needs the token)
GET  /v1/models/{name}/shadow        how far champion and challenger agree on live images
GET  /healthz, /readyz               this replica is alive; every model has a replica that serves
GET  /, /docs                        a page to try the models on; the description of the API
"""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve

from posefleet.memory import collect_garbage_rarely
from posefleet.platform.runtime.placement import SERVING, STEADY
from posefleet.serve.deployments.replica import HEALTH, ModelReplica, Replica
from posefleet.serve.deployments.settings import CHALLENGER, ServedModel, ServerSettings
from posefleet.serve.deployments.versions import VersionController
from posefleet.serve.http.gateway import Gateway
from posefleet.serve.http.routes import create_api


def build(args: Mapping[str, Any]) -> serve.Application:
    """Build the application from the ``args`` of a Serve configuration; ``ServerSettings`` lists them.

    Raises:
        pydantic.ValidationError: An argument is unknown, missing or out of its range.
    """
    settings = ServerSettings.model_validate(dict(args))
    sources = {model.name: model.source for model in settings.models}
    sources |= {f"{model.name}{CHALLENGER}": model.shadow.source for model in settings.models if model.shadow}
    versions = VersionController.bind(sources, settings.tracking)  # type: ignore[attr-defined]

    def replicas(
        key: str, model: ServedModel, options: Mapping[str, Any], deployment: Any = ModelReplica, *gateway: Any
    ) -> serve.Application:
        actor_options = {"label_selector": dict(SERVING), **options.get("ray_actor_options", {})}
        bound: serve.Application = deployment.options(name=key, **{**options, "ray_actor_options": actor_options}).bind(
            *gateway, key, model, settings.limits, settings.tracking, versions
        )
        return bound

    models = {
        model.name: replicas(model.name, model, model.deployment)
        for model in (settings.models[1:] if settings.direct else settings.models)
    }
    challengers = {
        model.name: replicas(f"{model.name}{CHALLENGER}", model, model.shadow.deployment)
        for model in settings.models
        if model.shadow
    }
    gateway = {"settings": settings, "models": models, "challengers": challengers, "versions": versions}
    if settings.direct:
        default = settings.models[0]
        return replicas(default.name, default, default.deployment, DirectReplica, gateway)
    ingress: serve.Application = Ingress.options(**settings.ingress).bind(**gateway)  # type: ignore[attr-defined]
    return ingress


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0, "label_selector": dict(STEADY)})
@serve.ingress()
class Ingress:
    """A replica that handles HTTP requests and sends their images to the replicas that predict."""

    def __init__(self, **gateway: Any) -> None:
        """Takes the arguments of :class:`~posefleet.serve.http.gateway.Gateway`."""
        collect_garbage_rarely()
        self._gateway = Gateway(**gateway)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self._gateway)


@serve.deployment(max_ongoing_requests=256, **HEALTH)  # a request counts while its body is still uploaded
@serve.ingress()
class DirectReplica(Replica):
    """A replica of the default model that handles HTTP requests itself, which saves a copy between processes."""

    async def __init__(self, gateway: Mapping[str, Any], *replica: Any) -> None:  # type: ignore[misc]  # Ray awaits it
        """
        Args:
            gateway: Arguments of ``Gateway``; its models are those but the default one.
            replica: Arguments of ``Replica``.
        """
        self._gateway = Gateway(**gateway, local=self)
        await super().__init__(*replica)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self._gateway)
