"""A model called with other tensors in the places of its own."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from metasparse_ext.algorithms.slots import Slots
from metasparse_ext.nn import Conv4


class Tied(nn.Module):
    """A layer twice, a weight that two layers share, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.again = self.layer
        self.tied = nn.Linear(3, 3, bias=False)
        self.tied.weight = self.layer.weight
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        if x.isnan().any():
            raise ZeroDivisionError
        return self.scale * self.tied(self.again(self.layer(x)))


def others(model: nn.Module) -> dict[str, Tensor]:
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: torch.randn_like(t) for name, t in named.items() if t.is_floating_point()}


@pytest.mark.parametrize("model", [Tied(), nn.Linear(3, 2), nn.BatchNorm1d(3).eval()])
def test_equals_functional_call(model):
    x, tensors = torch.randn(4, 3), others(model)
    if isinstance(model, nn.BatchNorm1d):
        tensors["running_var"] = tensors["running_var"].square()
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    # Of a copy: torch's unties what a module has twice and another one shares.
    expected = functional_call(copy.deepcopy(model), tensors, (x,))
    assert torch.equal(Slots(model).call(tensors, x), expected)
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())


def test_gradients_reach_what_was_given():
    model = Conv4(1, 16, 4, ways=2)
    slots = Slots(model)
    given = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    slots.call(given, torch.randn(3, 1, 16, 16)).sum().backward()
    assert all(tensor.grad is not None for name, tensor in given.items() if "conv.bias" not in name)
    assert all(p.grad is None for p in model.parameters())


def test_the_models_own_come_back_after_an_error():
    model = Tied()
    own = dict(model.named_parameters())
    with pytest.raises(ZeroDivisionError):
        Slots(model).call(others(model), torch.full((4, 3), torch.nan))
    assert dict(model.named_parameters()) == own
    assert model.tied.weight is model.layer.weight
