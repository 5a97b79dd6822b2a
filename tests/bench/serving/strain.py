"""What clients notice of faults, new versions and scaling."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from server import Load, Server, misses, running_server, wait_for

from posefleet.platform.inference.predictor import Predictor
from posefleet.platform.visualization.plots import GREY, SERIES, legend, new_figure, save_png, style
from serving.material import photographs, untrained
from serving.sides import Clients, Part, Shot
from serving.speed import served

CALM = 3.0
"""Seconds of load before and after whatever happens."""


def faults(*, checkpoint: str, ingresses: int, direct: bool) -> None:
    """Kill, restart and redeploy under load; every answer is compared with what the ``Predictor`` says."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        checkpoint = checkpoint or untrained("smpr_demo", folder)
        bodies = photographs(6)
        predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
        expected = [predictor(body).poses.keypoints.numpy() for body in bodies]
        model = served(checkpoint, num_replicas=2)
        ingress = {"direct": True} if direct else {"ingress": {"num_replicas": ingresses}}
        server = stack.enter_context(running_server({"models": [model], **ingress}, local=direct))
        print(f"2 replicas of the model, {'which speak HTTP' if direct else f'{ingresses} of the ingress'}, 4 clients")
        print(
            f"{'':34}{'answers':>8}{'wrong':>7}{'failed':>8}"
            f"{'whole after':>13}{'longest wait':>14}{'longest silence':>17}"
        )
        for name, act in _acts(server, 0 if direct else ingresses):
            with Load(server, "/v1/poses", bodies, clients=4) as load:
                time.sleep(CALM)
                start = time.monotonic()
                act()
                whole = time.monotonic() - start
                time.sleep(CALM)
            wrong = sum(misses(answer, expected[which]) > 0.01 for _, which, answer in load.answers)
            longest = max(end - begun for begun, end in load.waits)
            ends = sorted(end for _, end in load.waits)
            silence = max(b - a for a, b in itertools.pairwise(ends))
            print(
                f"{name:34}{len(load.answers):8}{wrong:7}{len(load.errors):8}"
                f"{whole:11.1f} s{longest:12.1f} s{silence:15.1f} s",
                flush=True,
            )
            for error in sorted({error[:100] for error in load.errors}):
                print(f"    {error}")
        print("targets: no wrong answer, none failed, a killed replica whole again within 15 s")


def _acts(server: Server, ingresses: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """What happens; each comes back when the server is whole again."""
    application = server.config["applications"][0]
    first = application["args"]["models"][0]

    def kill(title: str, deployment: str, count: int) -> None:
        before = {process.pid for process in server.processes(title)}
        assert len(before) == count, f"{len(before)} processes are called {title}, not {count}"
        victim = server.processes(title)[0]
        victim.kill()

        def whole() -> bool:
            now = {process.pid for process in server.processes(title)}
            return (
                len(now) == count and victim.pid not in now and (not deployment or server.running(deployment) == count)
            )

        wait_for(whole, 90)
        server.wait_until_ready()

    def restart() -> None:
        before = {process.pid for process in server.replicas("pose")}
        first["batching"] = {"size": 4, "wait_ms": 1}
        server.deploy()
        wait_for(lambda: len(now := {p.pid for p in server.replicas("pose")}) == 2 and not now & before, 120)
        wait_for(lambda: server.running("pose") == 2)

    def renew() -> None:
        application["deployments"][0]["user_config"]["release"] += 1
        server.deploy()
        wait_for(lambda: server.running("Versions") == 1)

    yield "kill -9 of a replica", lambda: kill("ServeReplica:posefleet:pose", "pose", 2)
    if ingresses:
        yield "kill -9 of the ingress", lambda: kill("ServeReplica:posefleet:Ingress", "Ingress", ingresses)
    yield "kill -9 of the replica of versions", lambda: kill("ServeReplica:posefleet:Versions", "Versions", 1)
    yield "kill -9 of the proxy", lambda: kill("ProxyActor", "", 1)
    if server.processes("bin/haproxy"):
        yield "kill -9 of HAProxy", lambda: kill("bin/haproxy", "", 1)
    yield "user_config changed: in place", renew
    yield "args changed: rolling restart", restart


# -------------------------------------------------------------------------------------------------------- scaling


def scale(*, checkpoint: str, clients: int, seconds: float, plot: str) -> None:
    """One client, then many, then one: replicas, requests per second and waits, second by second."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        checkpoint = checkpoint or untrained("smpr_demo", folder)
        bodies = photographs(8)
        scaling = {"min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 2}
        scaling |= {"upscale_delay_s": 3, "downscale_delay_s": 8, "metrics_interval_s": 1, "look_back_period_s": 3}
        model = served(checkpoint, num_replicas="auto", autoscaling_config=scaling)
        server = stack.enter_context(running_server({"models": [model]}))
        driver = stack.enter_context(Clients.start())
        plan = [Part(1, seconds / 5), Part(clients, 2 * seconds / 5), Part(1, 2 * seconds / 5)]
        url = f"{server.address}/v1/poses"
        driver.ask(url, bodies, [Part(1, 2)])  # else its start would be seen
        start = time.monotonic()
        load = driver.begin(url, bodies, plan)
        replicas = _watched(server, load, start)
        shots = load.result()
        _report(shots, replicas, plan, start)
        if plot:
            save_png(_figure(shots, replicas, plan, start), plot)
            print(f"plot: {plot}")


def _watched(server: Server, load: Future[Any], start: float) -> list[tuple[float, int]]:
    """(seconds, replicas that run) until the load has ended."""
    seen = []
    while not load.done():
        seen.append((time.monotonic() - start, server.running("pose")))
        time.sleep(0.5)
    return seen


def _report(shots: Sequence[Shot], replicas: Sequence[tuple[float, int]], plan: Sequence[Part], start: float) -> None:
    print(f"{'seconds':>12}{'clients':>9}{'replicas':>10}{'requests/s':>12}{'failed':>8}{'p50 ms':>9}{'p95 ms':>9}")
    begin = 0.0
    for part in plan:
        for half in (0, 1):
            low = begin + half * part.seconds / 2
            high = low + part.seconds / 2
            inside = [shot for shot in shots if low <= shot.answered - start < high]
            count = statistics.mean(number for at, number in replicas if low <= at < high)
            waits = [shot.ms for shot in inside if shot.status == 200]
            row = "".join(f"{v:9.0f}" for v in np.percentile(waits, (50, 95)))
            failed = len(inside) - len(waits)
            print(
                f"{low:6.0f}-{high:<5.0f}{part.clients:9}{count:10.1f}{len(waits) / (high - low):12.1f}{failed:8}{row}"
            )
        begin += part.seconds
    failed = sum(shot.status != 200 for shot in shots)
    counts = [number for _, number in replicas]
    print(
        f"{len(shots)} requests, {failed} failed (target 0); "
        f"replicas {counts[0]} -> {max(counts)} -> {counts[-1]} (target 1 -> 3 -> 1)"
    )


def _figure(shots: Sequence[Shot], replicas: Sequence[tuple[float, int]], plan: Sequence[Part], start: float) -> Any:
    figure, _ = new_figure("", "", "", height=6.0)
    figure.clear()
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    style(top, "One replica becomes three, and one again", "", "replicas")
    at, counts = zip(*replicas, strict=True)
    top.step(at, counts, where="post", color=SERIES[0])
    top.set_yticks(range(1 + max(counts)))
    top.set_ylim(0, max(counts) + 0.8)

    window = 2.0
    end = max(shot.answered for shot in shots) - start
    edges = np.arange(0, end + window, window)
    ends = np.array([shot.answered - start for shot in shots])
    waits = np.array([shot.ms for shot in shots])
    middles, rates = edges[:-1] + window / 2, np.histogram(ends, edges)[0] / window
    style(middle, "", "", "requests per second")
    middle.plot(middles, rates, color=SERIES[2])
    middle.set_ylim(bottom=0)

    style(bottom, "", "seconds", "milliseconds")
    for share, colour in ((50, SERIES[0]), (95, SERIES[1])):
        values = [_percentile(waits[(ends >= low) & (ends < low + window)], share) for low in edges[:-1]]
        bottom.plot(middles, values, color=colour, label=f"p{share}")
    bottom.set_ylim(bottom=0)
    legend(bottom)

    begin = 0.0
    for part in plan:
        for axes in (top, middle, bottom):
            axes.axvline(begin, color=GREY, linewidth=0.6, linestyle=":")
        shown = "1 client" if part.clients == 1 else f"{part.clients} clients"
        top.annotate(shown, (begin, 1), (4, -4), xycoords=("data", "axes fraction"), textcoords="offset points",
                     va="top", fontsize=8, color=GREY)  # fmt: skip
        begin += part.seconds
    return figure


def _percentile(values: np.ndarray, share: float) -> float:
    return float(np.percentile(values, share)) if len(values) else float("nan")
