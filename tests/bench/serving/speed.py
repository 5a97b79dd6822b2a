"""Images per second and milliseconds: the server, a bare ``Predictor``, LitServe."""

import statistics
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from server import Server, free_port, running_server

from serving.material import PIXELS, photographs, untrained
from serving.sides import Bare, Clients, LitServer, Part, Shot, cpu_seconds, lit_server

FOREVER = 600.0


def served(
    checkpoint: str, name: str = "pose", *, threads: int = 1, replicas: int = 1, batch: int = 8, **deployment: Any
) -> dict:
    """A model of the server's configuration; ``threads`` are those of a replica."""
    defaults = {"num_replicas": replicas, "ray_actor_options": {"num_cpus": threads}, "max_ongoing_requests": 128}
    return {
        "name": name,
        "source": checkpoint,
        "batching": {"size": batch},
        "score_threshold": 0.0,
        "deployment": defaults | deployment,
    }


def images_per_second(shots: Sequence[Shot], at_once: int) -> float:
    """While the queue was full: from the end of the first batches until the last request was sent."""
    failed = [shot for shot in shots if shot.status != 200]
    assert not failed, f"{len(failed)} of {len(shots)} requests failed, such as {failed[0]}"
    last = max(shot.sent for shot in shots)
    ends = sorted(shot.answered for shot in shots if shot.answered <= last)
    return (len(ends) - at_once) / (ends[-1] - ends[at_once - 1])


def ratio_line(name: str, ratios: Sequence[float], target: str) -> str:
    return f"{name}: median {statistics.median(ratios):.3f} ({' '.join(f'{r:.2f}' for r in ratios)}); target {target}"


def throughput(
    *,
    checkpoint: str,
    threads: int,
    replicas: int,
    size: int,
    batches: Sequence[int],
    images: int,
    rounds: int,
    direct: bool,
) -> None:
    """Clients of the server against the bare loop, the best batch size of each; replicas share the loop's threads."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        checkpoint = checkpoint or untrained("smpr", folder, size)
        bodies = photographs(8)
        clients = stack.enter_context(Clients.start())
        bare = stack.enter_context(Bare.start(checkpoint, threads))
        each = {"threads": threads // replicas, "replicas": replicas}
        models = [served(checkpoint, f"batch{batch}", batch=batch, **each) for batch in batches]
        server = stack.enter_context(running_server({"models": models, "direct": direct}, local=direct))

        def by_server(batch: int) -> float:
            url = f"{server.address}/v1/models/batch{batch}/poses"
            return images_per_second(_full_queue(clients, url, bodies, batch * replicas, images), batch * replicas)

        def by_loop(batch: int) -> float:
            with server.paused():
                return images / bare.seconds(bodies, batch=batch, count=images)

        tried = {way: {batch: way(batch) for batch in batches} for way in (by_server, by_loop)}
        best = {way: max(speeds, key=speeds.__getitem__) for way, speeds in tried.items()}
        for way, name in ((by_server, "server"), (by_loop, "bare loop")):
            print(f"{name}, a first look: " + ", ".join(f"batch {b}: {v:.2f}/s" for b, v in tried[way].items()))
        print(
            f"\n{'images/s':12}{'server, batch ' + str(best[by_server]):>20}{'loop, batch ' + str(best[by_loop]):>20}"
        )
        ratios = []
        for number in range(rounds):
            ours, theirs = (way(best[way]) for way in (by_server, by_loop))
            ratios.append(ours / theirs)
            print(f"round {number + 1:<6}{ours:20.2f}{theirs:20.2f}{ratios[-1]:8.3f}", flush=True)
        print(ratio_line("server / bare loop, images per second", ratios, ">= 0.85"))


def latency(
    *,
    checkpoint: str,
    threads: int,
    megabytes: Sequence[float],
    concurrency: Sequence[int],
    seconds: float,
    rounds: int,
    direct: bool,
) -> None:
    """What the way through HTTP and Ray adds for one client, and how long clients wait that are many."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        checkpoint = checkpoint or untrained("smpr_demo", folder)
        bodies = {size: photographs(2, size) for size in megabytes}
        clients = stack.enter_context(Clients.start())
        bare = stack.enter_context(Bare.start(checkpoint, threads))
        server = stack.enter_context(
            running_server({"models": [served(checkpoint, threads=threads)], "direct": direct}, local=direct)
        )
        url = f"{server.address}/v1/poses"
        alone: dict[float, list[float]] = {size: [] for size in megabytes}
        waits: dict[tuple[float, int], list[Shot]] = {(size, count): [] for size in megabytes for count in concurrency}
        added: dict[float, list[float]] = {size: [] for size in megabytes}
        for number in range(rounds + 1):  # the first one warms up
            for size in megabytes:
                with server.paused():
                    theirs = bare.ms(bodies[size], seconds if number else 1)
                for count in concurrency:
                    shots = clients.ask(url, bodies[size], [Part(count, seconds if number else 1)])
                    if number:
                        waits[size, count] += shots
                    if number and count == 1:
                        alone[size] += theirs
                        added[size].append(p50(shots) - statistics.median(theirs))
        print(
            f"{'MB':>5}{'pixels':>13}{'clients':>9}{'answers':>9}{'failed':>8}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}"
        )
        for size in megabytes:
            pixels = "{} x {}".format(*PIXELS[size])
            row = "".join(f"{value:9.1f}" for value in np.percentile(alone[size], (50, 95, 99)))
            print(f"{size:5g}{pixels:>13}{'Predictor':>9}{len(alone[size]):9}{'':8}{row}")
            for count in concurrency:
                shots = waits[size, count]
                failed = sum(shot.status != 200 for shot in shots)
                row = "".join(f"{v:9.1f}" for v in np.percentile([s.ms for s in shots], (50, 95, 99)))
                print(f"{size:5g}{pixels:>13}{count:9}{len(shots):9}{failed:8}{row}")
        for size, values in added.items():
            shown = " ".join(f"{value:.1f}" for value in values)
            print(
                f"added for one client, {size:g} MB: median {statistics.median(values):.1f} ms ({shown}); target <= 10"
            )


def p50(shots: Sequence[Shot]) -> float:
    return statistics.median(shot.ms for shot in shots if shot.status == 200)


def _full_queue(
    clients: Clients, url: str, bodies: Sequence[bytes], at_once: int, images: int, **options: Any
) -> list[Shot]:
    """That many images with a full queue: the next batches are there when the last ones are done."""
    count = 2 * at_once + 1
    return clients.ask(url, bodies, [Part(count, FOREVER)], count=images + at_once + count, **options)


def litserve(
    *, checkpoint: str, threads: int, replicas: int, size: int, batch: int, images: int, rounds: int, direct: bool
) -> None:
    """The same clients, model and batches behind the server and behind LitServe."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        checkpoint = checkpoint or untrained("smpr", folder, size)
        bodies = photographs(8)
        clients = stack.enter_context(Clients.start())
        each = {"threads": threads // replicas, "replicas": replicas, "batch": batch}
        theirs = stack.enter_context(lit_server(checkpoint, free_port(), wait_ms=2, **each))
        settings = {"models": [served(checkpoint, **each)], "direct": direct}
        server = stack.enter_context(running_server(settings, local=direct))

        sides: dict[str, Server | LitServer] = {"ours": server, "LitServe": theirs}
        cost = {side: Counter[str]() for side in sides}

        def measured(side: str, url: str) -> tuple[float, float]:
            """Images per second with a full queue, and the milliseconds of one client."""
            before = cpu_seconds(sides[side].processes())
            many = _full_queue(clients, url, bodies, batch * replicas, images, form=True)
            after = cpu_seconds(sides[side].processes())
            for title in after:
                cost[side][title] += 1e3 * (after[title] - before[title]) / len(many) / (rounds + 1)
            one = clients.ask(url, bodies, [Part(1, FOREVER)], count=max(10, images // 8), form=True)
            return images_per_second(many, batch * replicas), p50(one)

        ratios = []
        print(
            f"batches of {batch}\n{'':12}{'ours, images/s':>16}{'p50 ms':>9}{'LitServe':>16}{'p50 ms':>9}{'ratio':>9}"
        )
        for number in range(rounds + 1):
            with theirs.paused():
                ours = measured("ours", f"{server.address}/v1/poses")
            with server.paused():
                lit = measured("LitServe", theirs.url)
            if number:
                ratios.append(ours[0] / lit[0])
                print(
                    f"round {number:<6}{ours[0]:16.1f}{ours[1]:9.1f}{lit[0]:16.1f}{lit[1]:9.1f}{ratios[-1]:9.3f}",
                    flush=True,
                )
        print(ratio_line("ours / LitServe, images per second", ratios, ">= 1"))
        for side, taken in cost.items():
            shown = ", ".join(f"{title} {ms:.1f}" for title, ms in taken.most_common() if ms >= 0.1)
            print(f"CPU ms an image, {side}: {sum(taken.values()):.1f}: {shown}")


def switches(
    *,
    checkpoint: str,
    threads: int,
    environment: Mapping[str, str],
    config: Mapping[str, Any],
    model: Mapping[str, Any],
    seconds: float,
    rounds: int,
) -> None:
    """The server as it is, and with something changed, started anew for every turn."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        checkpoint = checkpoint or untrained("smpr_demo", folder)
        bodies = photographs(8)
        clients = stack.enter_context(Clients.start())
        shown = {"p50 ms, 1 client": [], "images/s, 16 clients": []}
        print(f"changed: {dict(environment)} {dict(config)} {dict(model)}")
        for number in range(rounds):
            turns = []
            for changed in (False, True):
                described = served(checkpoint, threads=threads) | (model if changed else {})
                options = dict(config) if changed else {}
                with running_server(
                    {"models": [described]}, environment=environment if changed else {}, **options
                ) as server:
                    turns.append(_turn(server, clients, bodies, seconds))
            for values, pair in zip(shown.values(), zip(*turns, strict=True), strict=True):
                values.append(pair)
            print(
                f"round {number + 1}: "
                + "; ".join(f"{name} {v[-1][0]:.1f} -> {v[-1][1]:.1f}" for name, v in shown.items()),
                flush=True,
            )
        for name, pairs in shown.items():
            print(ratio_line(f"{name}, changed / as it is", [after / before for before, after in pairs], "none"))


def _turn(server: Server, clients: Clients, bodies: list[bytes], seconds: float) -> tuple[float, float]:
    url = f"{server.address}/v1/poses"
    clients.ask(url, bodies, [Part(4, 2)])
    one = clients.ask(url, bodies, [Part(1, seconds)])
    many = clients.ask(url, bodies, [Part(16, seconds)])
    return p50(one), images_per_second(many, 8)
