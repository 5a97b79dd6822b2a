"""Ray is started beside what handles signals already."""

import signal

import pytest
import ray

from posefleet.data.io.cluster import start_ray


def test_who_handles_sigterm_goes_on_to_do_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own handler would end a training at once, without a last checkpoint."""

    def handle(number: int, frame: object) -> None: ...

    before = signal.signal(signal.SIGTERM, handle)
    try:
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setattr(ray, "init", lambda **options: signal.signal(signal.SIGTERM, signal.SIG_IGN))
        start_ray()
        assert signal.getsignal(signal.SIGTERM) is handle
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        start_ray()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN, "where nobody does, Ray's handler stays"
    finally:
        signal.signal(signal.SIGTERM, before)
