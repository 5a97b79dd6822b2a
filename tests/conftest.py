"""Fixtures that several folders of tests share."""

from pathlib import Path

import pytest

COCO_MINI = Path(__file__).resolve().parents[2] / "shared" / "coco-mini"


@pytest.fixture(scope="session")
def coco_mini() -> Path:
    """A small cut of COCO 2017 in COCO's own layout; tests that want it skip where it is not."""
    if not COCO_MINI.is_dir():
        pytest.skip(f"no real COCO images at {COCO_MINI}")
    return COCO_MINI
