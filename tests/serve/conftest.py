"""Registered models and pictures for servers."""

from pathlib import Path

import numpy as np
import pytest
from small_settings import small_release, small_settings, untrained_checkpoint

from posefleet.data.images import encode_jpeg
from posefleet.data.synthetic.scenes import SceneConfig, render_scene


@pytest.fixture(scope="module")
def registry(people_shards: Path, new_database: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a store with a model ``pose``: version 1 is champion, 2 challenger; they find different poses."""
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
def pictures() -> list[np.ndarray]:
    """Six pictures of people, wide and tall."""
    sizes = ((96, 128), (128, 96))
    return [render_scene(SceneConfig(width=(w, w), height=(h, h)), seed)[0] for seed in range(3) for h, w in sizes]


@pytest.fixture(scope="session")
def photographs(pictures: list[np.ndarray]) -> list[bytes]:
    """The same as JPEG."""
    return [encode_jpeg(picture) for picture in pictures]
