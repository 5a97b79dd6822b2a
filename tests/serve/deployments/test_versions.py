"""The version controller: late replicas, faults, challengers, reloads."""

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from clock import now, run_at_once

from posefleet.data.schemas.shipped import COCO17
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
from posefleet.serve.http.routes import describe_model

CONTROLLER: Any = VersionController.func_or_class
"""The class itself, without Ray Serve around it."""

KEY, RIVAL = "pose", f"pose{CHALLENGER}"
SOURCES = {KEY: f"models:/pose@{CHAMPION}", RIVAL: f"models:/pose@{ALIAS}"}


def version(number: int) -> ServedVersion:
    return ServedVersion(
        checkpoint=f"models:/pose/{number}", name="pose", version=str(number), data=None, ap=0.5, run_id=None, step=6,
        method="smpr", schema=COCO17,
    )  # fmt: skip


V1, V2, V3 = map(version, (1, 2, 3))


@dataclasses.dataclass
class Registry:
    """Stands in for the resolution of sources."""

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
    """Version 1 is champion, there is no challenger. Reports are frequent, and time is that of the tests' own clock."""
    registry = Registry({SOURCES[KEY]: V1})
    monkeypatch.setattr(versions, "_resolve_source", registry)
    monkeypatch.setattr(versions, "REPORT_S", 0.02)
    monkeypatch.setattr(versions, "_GONE_S", 0.2)
    monkeypatch.setattr(versions, "time", SimpleNamespace(monotonic=now))
    monkeypatch.setattr(asyncio, "to_thread", at_once)
    return registry


async def at_once(resolve: Callable[..., ServedVersion], *arguments: str) -> ServedVersion:
    return resolve(*arguments)


def run(test: Coroutine[Any, Any, None]) -> None:
    run_at_once(asyncio.wait_for(test, 20))


def report(replica: str, serving: ServedVersion | None = None, key: str = KEY, **more: Any) -> ReplicaStatus:
    return ReplicaStatus(model=key, replica=replica, serving=serving, **more)


class Follower:
    """A replica that serves what the controller says, but for a version that it cannot load."""

    def __init__(self, controller: Any, name: str, *, broken: ServedVersion | None = None) -> None:
        self.controller, self.name, self.broken = controller, name, broken
        self.serving: ServedVersion | None = None

    async def __aenter__(self) -> "Follower":
        self.serving = await self.controller.report(report(self.name))
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _follow(self) -> None:
        failed: tuple[ServedVersion, str] | None = None
        while True:
            target = await self.controller.report(report(self.name, self.serving, failed=failed))
            failed = (target, "its weights are damaged") if target == self.broken else None
            if not failed:
                self.serving = target
            await asyncio.sleep(versions.REPORT_S)


# ---------------------------------------------------------------------------------------------------- one version


def test_a_replica_that_starts_late_serves_the_version_of_the_others(registry: Registry) -> None:
    async def test() -> None:
        controller = CONTROLLER(SOURCES, "")
        assert await asyncio.gather(*(controller.report(report(name)) for name in "abc")) == [V1, V1, V1]
        registry.move(KEY, V2)
        assert await controller.report(report("late")) == V1
        assert registry.asked == [SOURCES[KEY]], "resolved once for all"
        assert (await controller.models())[KEY] == (SOURCES[KEY], V1, 0, None)
        await controller.report(report("late", V1))
        assert (await controller.models())[KEY][2] == 1

    run(test())


def test_an_answer_is_held_until_there_is_something_to_do(registry: Registry) -> None:
    async def test() -> None:
        controller = CONTROLLER(SOURCES, "")
        assert await controller.report(report("a"), 9.0) == V1, "a replica that serves another version is told at once"
        started = now()
        assert await controller.report(report("a", V1), 2.0) == V1 and now() - started == pytest.approx(2.0)
        assert await controller.report(report("a", V2, failed=(V1, "damaged")), 2.0) == V1
        assert now() - started == pytest.approx(4.0), "nothing new for one that cannot load it"
        registry.move(KEY, V2)
        held = asyncio.create_task(controller.report(report("a", V1), 9.0))
        await asyncio.sleep(0.5)
        reload = asyncio.create_task(controller.reload(KEY, 5.0))
        assert await held == V2 and now() - started == pytest.approx(4.5)
        await controller.report(report("a", V2))
        assert (await reload)["version"] == V2.version

    run(test())


def test_a_restarted_controller_keeps_the_version_that_replicas_serve(registry: Registry) -> None:
    async def test() -> None:
        registry.move(KEY, V2)
        controller = CONTROLLER(SOURCES, "")
        assert await controller.report(report("a", V1)) == V1
        assert await controller.report(report("new")) == V1
        assert registry.asked == []

    run(test())


def test_the_first_report_fails_until_the_registry_answers(registry: Registry) -> None:
    async def test() -> None:
        registry.move(KEY, RuntimeError("MLflow is away"))
        controller = CONTROLLER(SOURCES, "")
        with pytest.raises(ValueError, match="MLflow is away"):
            await controller.report(report("a"))
        registry.move(KEY, V1)
        assert await controller.report(report("a")) == V1

    run(test())


def test_a_reload_waits_for_replicas_whose_reports_are_late(registry: Registry) -> None:
    async def test() -> None:
        controller = CONTROLLER(SOURCES, "")
        await controller.report(report("a", V1))
        await asyncio.sleep(1.1 * versions._GONE_S)
        registry.move(KEY, V2)
        reload = asyncio.create_task(controller.reload(KEY, 5))
        await asyncio.sleep(versions._GONE_S / 2)
        assert await controller.report(report("a", V1)) == V2
        await controller.report(report("a", V1, failed=(V2, "its weights are damaged")))
        found = await reload
        assert isinstance(found, ErrorDetail) and "damaged" in found.detail

    run(test())


def test_a_reload_without_replicas_ends_soon(registry: Registry) -> None:
    async def test() -> None:
        controller = CONTROLLER(SOURCES, "")
        await controller.reload(KEY, 60)
        registry.move(KEY, V2)
        found = await controller.reload(KEY, 60)
        assert (found["before"], found["version"], found["replicas"]) == ("1", "2", 0)

    run(test())


def test_replicas_that_are_gone_are_forgotten(registry: Registry) -> None:
    async def test() -> None:
        controller = CONTROLLER(SOURCES, "")
        for index in range(50):
            await controller.report(report(f"gone {index}", V1))
        await asyncio.sleep(versions._GONE_S)
        await controller.report(report("here", V1))
        assert list(controller._models[KEY].reports) == ["here"]
        assert (await controller.models())[KEY][2] == 1

    run(test())


def test_a_changed_user_config_resolves_every_source_again(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        controller = CONTROLLER(SOURCES, "")
        await controller.reconfigure({"release": 1})
        assert registry.asked == [], "not at the start"
        await controller.report(report("a"))
        registry.move(KEY, V2)
        await controller.reconfigure({"release": 1})
        assert await controller.report(report("a", V1)) == V1
        await controller.reconfigure({"release": 2})
        assert await controller.report(report("a", V1)) == V2
        registry.move(KEY, RuntimeError("MLflow is away"))
        with caplog.at_level(logging.CRITICAL, "ray.serve"):
            await controller.reconfigure({"release": 3})
        assert await controller.report(report("a", V2)) == V2, "as before"

    run(test())


# ---------------------------------------------------------------------------------------------------- challengers


def test_a_challenger_is_resolved_at_the_start_and_on_reloads_only(registry: Registry) -> None:
    async def test() -> None:
        controller = CONTROLLER(SOURCES, "")
        for _ in range(5):
            assert await controller.report(report("r", key=RIVAL)) is None
        registry.move(RIVAL, V2)
        assert await controller.report(report("r", key=RIVAL)) is None
        assert registry.asked == [SOURCES[RIVAL]]
        await controller.reload(KEY, 1.0)
        assert await controller.report(report("r", key=RIVAL)) == V2

        registry.move(RIVAL, ValueError("no such alias"))
        await controller.reload(KEY, 1.0)
        assert await controller.report(report("r", V2, key=RIVAL)) is None, "its report does not bring it back"

    run(test())


def test_a_registry_that_does_not_answer_leaves_the_challenger_in_place(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        registry.move(RIVAL, V2)
        controller = CONTROLLER(SOURCES, "")
        assert await controller.report(report("r", key=RIVAL)) == V2
        registry.move(RIVAL, RuntimeError("MLflow is away"))
        await controller.reload(KEY, 1.0)
        assert await controller.report(report("r", V2, key=RIVAL)) == V2
        fresh = CONTROLLER(SOURCES, "")
        assert await fresh.report(report("r", key=RIVAL)) is None, "a champion needs no challenger"

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


def test_statistics_of_replicas_add_up_and_those_of_other_pairs_stay_apart(registry: Registry) -> None:
    async def test() -> None:
        registry.move(RIVAL, V2)
        controller = CONTROLLER(SOURCES, "")

        async def compared(replica: str, *stats: ShadowStats) -> None:
            await controller.report(report(replica, V2, key=RIVAL, shadow_stats=stats))

        await controller.report(report("a", V1))
        assert await controller.shadow_stats(KEY) is None
        await compared("r", sums(V1, V2, 3))
        await compared("s", sums(V1, V2, 4))
        assert await controller.shadow_stats(KEY) == sums(V1, V2, 7)

        registry.move(RIVAL, V3)
        await controller.reload(KEY, 1.0)
        assert await controller.shadow_stats(KEY) is None, "another challenger"
        await compared("r", sums(V1, V2, 1), sums(V1, V3, 5))
        await compared("s", sums(V1, V2, 1))
        assert await controller.shadow_stats(KEY) == sums(V1, V3, 5), "late reports of the old one change nothing"

    run(test())


def test_only_the_latest_pairs_are_kept(registry: Registry) -> None:
    async def test() -> None:
        controller = CONTROLLER(SOURCES, "")
        for number in range(2 * versions._MAX_PAIRS):
            both = (sums(V1, version(number), 1), sums(V1, V2, 1))
            await controller.report(report("r", V2, key=RIVAL, shadow_stats=both))
        assert len(controller._shadow_stats) == versions._MAX_PAIRS
        assert controller._shadow_stats[KEY, V1.checkpoint, V2.checkpoint].images == 2 * versions._MAX_PAIRS + 1
        assert not controller._models[RIVAL].reports["r"][1].shadow_stats

    run(test())


# ---------------------------------------------------------------------------------------------------- reloads


def test_a_reload_waits_for_all_replicas(registry: Registry) -> None:
    async def test() -> None:
        controller = CONTROLLER(SOURCES, "")
        async with Follower(controller, "a") as a, Follower(controller, "b") as b:
            registry.move(KEY, V2)
            assert await controller.reload(KEY, 5.0) == {"model": KEY, "before": "1", "version": "2", "replicas": 2}
            assert a.serving == b.serving == V2

    run(test())


def test_all_replicas_go_back_if_one_cannot_load_a_version(registry: Registry) -> None:
    async def test() -> None:
        controller = CONTROLLER(SOURCES, "")
        async with Follower(controller, "a") as a, Follower(controller, "b", broken=V2) as b:
            registry.move(KEY, V2)
            for _ in range(2):  # the second time: a failed version can be tried again
                rejected = await controller.reload(KEY, 5.0)
                assert isinstance(rejected, ErrorDetail) and rejected.reason == "reload_failed"
                assert rejected.detail == ("models:/pose/2: its weights are damaged; still serving models:/pose/1")
            await asyncio.sleep(3 * versions.REPORT_S)
            assert a.serving == b.serving == V1
            b.broken = None
            assert (await controller.reload(KEY, 5.0))["version"] == "2"

    run(test())


def test_a_replica_that_does_not_swap_in_time_fails_the_reload(registry: Registry) -> None:
    async def test() -> None:
        controller = CONTROLLER(SOURCES, "")

        async def stubborn() -> None:
            while True:
                await controller.report(report("stubborn", V1))
                await asyncio.sleep(versions.REPORT_S)

        task = asyncio.create_task(stubborn())
        async with Follower(controller, "a") as a:
            registry.move(KEY, V2)
            start = now()
            rejected = await controller.reload(KEY, 0.3)
            assert now() - start < 2
            assert isinstance(rejected, ErrorDetail)
            assert "after 0.3 s 1 of 2 replicas do not serve it" in rejected.detail
            await asyncio.sleep(3 * versions.REPORT_S)
            assert a.serving == V1
        task.cancel()

    run(test())


def test_a_reload_does_not_wait_for_a_replica_that_died(registry: Registry) -> None:
    async def test() -> None:
        controller = CONTROLLER(SOURCES, "")
        async with Follower(controller, "a"):
            await controller.report(report("dead", V1))
            registry.move(KEY, V2)
            assert (await controller.reload(KEY, 5.0))["replicas"] == 1

    run(test())


def test_a_source_that_does_not_exist_changes_nothing(registry: Registry) -> None:
    async def test() -> None:
        controller = CONTROLLER(SOURCES, "")
        async with Follower(controller, "a") as a:
            registry.move(KEY, ValueError("no such alias"))
            rejected = await controller.reload(KEY, 5.0)
            assert rejected == ErrorDetail("reload_failed", "no such alias; still serving models:/pose/1")
            assert a.serving == V1

    run(test())


def test_two_reloads_at_once_run_one_after_the_other(registry: Registry) -> None:
    async def test() -> None:
        controller = CONTROLLER(SOURCES, "")
        async with Follower(controller, "a") as a:
            registry.move(KEY, V2)
            first = asyncio.create_task(controller.reload(KEY, 5.0))
            second = asyncio.create_task(controller.reload(KEY, 5.0))
            outcomes = await asyncio.gather(first, second)
            assert [(done["before"], done["version"]) for done in outcomes] == [("1", "2"), ("2", "2")]
            assert a.serving == V2

    run(test())


def test_a_failed_reload_after_a_restart_leaves_the_version_to_the_replicas(registry: Registry) -> None:
    async def test() -> None:
        registry.move(KEY, ValueError("no such alias"))
        controller = CONTROLLER(SOURCES, "")
        rejected = await controller.reload(KEY, 1.0)
        assert isinstance(rejected, ErrorDetail) and "no version is served yet" in rejected.detail
        assert await controller.report(report("a", V1)) == V1

    run(test())


def test_passwords_of_stores_are_redacted(registry: Registry) -> None:
    async def test() -> None:
        address = "https://me:s3cr3t@host/checkpoint"
        controller = CONTROLLER({KEY: address}, "")
        registry.found[address] = ValueError("no answer from postgresql://mlflow:s3cr3t@host/mlflow")
        rejected = await controller.reload(KEY, 1.0)
        assert isinstance(rejected, ErrorDetail) and "from postgresql://mlflow:***@host/mlflow" in rejected.detail
        settings = ServerSettings(models=(ServedModel(name="pose", source=address),))
        status = (await controller.models())[KEY]
        secret = status._replace(version=dataclasses.replace(V1, checkpoint=address))
        for known in (status, secret):
            info = describe_model(settings.models[0], known, trusted=True)
            assert info["source"] == "https://me:***@host/checkpoint" and "s3cr3t" not in str(info)

    run(test())


def test_strangers_are_told_no_paths(registry: Registry) -> None:
    settings = ServedModel(name="pose", source="/data/secret/runs/a")
    version = dataclasses.replace(V1, checkpoint="/data/secret/runs/a/step-1", run_id="r1", data="d1")
    served = versions.ServingStatus(settings.source, version, 1)
    failed = versions.ServingStatus(settings.source, None, 0, versions.Fault("cannot be read", "/data/secret: no file"))
    for status in (served, failed):
        info = describe_model(settings, status, trusted=False)
        assert "/data" not in str(info) and set(info) & {"source", "checkpoint", "run_id", "step", "data"} == set()
        assert "/data/secret" in str(describe_model(settings, status, trusted=True))
    assert describe_model(settings, served, trusted=False)["ap"] == 0.5
    assert describe_model(settings, failed, trusted=False)["problem"] == "cannot be read"
    assert "no file" in describe_model(settings, failed, trusted=True)["problem"]


def test_a_model_that_nobody_serves_has_a_reason_until_somebody_does(registry: Registry) -> None:
    async def test() -> None:
        controller = CONTROLLER({KEY: SOURCES[KEY]}, "")
        registry.move(KEY, ValueError("/data/secret: no such file, as postgresql://u:s3cr3t@host says"))
        with pytest.raises(ValueError, match="no such file"):
            await controller.report(report("a"))
        fault = (await controller.models())[KEY].fault
        assert "cannot be resolved" in fault.summary and "/data" not in fault.summary
        assert "/data/secret: no such file" in fault.detail and "s3cr3t" not in fault.detail

        registry.move(KEY, V1)
        assert await controller.report(report("a")) == V1
        await controller.report(report("a", failed=(V1, "/data/secret/model.safetensors is damaged")))
        fault = (await controller.models())[KEY].fault
        assert "cannot be loaded" in fault.summary and "is damaged" in fault.detail

        await controller.report(report("b", V1))
        assert (await controller.models())[KEY] == (SOURCES[KEY], V1, 1, None)

    run(test())
