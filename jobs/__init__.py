"""What a person submits to the cluster; every file also runs as ``python jobs/<name>.py``."""
