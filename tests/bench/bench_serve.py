"""The HTTP server beside plain ways to serve, and under strain, all on this machine over loopback.

    throughput  images per second of many clients against a bare Predictor loop, R50 SMPR        target >= 0.85
    latency     milliseconds that HTTP and Ray add for one client; p50, p95, p99 of more          target <= 10 ms
    litserve    images per second against LitServe with the same model and batches                target >= 1
    faults      what clients notice when processes are killed and configurations change           target nothing
    scale       one replica becomes three under load, and one again; --plot draws it              target none failed
    soak        many minutes at saturation, reloads, hostile images: memory, answers, waits (not part of `all`)
    switches    the server as it is against one with something changed (not part of `all`)

    python tests/bench/bench_serve.py --measure throughput --replicas 2 --rounds 5
    python tests/bench/bench_serve.py --measure scale --plot docs/serving_scale.png
    python tests/bench/bench_serve.py --measure soak --minutes 30
    python tests/bench/bench_serve.py --measure switches --environment RAY_SERVE_LOG_TO_STDERR=0 \\
        --config '{logging_config: {enable_access_log: false}}' --model '{batching: {wait_ms: 2}}'

The server is what ``posefleet serve`` starts: HAProxy, and replicas of the model that handle HTTP. With --ingress they
stand behind one, and Serve's own proxy.
Clients, the bare loop and LitServe are processes of their own. Sides take turns, and while it is not its turn all
processes of the server are stopped, Ray's daemons included. All have the same threads for the network.
Models have random
weights and find ten poses in every image; --checkpoint serves a trained one. Each measure takes up to five minutes.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable

import yaml
from serving.soak import soak
from serving.speed import latency, litserve, switches, throughput
from serving.strain import faults, scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("throughput", "latency", "litserve", "faults", "scale")
    parser.add_argument(
        "--measure", nargs="+", choices=(*names, "soak", "switches"), default=names, help="default: all"
    )
    parser.add_argument("--checkpoint", default="", help="served instead of random weights")
    parser.add_argument("--threads", type=int, default=2, help="of the network (not in faults and scale: one)")
    parser.add_argument("--replicas", type=int, default=1, help="which share the threads (throughput, litserve)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a turn (latency, switches)")
    parser.add_argument("--size", type=int, default=512, help="short side, pixels (throughput, litserve)")
    parser.add_argument("--batches", type=int, nargs="+", default=(4,), help="sizes that are tried (throughput)")
    parser.add_argument("--images", type=int, default=16, help="of a turn (throughput, litserve)")
    parser.add_argument("--megabytes", type=float, nargs="+", default=(0.1, 1.0, 5.0), help="of bodies (latency)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=(1, 8, 32), help="clients (latency)")
    parser.add_argument("--batch", type=int, default=8, help="of both sides (litserve)")
    parser.add_argument("--ingresses", type=int, default=1, help="of them (faults --ingress)")
    parser.add_argument("--ingress", action="store_true", help="behind an ingress (scale and switches always are)")
    parser.add_argument("--clients", type=int, default=8, help="at the height of the load (scale, soak)")
    parser.add_argument("--minutes", type=int, default=30, help="whole length (soak)")
    parser.add_argument("--load-seconds", type=float, default=120.0, help="whole length (scale)")
    parser.add_argument("--plot", default="", help="PNG that is written (scale)")
    parser.add_argument("--environment", nargs="*", default=(), metavar="NAME=VALUE", help="variables (switches)")
    parser.add_argument("--config", type=yaml.safe_load, default={}, help="YAML, of the Serve config (switches)")
    parser.add_argument("--model", type=yaml.safe_load, default={}, help="YAML, of the served model (switches)")
    args = parser.parse_args()
    if not args.ingress and "throughput" in args.measure and len(args.batches) > 1:
        parser.error("without --ingress one model is served: give one of --batches")
    checkpoint, rounds = args.checkpoint, args.rounds
    environment = dict(pair.split("=", 1) for pair in args.environment)
    measures: dict[str, Callable[[], None]] = {
        "throughput": lambda: throughput(
            checkpoint=checkpoint,
            threads=args.threads,
            replicas=args.replicas,
            size=args.size,
            batches=args.batches,
            images=args.images,
            rounds=rounds,
            direct=not args.ingress,
        ),
        "latency": lambda: latency(
            checkpoint=checkpoint,
            threads=args.threads,
            megabytes=args.megabytes,
            concurrency=args.concurrency,
            seconds=args.seconds,
            rounds=rounds,
            direct=not args.ingress,
        ),
        "litserve": lambda: litserve(
            checkpoint=checkpoint,
            threads=args.threads,
            replicas=args.replicas,
            size=args.size,
            batch=args.batch,
            images=args.images,
            rounds=rounds,
            direct=not args.ingress,
        ),
        "faults": lambda: faults(checkpoint=checkpoint, ingresses=args.ingresses, direct=not args.ingress),
        "scale": lambda: scale(checkpoint=checkpoint, clients=args.clients, seconds=args.load_seconds, plot=args.plot),
        "soak": lambda: soak(
            checkpoint=checkpoint, minutes=args.minutes, clients=args.clients, direct=not args.ingress
        ),
        "switches": lambda: switches(
            checkpoint=checkpoint,
            threads=args.threads,
            environment=environment,
            config=args.config,
            model=args.model,
            seconds=args.seconds,
            rounds=rounds,
        ),
    }
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, load {load:.1f}")
    for name in args.measure:
        print(f"\n--- {name}", flush=True)
        start = time.monotonic()
        measures[name]()
        print(f"({time.monotonic() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
