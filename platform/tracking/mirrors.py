"""Shows a run in TensorBoard and in Weights & Biases, too. MLflow stays what the rest of the platform reads.

A mirror gets the metrics and pictures that MLflow gets. If it fails, it is left out with a warning, and training goes
on. A run that resumes goes on in its mirrors; points after the checkpoint it resumed from are logged again.
"""

import importlib.util
import logging
import netrc
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np

_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
_PICTURES = (".png", ".jpg", ".jpeg")

log = logging.getLogger(__name__)


class Mirror(Protocol):
    """Where a run is shown besides MLflow."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add one point to each metric."""
        ...

    def log_picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Add a picture, (H, W, 3) uint8 RGB."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class Mirrors:
    """The mirrors of a run as one, which never raises.

    Args:
        opened: Name -> opens the mirror.
    """

    def __init__(self, opened: Mapping[str, Callable[[], Mirror]]) -> None:
        self._mirrors: dict[str, Mirror] = {}
        self._step = 0
        for name, open_mirror in opened.items():
            self._tried(name, partial(self._open, name, open_mirror))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add one point to each metric at training step ``step``."""
        self._step = step
        self._all(lambda mirror: mirror.log_metrics(metrics, step))

    def log_bytes(self, name: str, data: bytes) -> None:
        """Show a file, if it is a picture."""
        if not self._mirrors or not name.endswith(_PICTURES):
            return
        from posefleet.data.images import decode_image

        pixels = decode_image(data, what=name)
        self._all(lambda mirror: mirror.log_picture(name, pixels, self._step))

    def close(self) -> None:
        """Write what is left."""
        self._all(lambda mirror: mirror.close())
        self._mirrors.clear()

    def _all(self, call: Callable[[Mirror], None]) -> None:
        for name, mirror in list(self._mirrors.items()):
            self._tried(name, partial(call, mirror))

    def _open(self, name: str, open_mirror: Callable[[], Mirror]) -> None:
        self._mirrors[name] = open_mirror()

    def _tried(self, name: str, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # whatever such a library raises must not end a training
            self._mirrors.pop(name, None)
            log.warning("%s does not get this run any more: %s: %s", name, type(error).__name__, error)


def check_mirrors(names: Sequence[str], folder: str) -> None:
    """Check that a run in ``folder`` can have these mirrors.

    Raises:
        ValueError: A package is not installed, or TensorBoard would write to a bucket.
    """
    for name in names:
        package = _PACKAGES[name]
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"run.mirrors {name} needs the package {package}: pip install {package}")
    if "tensorboard" in names and "://" in folder:
        raise ValueError(f"run.mirrors tensorboard writes to a disk, and the run is in {folder}; use wandb, or MLflow")


def open_mirrors(
    names: Sequence[str], folder: str, *, run_id: str, project: str, settings: Mapping[str, Any]
) -> Mirrors:
    """The mirrors of a run.

    Args:
        names: Which.
        folder: Of the run; its last part is the run's name. Events are in its subfolders ``tensorboard`` and ``wandb``.
        run_id: Id that a resumed run has again.
        project: Project of Weights & Biases.
        settings: Of the run, without secrets.
    """
    name = folder.rstrip("/").rpartition("/")[2]
    ways: dict[str, Callable[[], Mirror]] = {
        "tensorboard": lambda: TensorBoard(f"{folder}/tensorboard"),
        "wandb": lambda: WeightsAndBiases(folder, name, run_id, project, settings),
    }
    return Mirrors({which: ways[which] for which in names})


class TensorBoard:
    """Event files that ``tensorboard --logdir RUNS`` shows."""

    def __init__(self, folder: str) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(folder, flush_secs=10)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """See :class:`Mirror`."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def log_picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        """See :class:`Mirror`."""
        self._writer.add_image(_without_step(name), pixels, step, dataformats="HWC")

    def close(self) -> None:
        """See :class:`Mirror`."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases: online where an API key is known, else files that ``wandb sync`` sends."""

    def __init__(self, folder: str, name: str, run_id: str, project: str, settings: Mapping[str, Any]) -> None:
        import wandb

        self._wandb = wandb
        home = folder if "://" not in folder else None
        self._run = wandb.init(
            project=project, name=name, id=run_id, resume="allow", dir=home, config=dict(settings),
            mode=wandb_mode(), settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")  # W&B's own counter cannot go back when a run resumes

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """See :class:`Mirror`."""
        self._run.log({**metrics, "step": step})

    def log_picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        """See :class:`Mirror`."""
        self._run.log({_without_step(name): self._wandb.Image(pixels), "step": step})

    def close(self) -> None:
        """See :class:`Mirror`."""
        self._run.finish()


def wandb_mode() -> Literal["online", "offline", "disabled", "shared"]:
    """``$WANDB_MODE``, else online where an API key is known: a training that nobody watches must not ask for one."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode  # type: ignore[return-value]  # wandb checks it
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    try:
        return "online" if netrc.netrc().authenticators("api.wandb.ai") else "offline"
    except (OSError, netrc.NetrcParseError):
        return "offline"


def _without_step(name: str) -> str:
    """``evaluation/step-0000812/overlays.jpg`` -> ``evaluation/overlays``: one name for the pictures of all steps."""
    return re.sub(r"step-\d+/", "", name.rpartition(".")[0])
