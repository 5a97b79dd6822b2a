"""A registry with two versions of a model, and images, for servers."""

from pathlib import Path

import numpy as np
import pytest
from small_settings import small_release, small_settings, untrained_checkpoint

from posefleet.data.images import encode_jpeg
from posefleet.data.synthetic.scenes import SceneConfig, render_scene


@pytest.fixture(scope="module")
def registry(people_shards: Path, new_database: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a registry with the model ``pose``: version 1 is champion, 2 challenger; they find different poses."""
    import shutil

    from posefleet.platform.tracking.registry import CHALLENGER, CHAMPION, promote

    folder = tmp_path_factory.mktemp("registry")
    shutil.copy(new_database, folder)
    uri = f"sqlite:///{folder}/mlflow.db"
    settings = small_settings(people_shards, folder)
    for seed, alias in enumerate((CHAMPION, CHALLENGER)):
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
