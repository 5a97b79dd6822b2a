"""What a server counts, exported to Prometheus by the Ray node that a replica is on."""

from ray.util.metrics import Counter, Histogram

_MILLISECONDS = [1.0, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000]
_FEW = [1.0, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128]
_SHARES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99]


class IngressMetrics:
    """Of a replica that speaks HTTP."""

    def __init__(self) -> None:
        self.refused = Counter(
            "posefleet_refused", "Requests that got no poses, by reason (see problems.py)", tag_keys=("model", "reason")
        )
        self.answered = Histogram(
            "posefleet_request_ms", "Milliseconds of answered requests", boundaries=_MILLISECONDS, tag_keys=("model",)
        )


class ModelMetrics:
    """Of a replica that predicts."""

    def __init__(self, model: str) -> None:
        self.stage = Histogram(
            "posefleet_stage_ms",
            "Milliseconds of an image in each stage: decode, queue, predict",
            boundaries=_MILLISECONDS,
            tag_keys=("model", "stage"),
        )
        self.batch = Histogram("posefleet_batch_images", "Images of a batch", boundaries=_FEW, tag_keys=("model",))
        self.people = Histogram(
            "posefleet_people", "Poses of an image above the score threshold", boundaries=_FEW, tag_keys=("model",)
        )
        for metric in (self.stage, self.batch, self.people):
            metric.set_default_tags({"model": model})


class ShadowMetrics:
    """Of a replica of a challenger."""

    def __init__(self, model: str) -> None:
        self.images = Counter("posefleet_shadow_images", "Images that both saw", tag_keys=("model",))
        self.oks = Histogram(
            "posefleet_shadow_oks",
            "OKS between the champion's and the challenger's pose of a person",
            boundaries=_SHARES,
            tag_keys=("model",),
        )
        self.alone = Counter("posefleet_shadow_only", "People whom only one of them found", tag_keys=("model", "side"))
        self.predict = Histogram(
            "posefleet_shadow_predict_ms",
            "Milliseconds of an image: those of its batch, divided by the images in it",
            boundaries=_MILLISECONDS,
            tag_keys=("model", "side"),
        )
        for metric in (self.images, self.oks, self.alone, self.predict):
            metric.set_default_tags({"model": model})
