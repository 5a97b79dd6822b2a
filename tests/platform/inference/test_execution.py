"""What torch.compile compiles of each method."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import build, images, people
from torch import Tensor, fx

from posefleet.models import available_methods
from posefleet.platform.inference.execution import compile_network


@pytest.fixture(autouse=True)
def fresh_compiler() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def counting(graphs: list[int]) -> Callable[..., Any]:
    """A compiler that runs graphs as they are, and notes their sizes."""

    def compiler(graph: fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    return compiler


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[pytest.mark.slow] * (name == "logocap")) for name in available_methods()]
)
def test_most_layers_of_a_prediction_are_compiled(method: str) -> None:
    plain, compiled = build(method).eval(), build(method).eval()
    names = [name for name, _ in compiled.named_parameters()]
    graphs: list[int] = []
    compile_network(compiled, backend=counting(graphs))
    assert [name for name, _ in compiled.named_parameters()] == names
    for a, b in zip(plain.predict(images(1)), compiled.predict(images(1)), strict=True):
        torch.testing.assert_close(a.keypoints, b.keypoints, atol=1e-3, rtol=0)
    layers = sum(1 for part in plain.modules() if not list(part.children()) and list(part.parameters()))
    assert sum(graphs) > layers / 2


@pytest.mark.filterwarnings("ignore")
def test_a_training_step_is_compiled() -> None:
    plain, compiled = build("smpr").train(), build("smpr").train()
    graphs: list[int] = []
    compile_network(compiled, backend=counting(graphs))
    losses = []
    for model in (plain, compiled):
        terms = model(images(1), [people(2)])
        sum(terms.values()).backward()
        losses.append({name: float(term.detach()) for name, term in terms.items()})
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for (name, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None and other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-3)
    assert len(graphs) >= 3  # backbone, neck, head
