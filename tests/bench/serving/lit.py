"""The same ``Predictor`` behind LitServe, as its documentation does it.

lit.py CHECKPOINT PORT BATCH WAIT_MS THREADS WORKERS
"""

import sys
from typing import Any

import litserve
import torch
from fastapi import UploadFile

from posefleet.data.images import decode_untrusted
from posefleet.memory import keep_freed_memory
from posefleet.platform.inference.predictor import Predictor, describe_poses


class PoseAPI(litserve.LitAPI):
    def __init__(self, checkpoint: str, threads: int, batch: int, wait_ms: float) -> None:
        super().__init__(max_batch_size=batch, batch_timeout=wait_ms / 1e3)
        self._checkpoint, self._threads = checkpoint, threads

    def setup(self, device: str) -> None:
        torch.set_num_threads(self._threads)
        keep_freed_memory()
        self._predictor = Predictor.from_checkpoint(self._checkpoint)

    def decode_request(self, request: UploadFile) -> Any:
        image = decode_untrusted(request.file.read(), most_pixels=50_000_000)
        return image.shape, self._predictor.prepare(image)

    def predict(self, x: Any) -> Any:
        if isinstance(x, tuple):  # it does not batch batches of one
            return x[0], self._predictor.predict_prepared([x[1]])[0]
        shapes, views = zip(*x, strict=True)
        return list(zip(shapes, self._predictor.predict_prepared(views), strict=True))

    def encode_response(self, output: Any) -> Any:
        (height, width, _), poses = output
        return {"width": width, "height": height, "poses": describe_poses(poses, self._predictor.schema)}


if __name__ == "__main__":
    checkpoint, port, batch, wait_ms, threads, workers = sys.argv[1:]
    api = PoseAPI(checkpoint, int(threads), int(batch), float(wait_ms))
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=int(workers), timeout=120)
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="warning")
