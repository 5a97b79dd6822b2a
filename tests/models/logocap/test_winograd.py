"""Convolutions with fewer multiplications."""

import pytest
import torch
import torch.nn.functional as F

from posefleet.models.logocap.winograd import Conv3x3, transform_weight, winograd


@pytest.mark.parametrize("side", [3, 4, 7, 11, 13])
def test_fewer_multiplications_give_the_same(side: int) -> None:
    random = torch.Generator().manual_seed(side)
    x = torch.randn(5, 24, side, side, generator=random)
    weight = torch.randn(7, 24, 3, 3, generator=random)
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    factors = transform_weight(weight)
    found = winograd(x, factors)
    assert found.shape == (5, 7, side, side)
    assert float((found - expected).abs().max()) < 2e-5 * float(expected.abs().max())
    torch.testing.assert_close(winograd(x.to(memory_format=torch.channels_last), factors), found)


def test_predictions_take_it_and_training_does_not() -> None:
    torch.manual_seed(0)
    layer, x = Conv3x3(16, 8), torch.randn(6, 16, 11, 11)
    plain = F.conv2d(x, layer.weight, padding=1)
    assert torch.equal(layer(x), plain) and layer(x).grad_fn is not None
    with torch.no_grad():
        assert torch.equal(layer(x), winograd(x, transform_weight(layer.weight)))
        torch.testing.assert_close(layer(x), plain, atol=1e-5, rtol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16


def test_other_weights_are_transformed_anew() -> None:
    torch.manual_seed(0)
    first, second, x = Conv3x3(8, 8), Conv3x3(8, 8), torch.randn(2, 8, 5, 5)
    with torch.no_grad():
        old = first(x)
        first.load_state_dict(second.state_dict())
        torch.testing.assert_close(first(x), second(x))
        first.weight.mul_(2)
        torch.testing.assert_close(first(x), 2 * second(x))
    assert not torch.allclose(old, second(x), atol=1e-2)
    assert list(first.state_dict()) == ["weight"]
