"""How long a training waits for a checkpoint, and what the checkpoint costs in memory.

    python tests/bench/bench_checkpoint.py [--method logocap] [--config jobs/configs/logocap.yaml] [--rounds 5]

Takes the state of a model and its AdamW: weights, two moments, averaged weights. Writes it while the training waits for
everything, and in the background, where it waits for the copy, in turns. Prints the medians of both, the share that is
waited for, the size of the checkpoint, and the memory that a round adds at its peak. Elapsed time: run it with nothing
beside it. A GPU is used if there is one.
"""

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from posefleet.platform.checkpoints.format import Meta
from posefleet.platform.checkpoints.load import build_model
from posefleet.platform.checkpoints.saver import BackgroundSaver
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.loading import build_experiment, read_yaml, with_settings

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"


class Peak:
    """The most memory that this process has above that at the start, sampled in a thread; as a context manager."""

    def __enter__(self) -> "Peak":
        self.process, self.most = psutil.Process(), 0
        self.before = self.process.memory_info().rss
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._sample)
        self.thread.start()
        return self

    def _sample(self) -> None:
        while not self.over.wait(0.005):
            self.most = max(self.most, self.process.memory_info().rss - self.before)

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="logocap")
    parser.add_argument("--config", type=Path, help="default: jobs/configs/METHOD.yaml")
    parser.add_argument("--backbone", default="", help="timm's name of another backbone, such as hrnet_w48")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where checkpoints are written (default: a temporary folder)")
    args = parser.parse_args()
    settings = read_yaml(args.config or CONFIGS / f"{args.method}.yaml")
    changes: dict[str, Any] = {"model.backbone.pretrained": False, "schema": "coco17"}
    if args.backbone:
        changes["model.backbone.name"] = args.backbone
    experiment = build_experiment(with_settings(settings, changes))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(experiment, pretrained=False).to(device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    raw = {name: value.detach().clone() for name, value in model.named_parameters()}
    state = {"optimizer": optimizer.state_dict(), "raw": raw}
    meta = Meta(experiment=experiment, step=1, position=1, metrics={}, provenance={})
    waited: list[float] = []
    written: list[float] = []
    peaks: dict[str, list[float]] = {"waiting": [], "background": []}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        store = CheckpointStore(folder)
        with BackgroundSaver(store) as saver:
            for _ in range(args.rounds + 1):  # the first one allocates
                with Peak() as peak:
                    start = time.perf_counter()
                    store.save(meta, model.state_dict(), state)
                    written.append(time.perf_counter() - start)
                peaks["waiting"].append(peak.most / 2**20)
                with Peak() as peak:
                    start = time.perf_counter()
                    saver.save(meta, saver.copy(model.state_dict(), "weights"), saver.copy(state, "state"))
                    waited.append(time.perf_counter() - start)
                    saver.wait()
                peaks["background"].append(peak.most / 2**20)
        size = sum(file.stat().st_size for file in Path(store.path_of(1)).iterdir())
    whole, copied = statistics.median(written[1:]), statistics.median(waited[1:])
    memory = {kind: statistics.median(values[1:]) for kind, values in peaks.items()}
    print(f"{args.method} {args.backbone}: {size / 2**20:.0f} MiB on {device}")
    print(f"written in {whole:.2f} s; in the background the training waits {copied:.3f} s ({copied / whole:.1%})")
    print(f"memory: +{memory['waiting']:.0f} MiB while it waits, +{memory['background']:.0f} MiB in the background")


if __name__ == "__main__":
    main()
