"""Named tensors to one flat buffer and back."""

import pytest
import torch
from torch import nn

from metasparse_ext.implicit import Layout


def named(*batch):
    return {
        "weight": torch.randn(*batch, 2, 3),
        "scalar": torch.randn(batch),
        "empty": torch.randn(*batch, 0, 4),
        "bias": torch.randn(*batch, 5),
    }


@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3)], ids=str)
def test_round_trip(batch):
    layout = Layout.of(named())
    tensors = named(*batch)
    flat = layout.flatten(tensors)
    assert flat.shape == (*batch, layout.numel) == (*batch, 12)
    back = layout.unflatten(flat)
    assert list(back) == list(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor)
        assert torch.equal(flat[..., layout.slices[name]], tensor.reshape(*batch, -1))


def test_module_order_and_gradient():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    layout = Layout.of(module)
    parameters = dict(module.named_parameters())
    assert layout.names == tuple(parameters)
    flat = layout.flatten(parameters)
    layout.unflatten(flat)["1.weight"].sum().backward()
    assert torch.equal(module[1].weight.grad, torch.ones(2))
    assert torch.equal(module[0].bias.grad, torch.zeros(2))


def test_shared_tensors_are_expanded_and_strides_do_not_matter():
    tensors = {"a": torch.randn(3, 4, 2).mT, "b": torch.randn(5)}
    layout = Layout.of({"a": tensors["a"][0], "b": tensors["b"]})
    back = layout.unflatten(layout.flatten(tensors))
    assert torch.equal(back["a"], tensors["a"])
    assert torch.equal(back["b"], tensors["b"].expand(3, 5))


def test_bad_input():
    layout = Layout.of(named())
    with pytest.raises(ValueError, match="at least one named tensor"):
        Layout.of({})
    with pytest.raises(TypeError, match="got int"):
        Layout.of(3)
    with pytest.raises(TypeError, match=r"source\['a'\] to be a tensor, got float"):
        Layout.of({"a": 1.0})
    with pytest.raises(ValueError, match=r"tensors\['bias'\] to be given"):
        layout.flatten({k: v for k, v in named().items() if k != "bias"})
    with pytest.raises(ValueError, match=r"\['weight'\] to be of shape \(\*, 2, 3\), got \(2, 4\)"):
        layout.flatten(named() | {"weight": torch.randn(2, 4)})
    with pytest.raises(ValueError, match="of one common batch shape"):
        layout.flatten(named(3) | {"weight": torch.randn(4, 2, 3)})
    with pytest.raises(ValueError, match=r"of shape \(\*, 12\), got \(2, 11\)"):
        layout.unflatten(torch.zeros(2, 11))
