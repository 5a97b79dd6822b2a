"""Train LOGO-CAP on shards: alone, or on a Ray cluster.

python jobs/train_logocap.py --config jobs/configs/logocap_demo.yaml --scaling.num_workers 0
ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/train_logocap.py \\
    --config jobs/configs/logocap.yaml
"""

from posefleet.data.loading.memory import collect_garbage_rarely


def main() -> int:
    """Exit status: 0 finished, 1 failed, 2 bad arguments, 130 stopped on request."""
    collect_garbage_rarely()
    from posefleet.platform.config.cli import parse_experiment  # imports torch

    experiment = parse_experiment("logocap", description="Train LOGO-CAP, local-global contextual adaptation of poses.")
    from posefleet.platform.training.launch import train  # Ray and MLflow take seconds, and --help needs neither

    return train(experiment)


if __name__ == "__main__":
    raise SystemExit(main())
