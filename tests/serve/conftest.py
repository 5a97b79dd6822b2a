"""A registry with two versions of a model, images, and a server of both versions."""

from pathlib import Path

import numpy as np
import pytest
import shared
from server import Server, running_server, wait_for
from small_settings import small_release, small_settings, untrained_checkpoint

from posefleet.data.images import encode_jpeg
from posefleet.data.synthetic.scenes import SceneConfig, render_scene

NOTES = "", "Knows nobody – it was not trained."


@pytest.fixture(scope="session")
def registry(people_shards: Path, new_database: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a registry with the model ``pose``: version 1 is champion, 2 challenger; they find different poses."""
    import shutil

    from posefleet.platform.tracking.registry import CHALLENGER, CHAMPION, promote

    folder = tmp_path_factory.mktemp("registry")
    shutil.copy(new_database, folder)
    uri = f"sqlite:///{folder}/mlflow.db"
    settings = small_settings(people_shards, folder)
    for seed, alias in enumerate((CHAMPION, CHALLENGER)):
        settings["run"]["note"] = NOTES[seed]
        checkpoint = untrained_checkpoint(settings, folder / f"run{seed}", seed=seed, sure=True)
        promote(uri, "pose", small_release(settings, checkpoint, folder / f"release{seed}"), alias)
    return uri


@pytest.fixture(scope="session")
def images() -> list[np.ndarray]:
    """Six images of people, (96, 128, 3) and (128, 96, 3) uint8 RGB."""
    sizes = ((96, 128), (128, 96))
    return [render_scene(SceneConfig(width=(w, w), height=(h, h)), seed)[0] for seed in range(3) for h, w in sizes]


@pytest.fixture(scope="session")
def photographs(images: list[np.ndarray]) -> list[bytes]:
    """``images`` as JPEG files."""
    return [encode_jpeg(image) for image in images]


LIMITS = {"body_bytes": 3_000_000, "image_pixels": 4_000_000, "images": 4, "upload_s": 5.0, "deadline_s": 60.0}


@pytest.fixture(params=["direct", pytest.param("ingress", marks=pytest.mark.slow)])
def handles_http(request: pytest.FixtureRequest) -> str:
    """Which replicas handle HTTP requests: those of the model behind HAProxy, as ``posefleet serve`` starts them, or
    an ingress behind Serve's own proxy."""
    return str(request.param)


@pytest.fixture
def server(registry: str, handles_http: str) -> Server:
    """A server of two models: ``pose`` with two replicas and a challenger, and ``other``, version 2 with fewer people.

    Several files share it: what a test changes, it changes back.
    """
    small = {"warm_up": [[96, 128]], "score_threshold": 0.0}
    pose = {
        "name": "pose",
        "source": "models:/pose@champion",
        "deployment": {"num_replicas": 2},
        "shadow": {"source": "models:/pose@challenger", "share": 1.0},
        **small,
    }
    other = {
        "name": "other",
        "source": "models:/pose/2",
        "deployment": {"num_replicas": 1},
        "max_people": 2,
        **small,
    }
    direct = handles_http == "direct"
    args = {"models": [pose, other], "tracking": registry, "limits": LIMITS, "direct": direct}
    running = shared.use("server", lambda: running_server(args, local=direct), variant=handles_http)
    wait_for(lambda: running.running("pose") == 2, 300)  # /readyz needs only one
    return running
