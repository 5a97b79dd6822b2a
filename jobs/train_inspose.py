"""Train InsPose on shards: in this process or on a Ray cluster.

python jobs/train_inspose.py --config jobs/configs/inspose_demo.yaml --data.train SHARDS --scaling.num_workers 0
ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/train_inspose.py \\
    --config jobs/configs/inspose.yaml
"""

from posefleet.jobs.train import train_method

if __name__ == "__main__":
    raise SystemExit(train_method("inspose"))
