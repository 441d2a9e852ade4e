"""Convolutions with groups, dilation and padding modes against torch's, task by task."""

import pytest
import torch
import torch.nn.functional as F
from support.plain_tasks import batch
from torch import Tensor, nn

import metasparse_ext as ms
from metasparse_ext.algorithms import MAML
from metasparse_ext.nn import FixedMask, MaskedConv2d, sparsify

TASKS, SAMPLES = 3, 4
WINDOWS = [
    {"groups": 2},
    {"groups": 6, "stride": 2, "padding": 1},
    {"dilation": 2, "padding": 2},
    {"dilation": (1, 3), "groups": 3, "padding": (0, 2), "stride": (2, 1)},
    {"dilation": 2, "padding": "same"},
]
by_window = pytest.mark.parametrize("window", WINDOWS, ids=str)


def operands(window: dict) -> tuple[Tensor, ...]:
    """x, weight, mask and bias of 3 tasks, 6 channels in and 6 out."""
    per_group = 6 // window.get("groups", 1)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(TASKS, *shape, dtype=torch.float64, generator=generator)

    mask = (torch.rand(TASKS, 6, per_group, generator=generator) < 0.5).double()
    return draw(SAMPLES, 6, 9, 8), draw(6, per_group, 3, 2), mask, draw(6)


def by_task(x, weight, mask, bias, **window) -> Tensor:
    """The definition."""
    effective = weight * mask[..., None, None]
    tasks = zip(x, effective, bias, strict=True)
    return torch.stack([F.conv2d(*task, **window) for task in tasks])


@by_window
def test_equals_torch_to_the_second_order(window):
    args = [a.requires_grad_() for a in operands(window)]

    def derivatives(conv):
        y = conv(*args, **window)
        first = torch.autograd.grad((y.sin() ** 2).sum(), args, create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), args)
        return [y, *first, *second]

    torch.testing.assert_close(derivatives(ms.masked_conv2d), derivatives(by_task))


@by_window
def test_one_network_for_all_tasks(window):
    x, weight, mask, bias = operands(window)
    shared = weight[0], mask[0], bias[0]
    expected = torch.stack(
        [by_task(x[t : t + 1], *(s[None] for s in shared), **window)[0] for t in range(TASKS)]
    )
    torch.testing.assert_close(ms.masked_conv2d(x, *shared, **window), expected)
    torch.testing.assert_close(ms.masked_conv2d(x[0], *shared, **window), expected[0])
    torch.testing.assert_close(ms.masked_conv2d(x[0, 0], *shared, **window), expected[0, 0])


@by_window
def test_under_vmap(window):
    args = operands(window)
    mapped = torch.func.vmap(lambda *a: ms.masked_conv2d(*a, **window))(*args)
    torch.testing.assert_close(mapped, by_task(*args, **window))


def test_a_pruned_kernel_may_hold_anything():
    x, weight, mask, bias = operands({"groups": 2})
    expected = by_task(x, weight, mask, bias, groups=2)
    spoilt = torch.where(mask[..., None, None] == 0, torch.nan, weight)
    torch.testing.assert_close(ms.masked_conv2d(x, spoilt, mask, bias, groups=2), expected)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [(2, 1), "same"], ids=str)
def test_a_layer_equals_the_one_of_torch(mode, padding):
    theirs = nn.Conv2d(4, 6, 3, padding=padding, groups=2, padding_mode=mode, dtype=torch.float64)
    ours = sparsify(theirs)
    assert isinstance(ours, MaskedConv2d)
    x = torch.randn(3, 4, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours(x[0]), theirs(x[0]))
    torch.testing.assert_close(ours(x[None])[0], theirs(x))
    ours.masker = FixedMask(torch.eye(2).repeat(3, 1))
    with torch.no_grad():
        theirs.weight *= ours.masker.mask[..., None, None]
    torch.testing.assert_close(ours(x), theirs(x))


class Separable(nn.Module):
    """Depthwise and pointwise convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 1),
            nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="circular"),
            nn.Softplus(),
            nn.Conv2d(4, 6, 3, dilation=2, padding=2),
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((-2, -1)))


def test_a_separable_network_learns_like_its_dense_twin():
    """Whole masks change nothing, to second order."""
    torch.manual_seed(0)
    dense = Separable().double()
    gradients = []
    for net in (sparsify(dense), dense):
        learner = MAML(net, inner_lr=0.1, inner_steps=2)
        learner.meta_backward(batch())
        gradients.append(torch.cat([p.grad.flatten() for p in learner.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("window", "words"),
    [
        ({"groups": 2}, "library (the kernels have neither groups of several channels nor"),
        ({"groups": 6, "dilation": 2}, "library (the kernels have neither groups of several"),
        ({"groups": 6}, "depthwise (each channel sees itself alone"),
    ],
    ids=str,
)
def test_explained(window, words):
    x, weight, mask, _ = operands(window)
    forward, *_ = ms.explain(x, weight, mask, **window)
    assert words in str(forward)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 4}, "expected groups to be a divisor of I = 6, got 4"),
        ({"groups": 3}, r"expected weight to be of shape \(\*, 2, kh, kw\), I / groups"),
        (
            {"groups": 2, "mask": torch.ones(6, 6).double()},
            r"expected mask to be \(O, I / groups\)",
        ),
        ({"dilation": 0}, "expected dilation to be at least 1"),
        (
            {"groups": 2, "dilation": (1, 9)},
            r"^masked_conv2d: expected weight to be of kernels that fit .* padded by \(0, 0\), got "
            "kernels over 3 x 10 pixels$",
        ),
    ],
    ids=["divisor", "weight", "mask", "dilation", "kernel too large"],
)
def test_refusals(changes, message):
    x, weight, mask, bias = operands({"groups": 2})
    arguments = {"x": x[0], "weight": weight[0], "mask": mask[0], "bias": bias[0], **changes}
    with pytest.raises(ValueError, match=message):
        ms.masked_conv2d(**arguments)


@pytest.mark.parametrize("option", ["stride", "padding", "dilation"])
def test_an_option_of_one_number_is_both(option):
    net = nn.Conv2d(3, 4, 3, **{option: (2,)})
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(sparsify(net)(x), net(x))
