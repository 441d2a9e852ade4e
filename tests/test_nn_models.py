"""Conv4, sparsify and cost."""

import doctest
import importlib

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from metasparse_ext.nn import Conv4, FixedMask, MaskedConv2d, TopKMask, cost, initialize, sparsify
from metasparse_ext.nn.resnet12 import ResBlock


@pytest.mark.parametrize(
    ("size", "strided", "head", "features"),
    [
        (28, True, "flatten", 64 * 2 * 2),
        (32, True, "flatten", 64 * 2 * 2),
        (84, True, "flatten", 64 * 6 * 6),
        (28, True, "mean", 64),
        (28, False, "flatten", 64),
        (84, False, "flatten", 64 * 5 * 5),
        ((40, 33), False, "flatten", 64 * 2 * 2),
    ],
    ids=str,
)
def test_conv4_sizes(size, strided, head, features):
    net = Conv4(3, size, 64, 5, strided=strided, head=head)
    assert net.head.in_features == features
    shape = (size, size) if isinstance(size, int) else size
    assert net(torch.randn(2, 3, *shape)).shape == (2, 5)
    assert net(torch.randn(3, 2, 3, *shape)).shape == (3, 2, 5)


@pytest.mark.parametrize(
    ("name", "kernels", "weights", "biases"),
    [
        # Largest values of uniform distributions; (std,) of normal ones.
        ("xavier", (6 / (9 * 128)) ** 0.5, (6 / 276) ** 0.5, 0.0),
        ("maml", (6 / (9 * 128)) ** 0.5, (1.0,), 0.0),
        ("imaml", 1.73 * (6 / (9 * 128)) ** 0.5, 1.73 * (6 / 276) ** 0.5, 0.05),
        ("kaiming", (6 / (9 * 64)) ** 0.5, (3 / 256) ** 0.5, 0.0),
        ("hypertorch", ((2 / (9 * 64)) ** 0.5,), 0.0, 0.0),
    ],
)
def test_initial_weights_of_the_sources(name, kernels, weights, biases):
    torch.manual_seed(0)
    net = Conv4(3, 32, 64, 20)
    masks, scales = net.blocks[1].conv.masker, net.blocks[1].norm.weight.clone()
    initialize(net, name)
    layers = net.blocks[1].conv.weight, net.head.weight, net.blocks[1].conv.bias
    for values, expected in zip(layers, (kernels, weights, biases), strict=True):
        if isinstance(expected, tuple):
            assert values.std().item() == pytest.approx(expected[0], rel=0.05)
        else:
            assert 0.95 * expected <= values.abs().max().item() <= expected
    assert net.blocks[1].conv.masker is masks
    assert net.blocks[1].norm.weight.equal(scales)


def test_conv4_names_what_does_not_fit():
    with pytest.raises(ValueError, match="image_size to be not too small for 4 blocks"):
        Conv4(1, 8, strided=False)
    with pytest.raises(ValueError, match="head to be"):
        Conv4(1, 28, head="max")
    with pytest.raises(ValueError, match=r"\(N, 1, 28, 28\) or .*, got \(2, 1, 32, 32\)"):
        Conv4(1, 28)(torch.zeros(2, 1, 32, 32))


@pytest.mark.parametrize(
    ("width", "size", "parameters", "mega_macs"),
    [(64, 32, 114, 3.54), (128, 32, 449, 13.3), (64, 84, 124, 25.1), (128, 84, 470, 94.3)],
)
@pytest.mark.parametrize("kept", [1.0, 0.5])
def test_cost_of_the_published_backbones(width, size, parameters, mega_macs, kept):
    """Thousands of parameters and millions of MACs, as derived for MetaDOCK's networks."""
    net = Conv4(3, size, width, 5)
    convolutions = sum(block.conv.weight.numel() for block in net.blocks)
    for block in net.blocks:
        mask = torch.zeros(block.conv.weight.shape[:2])
        mask.view(-1)[: round(kept * mask.numel())] = 1
        block.conv.masker = FixedMask(mask)
    counted = cost(net, (3, size, size))
    assert counted.parameters // 1000 == parameters
    assert counted.macs / 1e6 == pytest.approx(mega_macs, rel=5e-3)
    assert counted.active_parameters == counted.parameters - round((1 - kept) * convolutions)
    head = counted.layers[-1].macs
    assert counted.active_macs - head == pytest.approx(kept * (counted.macs - head))
    assert counted.active_kernels == round(kept * counted.kernels)
    assert f"{counted.macs:,}" in str(counted)


class Recurrent(nn.Module):
    """A recurrent layer over (N, steps, 3), and a head on its last output."""

    def __init__(self, kind, **options):
        super().__init__()
        self.layer = kind(3, 5, batch_first=True, **options)
        self.head = nn.Linear(5 * (1 + self.layer.bidirectional), 2)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


@pytest.mark.parametrize(
    ("kind", "options", "macs"),
    [
        (nn.RNN, {}, 5 * (3 + 5)),
        (nn.LSTM, {}, 4 * 5 * (3 + 5)),
        (nn.GRU, {"num_layers": 2}, 3 * 5 * (3 + 5) + 3 * 5 * (5 + 5)),
        (nn.LSTM, {"bidirectional": True}, 2 * 4 * 5 * (3 + 5)),
    ],
)
def test_cost_of_recurrent_layers(kind, options, macs):
    layer, head = cost(Recurrent(kind, **options), (7, 3)).layers
    assert (layer.macs, layer.active_macs) == (7 * macs, 7 * macs)
    assert head.macs == 10 * (2 if "bidirectional" in options else 1)


def test_cost_of_recurrent_cells():
    assert cost(nn.LSTMCell(3, 5), (3,)).macs == 4 * 5 * (3 + 5)


def test_cost_of_per_task_and_weight_masks():
    net = nn.Sequential(MaskedConv2d(2, 3, 3, padding=1), nn.Conv2d(3, 6, 3, groups=3))
    masks = torch.zeros(2, 3, 2)
    masks[0, 0], masks[1] = 1, 1
    tasks = cost(net, (2, 5, 5), {"0": masks})
    assert tasks.layers[0].active_kernels.tolist() == [2, 6]
    grouped = 6 * 9 * 9
    assert tasks.active_macs.tolist() == [2 * 9 * 25 + grouped, 6 * 9 * 25 + grouped]
    assert "4.0" in str(tasks)
    net[0].masker = FixedMask(torch.eye(3).repeat(3, 2, 1, 1))
    assert cost(net, (2, 5, 5)).layers[0].active_macs == 6 * 3 * 25
    with pytest.raises(ValueError, match="which no such layer is named"):
        cost(net, (2, 5, 5), {"1": masks})
    with pytest.raises(ValueError, match="input_shape to be"):
        cost(net, (5, 5))


def test_cost_of_a_mask_of_weights_whose_kernels_are_as_many_as_its_channels():
    mask = torch.ones(3, 3, 3, 3)
    mask[0, 0] = 0
    mask[1, 1, 0] = 0
    conv = MaskedConv2d(3, 3, 3, padding=1, bias=False, mask=mask)
    counted = cost(conv, (3, 4, 4))
    assert (counted.active_kernels, counted.active_parameters) == (8, 81 - 9 - 3)


def test_cost_leaves_the_model_as_it_was():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout())
    net[2].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    cost(net, (1, 5, 5))
    assert [m.training for m in net] == [True, True, False]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not net[0]._forward_hooks


class Branches(nn.Module):
    """A user's model with a convolution used twice under two names."""

    def __init__(self, **options):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding="same")
        self.twice = nn.ModuleList([nn.Conv2d(4, 4, 1, bias=False)] * 2)
        self.last = nn.Conv2d(4, 4, 3, 2, 1, **options)

    def forward(self, x):
        x = self.first(x).relu()
        for conv in self.twice:
            x = conv(x).relu()
        return self.last(x)


def test_sparsify_keeps_what_the_model_computes():
    model, x = Branches(), torch.randn(2, 2, 6, 7)
    masked = sparsify(model.eval())
    torch.testing.assert_close(masked(x), model(x))
    assert isinstance(model.first, nn.Conv2d)
    assert not isinstance(model.first, MaskedConv2d)
    assert isinstance(masked.first, MaskedConv2d)
    assert not masked.first.training
    assert masked.twice[0] is masked.twice[1]
    assert masked.last.weight is not model.last.weight


def test_sparsify_in_place_keeps_the_parameters():
    model = Branches()
    parameters = list(model.parameters())
    assert sparsify(model, inplace=True) is model
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    lone = nn.Conv2d(2, 3, 3)
    assert sparsify(lone, inplace=True).weight is lone.weight


def test_sparsify_keeps_hooks():
    conv, calls = nn.Conv2d(2, 3, 3), []
    conv.register_forward_hook(lambda *_: calls.append("after"))
    conv.register_forward_pre_hook(lambda *_, **__: calls.append("before"), with_kwargs=True)
    sparsify(nn.Sequential(conv), inplace=True)(torch.randn(1, 2, 5, 5))
    assert calls == ["before", "after"]


@pytest.mark.parametrize("inplace", [False, True])
def test_sparsify_keeps_all_that_a_convolution_carries(inplace):
    conv = nn.Conv2d(2, 3, 3).double()
    conv.register_buffer("scale", torch.rand(3, 1, 1).double())
    conv.gain = nn.Parameter(torch.rand(1).double())
    conv.after = nn.Sequential(nn.Tanh())
    conv.note = "of the stem"
    conv.register_forward_hook(lambda m, _, y: m.after(y) * m.scale * m.gain)
    conv.register_state_dict_post_hook(
        lambda m, state, prefix, _: state.update({f"{prefix}v": m.note})
    )
    conv.register_load_state_dict_pre_hook(lambda m, state, prefix, *_: state.pop(f"{prefix}v"))
    model, x = nn.ModuleDict({"one": conv, "two": conv}), torch.randn(1, 2, 5, 5).double()
    expected, state = conv(x), model.state_dict()
    masked = sparsify(model, inplace=inplace)
    assert (masked["one"] is conv) == inplace
    assert masked["one"] is masked["two"]
    torch.testing.assert_close(masked["one"](x), expected)
    assert masked["one"].note == "of the stem"
    assert masked.state_dict().keys() - state.keys() == {"one.masker.mask", "two.masker.mask"}
    masked.load_state_dict(masked.state_dict())


def test_sparsify_refuses_a_forward_of_an_instance():
    conv = nn.Conv2d(2, 3, 3)
    conv.forward = lambda x: 2 * nn.Conv2d.forward(conv, x)
    with pytest.raises(ValueError, match="its forward was replaced by another"):
        sparsify(conv)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda conv: prune.l1_unstructured(conv, "bias", 0.5), "0: its bias is pruned"),
        (nn.utils.spectral_norm, "0: its weight is no parameter of its own"),
        (nn.utils.parametrizations.weight_norm, "0: "),
    ],
)
def test_sparsify_refuses_weights_that_something_else_makes(change, reason):
    model = nn.Sequential(change(nn.Conv2d(2, 3, 3)))
    model(torch.randn(1, 2, 5, 5))
    with pytest.raises(ValueError, match=f"these convolutions cannot be masked: {reason}"):
        sparsify(model)


PRUNED = {
    "weights": (lambda conv: prune.l1_unstructured(conv, "weight", 0.5), (4, 3, 3, 3)),
    "kernels": (lambda conv: prune.custom_from_mask(conv, "weight", KERNELS), (4, 3)),
    "channels": (lambda conv: prune.ln_structured(conv, "weight", 0.5, n=2, dim=0), (4, 3)),
    "twice": (
        lambda conv: prune.random_unstructured(
            prune.l1_unstructured(conv, "weight", 0.3), "weight", 0.3
        ),
        (4, 3, 3, 3),
    ),
}
KERNELS = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 1, 0]])[..., None, None].expand(
    4, 3, 3, 3
)


@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
@pytest.mark.parametrize("kind", PRUNED)
def test_sparsify_takes_over_what_torch_pruned(kind, inplace):
    """The mask becomes the layer's, the weight under it stays, and nothing computes otherwise."""
    change, shape = PRUNED[kind]
    model = nn.Sequential(change(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Conv2d(4, 2, 1))
    x = torch.randn(2, 3, 6, 6)
    expected, mask = model(x), model[0].weight_mask.clone()
    original = model[0].weight_orig
    masked = sparsify(model, inplace=inplace)
    layer = masked[0]
    assert isinstance(layer, MaskedConv2d)
    assert layer.masker.mask.shape == shape
    kept = layer.masker.mask if len(shape) == 4 else layer.masker.mask[..., None, None]
    assert torch.equal(kept.expand_as(mask), mask)
    assert torch.equal(layer.weight, original)
    assert (layer.weight is original) == inplace
    assert sorted(layer.state_dict()) == ["bias", "masker.mask", "weight"]
    torch.testing.assert_close(masked(x), expected)
    masked(x).sum().backward()
    assert (layer.weight.grad[mask == 0] == 0).all()
    assert layer.weight.grad.any()
    if not inplace:
        assert prune.is_pruned(model)
        assert sparsify(model, lambda weight: TopKMask(1.0))[0].masker.density == 1.0


def test_sparsify_gives_each_layer_its_masker():
    def half(weight):
        return FixedMask((torch.arange(weight.shape[0])[:, None] % 2).expand(weight.shape[:2]))

    masked = sparsify(Branches(), half)
    assert cost(masked, (2, 6, 6)).active_kernels == (8 + 16 + 16) // 2
    again = sparsify(masked)
    assert torch.equal(again.first.masker.mask, masked.first.masker.mask)


def test_sparsify_names_the_convolutions_that_it_does_not_mask():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 2), nn.Conv1d(4, 4, 3))
    with pytest.warns(UserWarning, match=r"left as they are: 1 \(ConvTranspose2d\), 2 \(Conv1d\)"):
        masked = sparsify(model)
    assert isinstance(masked[0], MaskedConv2d)
    assert type(masked[1]) is nn.ConvTranspose2d


def test_sparsify_refuses_or_reports():
    model = Branches()
    nn.utils.parametrizations.orthogonal(model.last)
    reason = "last: its parameters are parametrized|last: it is a Parametrized"
    with pytest.raises(ValueError, match=reason):
        sparsify(model)
    with pytest.warns(UserWarning, match=reason):
        masked = sparsify(model, keep_unsupported=True)
    assert not isinstance(masked.last, MaskedConv2d)
    assert isinstance(masked.first, MaskedConv2d)


@pytest.mark.parametrize("name", ["masked_conv", "conv4", "sparsify", "cost"])
def test_examples_in_docstrings(name):
    module = importlib.import_module(f"metasparse_ext.nn.{name}")
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_a_block_refuses_an_unknown_activation():
    with pytest.raises(ValueError, match=r"ResBlock: expected activation to be .*, got 'zzz'"):
        ResBlock(3, 4, activation="zzz")


@pytest.mark.parametrize("option", ["blocks", "ways"])
def test_a_network_has_a_block_and_a_class(option):
    with pytest.raises(ValueError, match=f"Conv4: expected {option} to be at least 1, got 0"):
        Conv4(3, 32, **{option: 0})
