"""The jobs that people submit to a Ray cluster; each file also runs here as ``python jobs/<name>.py``."""
