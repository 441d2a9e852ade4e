"""The task-aware layers: each task's slice equals the layer run on that task alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from metasparse_ext.nn import (
    BatchNorm2d,
    Conv4,
    FiLM,
    FixedMask,
    LearnedTopKMask,
    Linear,
    MaskedConv2d,
    NormActPool,
    ScoreMask,
    TopKMask,
    is_task_aware,
)

T, N = 3, 4
DOUBLE = {"dtype": torch.float64}


def with_tasks(module, only=None):
    """Random parameters with a task axis; those not named in ``only`` stay shared."""
    return {
        name: torch.randn(T, *p.shape, **DOUBLE)
        for name, p in module.named_parameters()
        if only is None or name in only
    }


def assert_tasks_are_alone(module, x, parameters):
    result = functional_call(module, parameters, (x,))
    assert result.shape[0] == T
    for t in range(T):
        own = {name: p[t] for name, p in parameters.items()}
        alone = functional_call(module, own, (x[t] if x.dim() == 5 else x,))
        torch.testing.assert_close(result[t], alone)


LAYERS = {
    "conv": lambda: MaskedConv2d(3, 5, 3, 2, 1, **DOUBLE),
    "conv-masked": lambda: MaskedConv2d(
        3, 5, (3, 1), padding=(1, 0), mask=(torch.rand(5, 3) > 0.4), **DOUBLE
    ),
    "conv-weight-mask": lambda: MaskedConv2d(
        3, 5, 3, bias=False, mask=(torch.rand(5, 3, 3, 3) > 0.7).double(), **DOUBLE
    ),
    "conv-same-even": lambda: MaskedConv2d(3, 5, 2, padding="same", **DOUBLE),
    "batch-norm": lambda: BatchNorm2d(3, **DOUBLE),
    "norm-act-pool": lambda: NormActPool(3, pool=2, order="act_pool_norm", **DOUBLE),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shared", ["none", "weight", "bias"])
def test_tasks_do_not_interact(name, shared):
    layer = LAYERS[name]()
    only = [n for n, _ in layer.named_parameters() if n != shared] or ["weight"]
    assert_tasks_are_alone(layer, torch.randn(T, N, 3, 7, 6, **DOUBLE), with_tasks(layer, only))


@pytest.mark.parametrize("only", [None, ["weight"], ["bias"], []], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_on_tasks(only, bias):
    layer = Linear(6, 5, bias=bias, **DOUBLE)
    x, parameters = torch.randn(T, N, 6, **DOUBLE), with_tasks(layer, only)
    result = functional_call(layer, parameters, (x,))
    for t in range(T):
        own = {**dict(layer.named_parameters()), **{n: p[t] for n, p in parameters.items()}}
        torch.testing.assert_close(result[t], F.linear(x[t], own["weight"], own.get("bias")))


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": (2, 4), "padding": "same", "bias": False},
        {"kernel_size": (3, 2), "padding": "valid", "stride": (2, 1)},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_dense_masked_conv_is_conv2d(arguments):
    masked = MaskedConv2d(3, 4, **arguments, **DOUBLE)
    conv = nn.Conv2d(3, 4, **arguments, **DOUBLE)
    conv.load_state_dict({k: v for k, v in masked.state_dict().items() if "masker" not in k})
    x = torch.randn(N, 3, 9, 8, **DOUBLE)
    torch.testing.assert_close(masked(x), conv(x))


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 3, 3)], ids=["kernel", "weight"])
def test_mask_multiplies_the_weight(shape):
    mask = (torch.rand(shape) > 0.6).double()
    layer, x = MaskedConv2d(3, 4, 3, mask=mask, **DOUBLE), torch.randn(N, 3, 7, 7, **DOUBLE)
    expected = F.conv2d(x, layer.weight * mask.reshape(4, 3, *shape[2:] or (1, 1)), layer.bias)
    result = layer(x)
    torch.testing.assert_close(result, expected)
    wanted = torch.autograd.grad(expected.square().sum(), layer.weight)
    torch.testing.assert_close(torch.autograd.grad(result.square().sum(), layer.weight), wanted)


class LearnedWeightMask(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.mask = nn.Parameter(mask)

    def forward(self, weight):
        return self.mask


@pytest.mark.parametrize("mapped", [False, True], ids=["direct", "vmap"])
def test_learned_weight_mask_gets_a_gradient_where_it_is_zero(mapped):
    mask = (torch.rand(4, 3, 3, 3) > 0.9).double()
    layer = MaskedConv2d(3, 4, 3, mask=LearnedWeightMask(mask), **DOUBLE)
    x = torch.randn(N, 3, 7, 7, **DOUBLE)
    expected = F.conv2d(x, layer.weight * layer.masker.mask, layer.bias).square().sum()
    wanted = torch.autograd.grad(expected, layer.masker.mask)
    result = torch.func.vmap(layer)(x[None]) if mapped else layer(x)
    torch.testing.assert_close(
        torch.autograd.grad(result.square().sum(), layer.masker.mask), wanted
    )


@pytest.mark.parametrize("layer", [BatchNorm2d, NormActPool])
def test_batch_norm_is_that_of_the_batch_in_both_modes(layer):
    norm = layer(3, **DOUBLE)
    x = torch.randn(N, 3, 5, 5, **DOUBLE)
    expected = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True)
    expected = expected.relu() if layer is NormActPool else expected
    torch.testing.assert_close(norm(x), expected)
    torch.testing.assert_close(norm.eval()(x), expected)
    assert "weight" not in dict(layer(3, affine=False).named_parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dilation": 0}, "dilation to be at least 1"),
        ({"groups": 2}, "in_channels to be a multiple of groups = 2, got 3"),
        ({"padding_mode": "mirror"}, "padding_mode to be one of 'zeros', 'reflect'"),
        ({"mask": torch.ones(3, 6)}, r"mask to be of shape \(6, 3\)"),
        ({"mask": torch.full((6, 3), 0.5)}, r"mask to be zeros and ones, got \[0.5\]"),
    ],
    ids=["dilation", "groups", "padding_mode", "mask-shape", "mask-values"],
)
def test_masked_conv_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskedConv2d(3, 6, 3, **arguments)


def test_fixed_mask_refuses_a_vector():
    with pytest.raises(ValueError, match="FixedMask: expected mask to be"):
        FixedMask(torch.ones(3))


def test_state_dict_keeps_the_mask():
    mask = (torch.rand(4, 3) > 0.5).float()
    source, target = MaskedConv2d(3, 4, 3, mask=mask), MaskedConv2d(3, 4, 3)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.masker.mask, mask)


def test_task_awareness():
    assert is_task_aware(nn.Sequential(MaskedConv2d(3, 4, 3), BatchNorm2d(4), nn.ReLU()))
    assert not is_task_aware(nn.Sequential(MaskedConv2d(3, 4, 3), nn.BatchNorm2d(4)))
    assert not is_task_aware(nn.Linear(3, 4))


def test_score_mask_is_the_gate_with_the_slope_of_the_logistic():
    masker = ScoreMask(4, 3, -1.0, 1.0, **DOUBLE)
    mask = masker(torch.empty(4, 3, 3, 3))
    assert torch.equal(mask, (masker.scores > 0).double())
    seed = torch.randn(4, 3, **DOUBLE)
    gate = masker.scores.sigmoid()
    (gradient,) = torch.autograd.grad(mask, masker.scores, seed)
    torch.testing.assert_close(gradient, seed * gate * (1 - gate))


@pytest.mark.parametrize(
    ("granularity", "kept"), [("weight", 5 * 3 * 9 // 3), ("kernel", 5), ("channel", 2 * 3)]
)
@pytest.mark.parametrize("tasks", [(), (T,)], ids=["alone", "tasks"])
def test_top_k_mask_keeps_its_share_of_every_task(granularity, kept, tasks):
    masker = TopKMask(1 / 3, granularity)
    weight = torch.randn(*tasks, 5, 3, 3, 3, **DOUBLE)
    mask = masker(weight)
    assert mask.shape == (weight.shape if granularity == "weight" else weight.shape[:-2])
    assert (mask.flatten(len(tasks)).sum(-1) == kept).all()
    signed = TopKMask(1 / 3, granularity, signed=True)(weight)
    assert torch.equal(signed, TopKMask(1 / 3, granularity)(weight - weight.min()))
    layer = MaskedConv2d(3, 5, 3, mask=masker, **DOUBLE)
    x = torch.randn(T, N, 3, 6, 6, **DOUBLE)
    result = functional_call(layer, {"weight": weight}, (x,))
    assert result.shape == (T, N, 5, 4, 4)
    for t in range(T) if tasks else []:
        own = functional_call(layer, {"weight": weight[t]}, (x[t],))
        torch.testing.assert_close(result[t], own)


def test_top_k_mask_refuses():
    with pytest.raises(ValueError, match="TopKMask: expected density to be at"):
        TopKMask(1.5)
    with pytest.raises(ValueError, match="TopKMask: expected granularity to be one of"):
        TopKMask(0.5, "layer")


# Deferred initialisation

PATTERN = torch.tensor([[1, 0, 1], [0, 1, 1]])


def reset(module):
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()


@pytest.mark.parametrize("mask", [None, PATTERN], ids=["whole", "pattern"])
def test_a_mask_built_on_meta_has_its_values_in_memory(mask):
    expected = torch.ones(2, 3) if mask is None else PATTERN
    with torch.device("meta"):
        conv = MaskedConv2d(3, 2, 3, mask=mask)
    conv.to_empty(device="cpu")
    assert torch.equal(conv.masker.mask, expected.to(conv.masker.mask.dtype))
    skipped = torch.nn.utils.skip_init(MaskedConv2d, 3, 2, 3, mask=mask)
    assert torch.equal(skipped.masker.mask, expected.to(skipped.masker.mask.dtype))


@pytest.mark.parametrize("mask", [None, PATTERN], ids=["whole", "pattern"])
@pytest.mark.parametrize("by", ["each module", "the layer"])
def test_reset_parameters_resets_the_mask(mask, by):
    conv = MaskedConv2d(3, 2, 3, mask=mask)
    before = conv.masker.mask.clone()
    conv.to_empty(device="cpu")
    conv.masker.mask.fill_(7)
    reset(conv) if by == "each module" else conv.reset_parameters()
    assert torch.equal(conv.masker.mask, before)


def test_what_is_learned_or_filled_in_is_reset_too():
    for make, name, value in (
        (lambda: LearnedTopKMask(0.25), "logit", torch.tensor([1 / 3]).log()),
        (lambda: FiLM(4, 3), "context", torch.zeros(3)),
    ):
        with torch.device("meta"):
            module = make()
        module.to_empty(device="cpu")
        with torch.no_grad():
            getattr(module, name).fill_(7)
        reset(module)
        torch.testing.assert_close(getattr(module, name).detach(), value)


def test_a_mask_without_values_cannot_be_reset():
    masker = FixedMask(torch.ones(2, 3, device="meta"))
    with pytest.raises(RuntimeError, match="mask has no values to go back to"):
        masker.to_empty(device="cpu")


def test_networks_are_built_of_fake_tensors():
    with FakeTensorMode():
        network = Conv4(1, 28, 8, 5)
        assert network(torch.randn(2, 1, 28, 28)).shape == (2, 5)
        assert "on meta" in repr(network)


@pytest.mark.parametrize("padding", ["same", "valid", 1])
def test_the_layer_takes_one_image(padding):
    conv = MaskedConv2d(3, 2, 2, padding=padding)
    image = torch.randn(3, 6, 6)
    expected = F.conv2d(image, conv.weight, conv.bias, padding=padding)
    torch.testing.assert_close(conv(image), expected)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kind", [TopKMask, LearnedTopKMask])
def test_chosen_masks_compile_whole(kind, dynamic):
    """A density may be a symbol, and its values are not asked for while a program is traced."""
    torch._dynamo.reset()
    layer = MaskedConv2d(4, 6, 3, mask=kind(0.5))
    compiled = torch.compile(layer, backend="eager", fullgraph=True, dynamic=dynamic)
    images = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(compiled(images), layer(images))
    layer.masker.density = 0.25
    torch.testing.assert_close(compiled(images), layer(images))
