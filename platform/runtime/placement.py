"""Label selectors that place processes on the nodes of a cluster (docs/cluster.md).

Every selector here is a negation such as ``!spot``. Ray matches a negation on nodes without the label too, so a
cluster without labels runs everything anywhere.
"""

from collections.abc import Mapping

MARKET, ROLE = "ray.io/market-type", "posefleet/role"
"""Label keys of a node. Markets: ``spot``, ``on-demand``. Roles: ``head``, ``data``, ``train``, ``serve``."""

STEADY: Mapping[str, str] = {MARKET: "!spot"}
"""For processes that others depend on: drivers of trials, HTTP ingress, and the control of served versions."""

TRAINING: Mapping[str, str] = {ROLE: "!serve"}
"""For training workers: they stay off serving nodes, so that replicas keep their GPUs."""

SERVING: Mapping[str, str] = {MARKET: "!spot", ROLE: "!train"}
"""For model replicas: they stay off spot nodes and training nodes."""
