"""The decoder of a replica: hostile images beside ordinary ones, budgets of pixels, clients that leave."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import hostile_images
import numpy as np
import pytest
from pydantic import ValidationError

from posefleet.data.errors import DataError
from posefleet.data.image_limits import ImageLimits
from posefleet.data.images import encode_image
from posefleet.serve.deployments import decoding
from posefleet.serve.deployments.decoding import Decoder, PixelBudget
from posefleet.serve.deployments.errors import ErrorDetail
from posefleet.serve.deployments.settings import Limits

PIXELS = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
PNG = encode_image(PIXELS, ".png")
AREA = 30 * 40

UNBOUNDED = {"scans": 10**6, "scanned_pixels": 10**15, "parts": 10**9}
"""Limits of structures that let everything through: a trick that they do not know."""


def forever() -> float:
    return time.monotonic() + 600


def run(test: Callable[[Decoder], Awaitable[Any]], **limits: Any) -> Any:
    async def main() -> Any:
        decoder = Decoder(Limits.model_validate(limits), threads=2)
        try:
            return await test(decoder)
        finally:
            decoder.close()

    return asyncio.run(main())


@pytest.mark.parametrize("name", ["progressive JPEG of empty scans", "PNG of many texts", "GIF of many comments"])
def test_a_hostile_image_is_refused_with_a_reason(name: str) -> None:
    async def test(decoder: Decoder) -> Any:
        started = time.process_time()
        result = await decoder.decode(hostile_images.REFUSED[name](), np.mean, deadline=forever())
        return result, time.process_time() - started, decoder.budget.used

    result, seconds, used = run(test)
    assert result.reason == "too_costly" and "are more than the" in result.detail
    assert seconds < 2 and used == 0


def test_hostile_images_that_nobody_knows_hold_up_only_each_other() -> None:
    evil = hostile_images.empty_scans(9_000)  # 55 CPU seconds

    async def test(decoder: Decoder) -> Any:
        hostile = [asyncio.create_task(decoder.decode(evil, np.mean, deadline=forever())) for _ in range(2)]
        await asyncio.sleep(0.5)
        for _ in range(10):
            image, mean, pixels = await decoder.decode(PNG, np.mean, deadline=forever())
            assert np.array_equal(image, PIXELS) and mean == PIXELS.mean()
            decoder.budget.release(pixels)
        assert not any(task.done() for task in hostile), "ordinary images did not wait for them"
        decoder.check_health()
        return await asyncio.gather(*hostile), decoder.budget.used

    results, used = run(test, structure=UNBOUNDED, decode_cpu_s=3.0)
    assert [result.reason for result in results] == ["too_costly"] * 2 and used == 0
    assert "decoding it took more" in results[0].detail


def test_unusual_images_are_decoded_too() -> None:
    async def test(decoder: Decoder) -> Any:
        image, _, pixels = await decoder.decode(hostile_images.apng(3, 50), np.mean, deadline=forever())
        decoder.budget.release(pixels)
        late = await decoder.decode(hostile_images.apng(3, 50), np.mean, deadline=time.monotonic() - 1)
        return image.shape, late.reason, decoder.budget.used

    assert run(test) == ((50, 50, 3), "deadline", 0)


def test_images_beyond_the_budget_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(decoder: Decoder) -> None:
        held = [await decoder.decode(PNG, np.mean, deadline=forever()) for _ in range(2)]
        monkeypatch.setattr(decoding, "decode_untrusted", None)  # must not be called
        refused = await decoder.decode(PNG, np.mean, deadline=forever())
        assert refused.reason == "busy" and f"{2 * AREA:,} pixels are in work" in refused.detail
        large = await decoder.decode(hostile_images.png(size=(100, 100)), np.mean, deadline=forever())
        assert large.reason == "too_many_pixels" and decoder.budget.used == 2 * AREA
        monkeypatch.undo()
        decoder.budget.release(held[0][2])
        assert isinstance(await decoder.decode(PNG, np.mean, deadline=forever()), tuple)

    run(test, image_pixels=AREA, replica_pixels=2 * AREA)


@pytest.mark.parametrize("error", [DataError("damaged"), MemoryError(), RuntimeError("a fault")])
def test_pixels_are_released_after_every_error(error: Exception) -> None:
    def fails(_: np.ndarray) -> None:
        raise error

    async def test(decoder: Decoder) -> int:
        for data in (PNG, hostile_images.apng(2, 20)):
            try:
                assert isinstance(await decoder.decode(data, fails, deadline=forever()), ErrorDetail)
            except (MemoryError, RuntimeError):
                assert not isinstance(error, DataError)
        assert isinstance(await decoder.decode(PNG[:200], fails, deadline=forever()), ErrorDetail)
        return decoder.budget.used

    assert run(test) == 0


def test_the_pixels_of_a_client_that_left_are_in_use_until_its_thread_is_done() -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()

    def wait(_: np.ndarray) -> None:
        begun.release()
        go_on.wait(120)

    async def test(decoder: Decoder) -> None:
        tasks = [asyncio.create_task(decoder.decode(PNG, wait, deadline=forever())) for _ in range(3)]
        for _ in range(2):  # both threads are at work: a call that only waits for one can be withdrawn
            await asyncio.to_thread(begun.acquire, timeout=120)
        while decoder.budget.used < 3 * AREA:
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert decoder.budget.used == 2 * AREA, "the third was still waiting for a thread"
        go_on.set()
        while decoder.budget.used:
            await asyncio.sleep(0.01)

    run(test)


def test_budgets_and_limits_are_checked() -> None:
    with pytest.raises(ValidationError, match="replica_pixels 10 must be at least image_pixels"):
        Limits(image_pixels=100, replica_pixels=10)
    with pytest.raises(ValidationError, match="scans 0 must be at least 1"):
        Limits.model_validate({"structure": {"scans": 0}})
    with pytest.raises(ValidationError, match="scnas"):
        Limits.model_validate({"structure": {"scnas": 3}})
    assert Limits.model_validate({"structure": {"scans": 3}}).structure == ImageLimits(scans=3)
    budget = PixelBudget(10)
    assert budget.reserve(10) and not budget.reserve(1)
    budget.release(10)
    assert budget.reserve(4) and budget.used == 4
