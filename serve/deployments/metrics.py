"""Prometheus metrics of a server; the Ray node that a replica runs on exports them."""

from ray.util.metrics import Counter, Histogram

_MILLISECONDS = [1.0, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000]
_COUNTS = [1.0, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128]
_OKS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99]


class IngressMetrics:
    """Metrics of a replica that handles HTTP requests."""

    def __init__(self) -> None:
        self.refused = Counter(
            "posefleet_refused",
            "Requests that failed, by the reason in the answer; shadow requests count under MODEL.challenger",
            tag_keys=("model", "reason"),
        )
        self.answered = Histogram(
            "posefleet_request_ms",
            "Milliseconds from the start of a request to its poses; requests that failed are not counted",
            boundaries=_MILLISECONDS,
            tag_keys=("model",),
        )


class ModelMetrics:
    """Metrics of a replica that predicts."""

    def __init__(self, model: str) -> None:
        self.stage = Histogram(
            "posefleet_stage_ms",
            "Milliseconds of an image in each stage: decode, queue, predict",
            boundaries=_MILLISECONDS,
            tag_keys=("model", "stage"),
        )
        self.batch = Histogram("posefleet_batch_images", "Images per batch", boundaries=_COUNTS, tag_keys=("model",))
        self.people = Histogram(
            "posefleet_people", "Poses per image above the score threshold", boundaries=_COUNTS, tag_keys=("model",)
        )
        for metric in (self.stage, self.batch, self.people):
            metric.set_default_tags({"model": model})


class ShadowMetrics:
    """Metrics of a challenger's replica, which compares its poses with the champion's."""

    def __init__(self, model: str) -> None:
        self.images = Counter(
            "posefleet_shadow_images", "Images that champion and challenger both predicted", tag_keys=("model",)
        )
        self.oks = Histogram(
            "posefleet_shadow_oks",
            "OKS between the champion's and the challenger's pose of a person whom both found",
            boundaries=_OKS,
            tag_keys=("model",),
        )
        self.only_one = Counter(
            "posefleet_shadow_only",
            "People whom only the champion or only the challenger found",
            tag_keys=("model", "side"),
        )
        self.predict = Histogram(
            "posefleet_shadow_predict_ms",
            "Milliseconds per image in the network: the time of its batch divided by the images in the batch",
            boundaries=_MILLISECONDS,
            tag_keys=("model", "side"),
        )
        for metric in (self.images, self.oks, self.only_one, self.predict):
            metric.set_default_tags({"model": model})
