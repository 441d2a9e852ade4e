"""Convolutions of a network of one's own run on all tasks at once, with the same numbers."""

import copy
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from support.own_models import LENGTH, RATE, STEPS, WAYS, assert_gradient, batch
from support.own_models import meta_gradient as by_pytorch
from torch import Tensor, nn

from metasparse_ext import _library
from metasparse_ext.algorithms import MAML, one_task, task_call

pytestmark = pytest.mark.skipif(_library.problem is not None, reason="no compiled library")

CONVOLUTIONS = {
    "3x3": {"padding": 1},
    "strided": {"stride": 2, "padding": 1, "bias": False},
    "oblong": {"kernel_size": (1, 3), "stride": (2, 1), "padding": (0, 2)},
    "same": {"kernel_size": (2, 3), "padding": "same"},
    "valid": {"kernel_size": 2, "padding": "valid"},
    "dilated": {"dilation": 2, "padding": 2},
    "grouped": {"groups": 2, "padding": 1},
    "depthwise": {"groups": 4, "padding": 1},
    "reflected": {"padding": 1, "padding_mode": "reflect"},
}


def network(**options) -> nn.Sequential:
    options = {"kernel_size": 3, **options}
    return nn.Sequential(
        nn.Unflatten(1, (1, LENGTH)),
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 4, **options),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, WAYS),
    ).double()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def ours():
    return mock.patch.object(one_task, "masked_conv2d", wraps=one_task.masked_conv2d)


def expect_gradient(model: nn.Module, *, calls: int, first_order: bool = False) -> None:
    gradient = by_pytorch(copy.deepcopy(model), batch(), first_order=first_order)
    learner = MAML(model, inner_lr=RATE, inner_steps=STEPS, first_order=first_order)
    with ours() as found:
        learner.meta_backward(batch())
    assert found.call_count == calls * (STEPS + 1)
    assert_gradient(learner, gradient)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_meta_gradient_is_that_of_a_loop_over_tasks(name, first_order):
    expect_gradient(network(**CONVOLUTIONS[name]), calls=2, first_order=first_order)


def drawn(model: nn.Module, *names: str) -> dict[str, Tensor]:
    """Parameters of two tasks, all or those that are named."""
    parameters = {n: p.detach() for n, p in model.named_parameters() if not names or n in names}
    return {name: torch.stack([p, p + torch.randn_like(p)]) for name, p in parameters.items()}


def assert_same_logits(model: nn.Module, held: dict[str, Tensor], calls: int, **bound) -> None:
    images = batch().support.images[:2].to(next(iter(held.values())).dtype)
    with ours() as found:
        result = task_call(model, held, images)
    assert found.call_count == calls
    for task in range(2):
        own = {name: value[task] for name, value in held.items()}
        expected = torch.func.functional_call(model, own, (images[task],))
        torch.testing.assert_close(result[task], expected, **bound)


def test_convolutions_that_tasks_share():
    model = network(padding=1)
    assert_same_logits(model, drawn(model, "6.weight"), calls=2)
    assert_same_logits(model, drawn(model, "1.weight", "6.bias"), calls=2)


def test_one_image_without_a_batch_axis_is_pytorchs():
    """What the op does not take as it is: each task's convolution sees (C, H, W)."""

    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(2, WAYS)

        def forward(self, x: Tensor) -> Tensor:
            each = [self.conv(image[None]).mean((-2, -1)) for image in x]
            return self.head(torch.stack(each))

    expect_gradient(Single().double(), calls=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_keep_their_own_convolution(dtype):
    model = network(padding=1).to(dtype)
    assert_same_logits(model, drawn(model), calls=0, rtol=0.05, atol=0.05)


class Functional(nn.Module):
    """A convolution by a function of its input and weight."""

    def __init__(self, run) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(WAYS, 1, 3, 3)),
            nn.Parameter(torch.randn(WAYS)),
        )
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x[:, None], self.weight, self.bias).mean((-2, -1))


OPTIONS = {
    "a stride of one number": {"stride": (2,)},
    "dilation of one number": {"dilation": [2]},
    "padding by a tensor": {"padding": torch.tensor(1)},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_way_to_write_an_option(name):
    model = Functional(lambda x, w, b: F.conv2d(x, w, b, **OPTIONS[name])).double()
    expect_gradient(model, calls=1)


REFUSED = {
    "a kernel too large": lambda x, w, b: F.conv2d(x, w.expand(-1, -1, 3, 3).repeat(1, 1, 9, 9), b),
    "other channels": lambda x, w, b: F.conv2d(x, w.repeat(1, 2, 1, 1), b),
    "a weight of five axes": lambda x, w, b: F.conv2d(x, w[None], b)[0],
    "a bias of one number": lambda x, w, b: F.conv2d(x, w, b[:1]),
    "a bias of two axes": lambda x, w, b: F.conv2d(x, w, b[None])[0],
    "no pixels": lambda x, w, b: F.conv2d(x[:, :, :0], w, b, padding=2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_pytorch_refuses_is_refused_in_its_way(name):
    model = Functional(REFUSED[name]).double()
    with pytest.raises(RuntimeError):
        model(batch().support.images[0])
    learner = MAML(model, inner_lr=RATE, inner_steps=STEPS)
    with pytest.raises(RuntimeError):
        learner.meta_backward(batch())


def test_a_view_across_channels_behind_groups():
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(2, WAYS)
            self.grouped = nn.Conv2d(4, 4, 1, groups=2)

        def forward(self, x: Tensor) -> Tensor:
            maps = self.grouped(self.conv(x[:, None]))
            return self.head(maps.view(2 * len(maps), 2, -1).mean(-1)).view(len(maps), 2, -1)[:, 0]

    expect_gradient(Viewed().double(), calls=2)
