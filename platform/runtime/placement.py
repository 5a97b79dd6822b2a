"""Where things run on a cluster with labelled nodes (docs/cluster.md). Nodes without labels fulfil every selector here.

Ray's selectors: ``!spot`` also holds where a node does not have that label at all.
"""

from collections.abc import Mapping

MARKET, ROLE = "ray.io/market-type", "posefleet/role"
"""Labels of a node: ``spot`` or ``on-demand``; ``head``, ``data``, ``train`` or ``serve``."""

STEADY: Mapping[str, str] = {MARKET: "!spot"}
"""For processes that others hang on: drivers of trials, what receives requests, what decides on versions."""

TRAINING: Mapping[str, str] = {ROLE: "!serve"}
"""For workers of a training: what serves keeps its GPUs."""

SERVING: Mapping[str, str] = {MARKET: "!spot", ROLE: "!train"}
"""For replicas of models."""
