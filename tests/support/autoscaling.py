"""What Ray's autoscaler would start for a cluster's file, decided by Ray's own scheduler, without a cloud."""

from collections.abc import Mapping
from typing import Any

from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.common_pb2 import LabelSelectorOperator

Demand = tuple[Mapping[str, float], Mapping[str, str]]
"""Resources of a task or an actor, and its label selector."""


def started(
    config: Mapping[str, Any], demands: list[Demand], *, available: Mapping[str, float] | None = None
) -> dict[str, int]:
    """Nodes by type that an idle cluster starts.

    Args:
        config: What ``ray up`` or KubeRay hands to the autoscaler.
        demands: What waits for a node.
        available: Between 0, just found wanting, and 1, for the types that the autoscaler could not get.
    """
    cluster = AutoscalingConfig(dict(config), skip_content_hash=True)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=cluster.get_node_type_configs(),
        max_num_nodes=cluster.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count(
            [ResourceRequestUtil.make(dict(needs), label_selectors=_selectors(where)) for needs, where in demands]
        ),
        recoverable_resource_availabilities=dict(available or {}),
    )
    reply = ResourceDemandScheduler().schedule(request)
    assert not reply.infeasible_resource_requests, reply.infeasible_resource_requests
    return {launch.instance_type: launch.count for launch in reply.to_launch}


def _selectors(selector: Mapping[str, str]) -> list[list[tuple[str, int, list[str]]]] | None:
    operators = {
        key: LabelSelectorOperator.LABEL_OPERATOR_NOT_IN
        if value.startswith("!")
        else LabelSelectorOperator.LABEL_OPERATOR_IN
        for key, value in selector.items()
    }
    return [[(key, operators[key], [value.lstrip("!")]) for key, value in selector.items()]] if selector else None
