"""What decides the version that is served: late replicas, faults, challengers, reloads."""

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from clock import now, run_at_once

from posefleet.platform.tracking.registry import CHALLENGER as ALIAS
from posefleet.platform.tracking.registry import CHAMPION
from posefleet.serve.deployments import versions
from posefleet.serve.deployments.errors import ErrorDetail
from posefleet.serve.deployments.settings import ServedModel, ServerSettings
from posefleet.serve.deployments.versions import (
    CHALLENGER,
    ReplicaStatus,
    ServedVersion,
    ShadowStats,
    VersionController,
)
from posefleet.serve.http.routes import _model_info

DECIDER: Any = VersionController.func_or_class
"""The class itself, without a Ray Serve round it."""

KEY, RIVAL = "pose", f"pose{CHALLENGER}"
SOURCES = {KEY: f"models:/pose@{CHAMPION}", RIVAL: f"models:/pose@{ALIAS}"}


def version(number: int) -> ServedVersion:
    return ServedVersion(
        checkpoint=f"models:/pose/{number}", name="pose", version=str(number), data=None, ap=0.5, run_id=None, step=6,
        method="smpr", schema="coco17",
    )  # fmt: skip


V1, V2, V3 = map(version, (1, 2, 3))


@dataclasses.dataclass
class Registry:
    """Stands in for the look-up."""

    found: dict[str, ServedVersion | Exception]
    asked: list[str] = dataclasses.field(default_factory=list)

    def __call__(self, source: str, tracking: str) -> ServedVersion:
        self.asked.append(source)
        found = self.found.get(source, ValueError(f"{source}: no such alias"))
        if isinstance(found, Exception):
            raise found
        return found

    def move(self, key: str, to: ServedVersion | Exception) -> None:
        self.found[SOURCES[key]] = to


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Version 1 is champion, nobody is challenger. Reports are quick, and time is that of the tests' own clock."""
    registry = Registry({SOURCES[KEY]: V1})
    monkeypatch.setattr(versions, "_look_up", registry)
    monkeypatch.setattr(versions, "REPORT_S", 0.02)
    monkeypatch.setattr(versions, "_GONE_S", 0.2)
    monkeypatch.setattr(versions, "time", SimpleNamespace(monotonic=now))
    monkeypatch.setattr(asyncio, "to_thread", at_once)
    return registry


async def at_once(look_up: Callable[..., ServedVersion], *arguments: str) -> ServedVersion:
    return look_up(*arguments)


def run(test: Coroutine[Any, Any, None]) -> None:
    run_at_once(asyncio.wait_for(test, 20))


def report(replica: str, serves: ServedVersion | None = None, key: str = KEY, **more: Any) -> ReplicaStatus:
    return ReplicaStatus(model=key, replica=replica, serves=serves, **more)


class Follower:
    """A replica that does what it is told."""

    def __init__(self, decider: Any, name: str, *, refuses: ServedVersion | None = None) -> None:
        self.decider, self.name, self.refuses = decider, name, refuses
        self.serves: ServedVersion | None = None

    async def __aenter__(self) -> "Follower":
        self.serves = await self.decider.report(report(self.name))
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _follow(self) -> None:
        failed: tuple[ServedVersion, str] | None = None
        while True:
            wanted = await self.decider.report(report(self.name, self.serves, failed=failed))
            failed = (wanted, "its weights are damaged") if wanted == self.refuses else None
            if not failed:
                self.serves = wanted
            await asyncio.sleep(versions.REPORT_S)


# ---------------------------------------------------------------------------------------------------- one version


def test_replicas_that_come_late_serve_what_the_others_do(registry: Registry) -> None:
    async def test() -> None:
        decider = DECIDER(SOURCES, "")
        assert await asyncio.gather(*(decider.report(report(name)) for name in "abc")) == [V1, V1, V1]
        registry.move(KEY, V2)
        assert await decider.report(report("late")) == V1
        assert registry.asked == [SOURCES[KEY]], "looked up once for all"
        assert (await decider.models())[KEY] == (SOURCES[KEY], V1, 0)
        await decider.report(report("late", V1))
        assert (await decider.models())[KEY][2] == 1

    run(test())


def test_after_a_fault_the_version_is_the_one_that_replicas_serve(registry: Registry) -> None:
    async def test() -> None:
        registry.move(KEY, V2)
        decider = DECIDER(SOURCES, "")
        assert await decider.report(report("a", V1)) == V1
        assert await decider.report(report("new")) == V1
        assert registry.asked == []

    run(test())


def test_a_registry_that_does_not_answer_stops_the_start_until_it_does(registry: Registry) -> None:
    async def test() -> None:
        registry.move(KEY, RuntimeError("MLflow is away"))
        decider = DECIDER(SOURCES, "")
        with pytest.raises(ValueError, match="MLflow is away"):
            await decider.report(report("a"))
        registry.move(KEY, V1)
        assert await decider.report(report("a")) == V1

    run(test())


def test_a_reload_waits_for_replicas_whose_reports_are_late(registry: Registry) -> None:
    async def test() -> None:
        decider = DECIDER(SOURCES, "")
        await decider.report(report("a", V1))
        await asyncio.sleep(1.1 * versions._GONE_S)
        registry.move(KEY, V2)
        reload = asyncio.create_task(decider.reload(KEY, 5))
        await asyncio.sleep(versions._GONE_S / 2)
        assert await decider.report(report("a", V1)) == V2
        await decider.report(report("a", V1, failed=(V2, "its weights are damaged")))
        found = await reload
        assert isinstance(found, ErrorDetail) and "damaged" in found.detail

    run(test())


def test_a_reload_with_no_replica_is_over_soon(registry: Registry) -> None:
    async def test() -> None:
        decider = DECIDER(SOURCES, "")
        await decider.reload(KEY, 60)
        registry.move(KEY, V2)
        found = await decider.reload(KEY, 60)
        assert (found["before"], found["version"], found["replicas"]) == ("1", "2", 0)

    run(test())


def test_replicas_that_are_gone_are_forgotten(registry: Registry) -> None:
    async def test() -> None:
        decider = DECIDER(SOURCES, "")
        for index in range(50):
            await decider.report(report(f"gone {index}", V1))
        await asyncio.sleep(versions._GONE_S)
        await decider.report(report("here", V1))
        assert list(decider._models[KEY].reports) == ["here"]
        assert (await decider.models())[KEY][2] == 1

    run(test())


def test_a_changed_configuration_looks_everything_up_again(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        decider = DECIDER(SOURCES, "")
        await decider.reconfigure({"release": 1})
        assert registry.asked == [], "not at the start"
        await decider.report(report("a"))
        registry.move(KEY, V2)
        await decider.reconfigure({"release": 1})
        assert await decider.report(report("a", V1)) == V1
        await decider.reconfigure({"release": 2})
        assert await decider.report(report("a", V1)) == V2
        registry.move(KEY, RuntimeError("MLflow is away"))
        with caplog.at_level(logging.CRITICAL, "ray.serve"):
            await decider.reconfigure({"release": 3})
        assert await decider.report(report("a", V2)) == V2, "as before"

    run(test())


# ---------------------------------------------------------------------------------------------------- challengers


def test_a_challenger_is_looked_for_at_the_start_and_on_reloads_only(registry: Registry) -> None:
    async def test() -> None:
        decider = DECIDER(SOURCES, "")
        for _ in range(5):
            assert await decider.report(report("r", key=RIVAL)) is None
        registry.move(RIVAL, V2)
        assert await decider.report(report("r", key=RIVAL)) is None
        assert registry.asked == [SOURCES[RIVAL]]
        await decider.reload(KEY, 1.0)
        assert await decider.report(report("r", key=RIVAL)) == V2

        registry.move(RIVAL, ValueError("no such alias"))
        await decider.reload(KEY, 1.0)
        assert await decider.report(report("r", V2, key=RIVAL)) is None, "what it serves still does not bring it back"

    run(test())


def test_a_registry_that_does_not_answer_takes_no_challenger_away(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        registry.move(RIVAL, V2)
        decider = DECIDER(SOURCES, "")
        assert await decider.report(report("r", key=RIVAL)) == V2
        registry.move(RIVAL, RuntimeError("MLflow is away"))
        await decider.reload(KEY, 1.0)
        assert await decider.report(report("r", V2, key=RIVAL)) == V2
        fresh = DECIDER(SOURCES, "")
        assert await fresh.report(report("r", key=RIVAL)) is None, "a champion can do without one"

    with caplog.at_level(logging.CRITICAL, "ray.serve"):
        run(test())


def sums(champion: ServedVersion, challenger: ServedVersion, images: int) -> ShadowStats:
    return ShadowStats(
        champion=champion.checkpoint,
        challenger=challenger.checkpoint,
        images=images,
        pairs=2 * images,
        oks=1.5 * images,
        only_champion=images,
        champion_ms=10.0 * images,
        challenger_ms=20.0 * images,
    )


def test_comparisons_of_several_replicas_add_up_and_those_of_other_pairs_stay_apart(registry: Registry) -> None:
    async def test() -> None:
        registry.move(RIVAL, V2)
        decider = DECIDER(SOURCES, "")

        async def seen(replica: str, *shadowed: ShadowStats) -> None:
            await decider.report(report(replica, V2, key=RIVAL, shadowed=shadowed))

        await decider.report(report("a", V1))
        assert await decider.shadowed(KEY) is None
        await seen("r", sums(V1, V2, 3))
        await seen("s", sums(V1, V2, 4))
        assert await decider.shadowed(KEY) == sums(V1, V2, 7)

        registry.move(RIVAL, V3)
        await decider.reload(KEY, 1.0)
        assert await decider.shadowed(KEY) is None, "another challenger"
        await seen("r", sums(V1, V2, 1), sums(V1, V3, 5))
        await seen("s", sums(V1, V2, 1))
        assert await decider.shadowed(KEY) == sums(V1, V3, 5), "late reports of the old one change nothing"

    run(test())


def test_of_pairs_long_ago_nothing_is_kept(registry: Registry) -> None:
    async def test() -> None:
        decider = DECIDER(SOURCES, "")
        for number in range(2 * versions._PAIRS):
            both = (sums(V1, version(number), 1), sums(V1, V2, 1))
            await decider.report(report("r", V2, key=RIVAL, shadowed=both))
        assert len(decider._shadowed) == versions._PAIRS
        assert decider._shadowed[KEY, V1.checkpoint, V2.checkpoint].images == 2 * versions._PAIRS + 1
        assert not decider._models[RIVAL].reports["r"][1].shadowed

    run(test())


# ---------------------------------------------------------------------------------------------------- reloads


def test_a_reload_waits_for_all_replicas(registry: Registry) -> None:
    async def test() -> None:
        decider = DECIDER(SOURCES, "")
        async with Follower(decider, "a") as a, Follower(decider, "b") as b:
            registry.move(KEY, V2)
            assert await decider.reload(KEY, 5.0) == {"model": KEY, "before": "1", "version": "2", "replicas": 2}
            assert a.serves == b.serves == V2

    run(test())


def test_a_version_that_one_replica_cannot_load_is_taken_back_from_all(registry: Registry) -> None:
    async def test() -> None:
        decider = DECIDER(SOURCES, "")
        async with Follower(decider, "a") as a, Follower(decider, "b", refuses=V2) as b:
            registry.move(KEY, V2)
            for _ in range(2):  # also when it is tried again
                refused = await decider.reload(KEY, 5.0)
                assert isinstance(refused, ErrorDetail) and refused.reason == "reload_failed"
                assert refused.detail == ("models:/pose/2: its weights are damaged; models:/pose/1 is served as before")
            await asyncio.sleep(3 * versions.REPORT_S)
            assert a.serves == b.serves == V1
            b.refuses = None
            assert (await decider.reload(KEY, 5.0))["version"] == "2"

    run(test())


def test_a_replica_that_does_not_swap_in_time_ends_the_reload(registry: Registry) -> None:
    async def test() -> None:
        decider = DECIDER(SOURCES, "")

        async def stubborn() -> None:
            while True:
                await decider.report(report("stubborn", V1))
                await asyncio.sleep(versions.REPORT_S)

        task = asyncio.create_task(stubborn())
        async with Follower(decider, "a") as a:
            registry.move(KEY, V2)
            start = now()
            refused = await decider.reload(KEY, 0.3)
            assert now() - start < 2
            assert isinstance(refused, ErrorDetail)
            assert "after 0.3 s 1 of 2 replicas do not serve it" in refused.detail
            await asyncio.sleep(3 * versions.REPORT_S)
            assert a.serves == V1
        task.cancel()

    run(test())


def test_a_replica_that_dies_meanwhile_is_not_waited_for(registry: Registry) -> None:
    async def test() -> None:
        decider = DECIDER(SOURCES, "")
        async with Follower(decider, "a"):
            await decider.report(report("dead", V1))
            registry.move(KEY, V2)
            assert (await decider.reload(KEY, 5.0))["replicas"] == 1

    run(test())


def test_a_source_that_is_not_there_changes_nothing(registry: Registry) -> None:
    async def test() -> None:
        decider = DECIDER(SOURCES, "")
        async with Follower(decider, "a") as a:
            registry.move(KEY, ValueError("no such alias"))
            refused = await decider.reload(KEY, 5.0)
            assert refused == ErrorDetail("reload_failed", "no such alias; models:/pose/1 is served as before")
            assert a.serves == V1

    run(test())


def test_two_reloads_at_once_come_one_after_the_other(registry: Registry) -> None:
    async def test() -> None:
        decider = DECIDER(SOURCES, "")
        async with Follower(decider, "a") as a:
            registry.move(KEY, V2)
            first = asyncio.create_task(decider.reload(KEY, 5.0))
            second = asyncio.create_task(decider.reload(KEY, 5.0))
            told = await asyncio.gather(first, second)
            assert [(done["before"], done["version"]) for done in told] == [("1", "2"), ("2", "2")]
            assert a.serves == V2

    run(test())


def test_a_refused_reload_right_after_a_fault_leaves_the_choice_to_the_replicas(registry: Registry) -> None:
    async def test() -> None:
        registry.move(KEY, ValueError("no such alias"))
        decider = DECIDER(SOURCES, "")
        refused = await decider.reload(KEY, 1.0)
        assert isinstance(refused, ErrorDetail) and "nothing is served as before" in refused.detail
        assert await decider.report(report("a", V1)) == V1

    run(test())


def test_no_password_of_a_store_is_told(registry: Registry) -> None:
    async def test() -> None:
        address = "https://me:s3cr3t@host/checkpoint"
        decider = DECIDER({KEY: address}, "")
        registry.found[address] = ValueError("no answer from postgresql://mlflow:s3cr3t@host/mlflow")
        refused = await decider.reload(KEY, 1.0)
        assert isinstance(refused, ErrorDetail) and "from postgresql://mlflow:***@host/mlflow" in refused.detail
        settings = ServerSettings(models=(ServedModel(name="pose", source=address),))
        source, wanted, _ = (await decider.models())[KEY]
        secret = dataclasses.replace(V1, checkpoint=address)
        for known in (wanted, secret):
            info = _model_info(settings.models[0], source, known, settings)
            assert info["source"] == "https://me:***@host/checkpoint" and "s3cr3t" not in str(info)

    run(test())
