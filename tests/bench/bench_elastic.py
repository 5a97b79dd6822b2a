"""A run whose nodes go and come, beside the same run undisturbed: losses, the number of workers, what was done again.

    python tests/bench/bench_elastic.py --out docs/elastic.png     # two cores, a few minutes

Both runs start with two workers, each on a node of one CPU. Of the second, one node is killed and some steps later
another one started. Prints how far losses and weights of the two are apart, and draws them.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path += [str(TESTS / "support"), str(TESTS / "cluster")]

from elastic_nodes import ElasticRun, nodes, power_cut_and_new_node  # noqa: E402
from elastic_record import Step, last_taken  # noqa: E402
from small_settings import small_settings  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("elastic.png"), help="picture to write")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="elastic-") as folder:
        root = Path(folder)
        shards = _shards(root, options.images)
        runs = {name: ElasticRun(_settings(shards, root / "runs", name, options.epochs), root / name) for name in NAMES}
        with nodes() as cluster:
            first = cluster.add()
            cluster.add()
            undisturbed, elastic = runs.values()
            assert undisturbed.train() == 0
            middle = options.images * options.epochs // 4 // 3
            assert elastic.train(lambda: power_cut_and_new_node(cluster, elastic, first, step=middle)) == 0
        steps = {name: last_taken(run.parts) for name, run in runs.items()}
        _tell(steps, runs)
        _draw(steps, options.out)


NAMES = ("undisturbed", "a node goes, another comes")


def _shards(root: Path, count: int) -> Path:
    from posefleet.data.coco.source import find_source
    from posefleet.data.schemas.shipped import COCO17
    from posefleet.data.shards.build import shard_coco
    from posefleet.data.synthetic.dataset import write_dataset
    from posefleet.data.synthetic.scenes import SceneConfig

    config = SceneConfig(width=(96, 128), height=(96, 128))
    for split, images, seed in (("train2017", count, 1), ("val2017", 8, 2)):
        write_dataset(root / "people", split, images, config, seed=seed, workers=1)
        source = find_source(str(root / "people"), split)
        shard_coco(source, str(root / "shards" / split), COCO17, parallel=False)
    return root / "shards"


def _settings(shards: Path, storage: Path, name: str, epochs: int) -> dict[str, Any]:
    settings = small_settings(shards, storage)
    settings["data"] |= {"batch_size": 2, "eval": ""}
    settings["train"] |= {"epochs": epochs, "log_every": 5, "checkpoint_every": 20}
    settings["scaling"] = {"num_workers": 2, "min_workers": 1, "grow_every": 3}
    settings["run"]["name"] = name.replace(", ", "-").replace(" ", "-")
    return settings


def _tell(steps: dict[str, dict[int, Step]], runs: dict[str, ElasticRun]) -> None:
    undisturbed, elastic = steps.values()
    assert [step.images for step in undisturbed.values()] == [step.images for step in elastic.values()]
    apart = [abs(a.loss - b.loss) / a.loss for a, b in zip(undisturbed.values(), elastic.values(), strict=True)]
    print(f"{len(elastic)} steps, the same images in each")
    print(f"steps with one worker: {sum(step.workers == 1 for step in elastic.values())}")
    print(f"steps taken again: {sum(step.times - 1 for step in elastic.values())}")
    print(f"losses apart by: median {sorted(apart)[len(apart) // 2]:.1e}, at most {max(apart):.1e} of the loss")
    for name, run in runs.items():
        parts = run.parts
        print(f"{name}: {parts[-1].time - parts[0].time:.0f} s from the first step to the last")


def _draw(steps: dict[str, dict[int, Step]], out: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(8, 4.5), height_ratios=(3, 1), layout="constrained")
    for (name, taken), style in zip(steps.items(), ({"linewidth": 3, "alpha": 0.4}, {"linewidth": 1}), strict=True):
        above.plot(list(taken), [step.loss for step in taken.values()], label=name, **style)
        below.step(list(taken), [step.workers for step in taken.values()], where="mid", **style)
    above.set(ylabel="loss")
    above.legend()
    below.set(xlabel="optimiser step", ylabel="workers", ylim=(0, 2.4), yticks=(0, 1, 2))
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    main()
