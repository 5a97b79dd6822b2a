"""Train SMPR on shards: alone, or on a Ray cluster.

python jobs/train_smpr.py --config jobs/configs/smpr_demo.yaml --data.train /data/shards/train --scaling.num_workers 0
ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/train_smpr.py --config jobs/configs/smpr.yaml
"""

from posefleet.data.loading.memory import collect_garbage_rarely


def main() -> int:
    """Exit status: 0 finished, 1 failed, 2 bad arguments, 130 stopped on request."""
    collect_garbage_rarely()
    from posefleet.platform.config.cli import parse_experiment  # imports torch

    experiment = parse_experiment("smpr", description="Train SMPR, single-stage multi-person pose regression.")
    from posefleet.platform.training.launch import train  # Ray and MLflow take seconds, and --help needs neither

    return train(experiment)


if __name__ == "__main__":
    raise SystemExit(main())
