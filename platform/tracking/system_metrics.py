"""Reads the CPU, memory and GPU use of this machine."""

import time
from typing import Any

import psutil


class SystemMetrics:
    """Samples the load and memory of this machine and its GPUs, under the names that MLflow's pages show.

    It replaces MLflow's own monitor, whose thread ends for good at the first request that fails.
    """

    def __init__(self, every: float) -> None:
        self._every = every
        self._next = time.monotonic() + every
        self._gpus: list[Any] | None = None
        self._process = psutil.Process()
        psutil.cpu_percent()  # the first call has no interval to measure

    def sample(self) -> dict[str, float]:
        """Values named ``system/...``; empty if the interval since the last sample is not over, or is 0."""
        if not self._every or time.monotonic() < self._next:
            return {}
        self._next = time.monotonic() + self._every
        memory = psutil.virtual_memory()
        return {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / 1e6,
            "system/system_memory_usage_percentage": memory.percent,
            "system/process_memory_megabytes": self._process.memory_info().rss / 1e6,
        } | self._gpu_sample()

    def _gpu_sample(self) -> dict[str, float]:
        try:
            import pynvml  # comes with the package nvidia-ml-py
        except ImportError:
            return {}
        try:
            if self._gpus is None:
                self._gpus = []  # asked once; stays empty where there is no driver
                pynvml.nvmlInit()
                self._gpus = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
            values: dict[str, float] = {}
            for index, gpu in enumerate(self._gpus):
                memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
                values[f"system/gpu_{index}_memory_usage_megabytes"] = memory.used / 1e6
                values[f"system/gpu_{index}_memory_usage_percentage"] = 100 * memory.used / memory.total
                values[f"system/gpu_{index}_utilization_percentage"] = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu
                values[f"system/gpu_{index}_power_usage_watts"] = pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000
        except pynvml.NVMLError:
            return {}
        return values
