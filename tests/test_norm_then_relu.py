"""A batch norm and a ReLU that nn.Sequential calls in turn are one op, and the same numbers."""

import copy
import pickle
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from support.own_models import FEATURES, LENGTH, RATE, STEPS, WAYS, assert_gradient, batch
from support.own_models import meta_gradient as by_pytorch
from torch import Tensor, nn

from metasparse_ext.algorithms import MAML, one_task

CHANNELS = 3


def norm() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(CHANNELS, track_running_stats=False)


def network(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, LENGTH)),
        nn.Conv2d(1, CHANNELS, 3, padding=1),
        *layers,
        nn.Flatten(),
        nn.Linear(CHANNELS * LENGTH * FEATURES, WAYS),
    ).double()


class Both(nn.Sequential):
    """Reads what its norm returns beside running as a sequence does."""

    def __init__(self) -> None:
        super().__init__(norm(), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self[0](x)


class Doubled(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Leaky(nn.ReLU):
    """Is called in a way of its own."""

    def __call__(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, 0.1)


class Lowered(nn.BatchNorm2d):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) - 0.3


class Checked(nn.BatchNorm2d):
    """Runs another norm before its own."""

    def _check_input_dim(self, x: Tensor) -> None:
        F.batch_norm(x, None, None, training=True)


def watched() -> nn.Module:
    layer = norm()
    layer.register_forward_hook(lambda module, args, output: output + 1)
    return layer


def shared() -> list[nn.Module]:
    layer, relu = norm(), nn.ReLU()
    return [layer, relu, layer, relu]


LAYERS = {
    "pair": (lambda: [norm(), nn.ReLU()], ["relu"]),
    "in place": (lambda: [norm(), nn.ReLU(inplace=True)], ["relu"]),
    "nested": (lambda: [nn.Sequential(norm(), nn.ReLU()), nn.ReLU()], ["relu"]),
    "shared": (shared, ["relu", "relu"]),
    "two norms": (lambda: [norm(), norm(), nn.ReLU()], ["none", "relu"]),
    "apart": (lambda: [nn.Sequential(norm()), nn.ReLU()], ["none"]),
    "something between": (lambda: [norm(), nn.Identity(), nn.ReLU()], ["none"]),
    "another activation": (lambda: [norm(), nn.LeakyReLU()], ["none"]),
    "a ReLU of one's own": (lambda: [norm(), Doubled()], ["none"]),
    "a forward of one's own": (lambda: [Both()], ["none", "none"]),
    "a call of one's own": (lambda: [norm(), Leaky()], ["none"]),
    "a norm's call of its own": (
        lambda: [Lowered(CHANNELS, track_running_stats=False), nn.ReLU()],
        ["none"],
    ),
    "a norm within": (
        lambda: [Checked(CHANNELS, track_running_stats=False), nn.ReLU()],
        ["none", "none"],
    ),
    "nothing": (lambda: [nn.Sequential(), norm(), nn.ReLU(), nn.Sequential()], ["relu"]),
    "watched": (lambda: [watched(), nn.ReLU()], ["none"]),
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def activations(learner: MAML) -> list[str]:
    """What each norm of a forward pass did besides."""
    with mock.patch.object(one_task, "norm_act_pool", wraps=one_task.norm_act_pool) as ours:
        learner.meta_backward(batch())
    each = [call.kwargs["activation"] for call in ours.call_args_list]
    count = len(each) // (STEPS + 1)
    assert each == each[:count] * (STEPS + 1)
    return each[:count]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("first_order", [False, True])
def test_pairs_are_found_and_the_numbers_stay(name, first_order):
    layers, expected = LAYERS[name]
    model = network(*layers())
    learner = MAML(model, inner_lr=RATE, inner_steps=STEPS, first_order=first_order)
    # functional_call does not give a module that is there twice its own parameters back.
    gradient = by_pytorch(copy.deepcopy(model), batch(), first_order=first_order)
    assert activations(learner) == expected
    assert_gradient(learner, gradient)
    assert not any("forward" in vars(module) for module in model.modules())


def test_tracked_statistics_keep_their_norm_and_its_relu():
    model = network(nn.BatchNorm2d(CHANNELS), nn.ReLU())
    model(torch.randn(7, LENGTH, FEATURES, dtype=torch.float64))
    model.eval()
    learner = MAML(model, inner_lr=RATE, inner_steps=STEPS)
    learner.eval()
    gradient = by_pytorch(model, batch(), first_order=False)
    assert activations(learner) == []
    assert_gradient(learner, gradient)


def test_a_hook_of_all_modules_sees_each_one():
    seen = []
    model = network(norm(), nn.ReLU())
    learner = MAML(model, inner_lr=RATE, inner_steps=STEPS)
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: seen.append(type(module))
    )
    try:
        assert activations(learner) == ["none"]
    finally:
        hook.remove()
    assert seen.count(nn.ReLU) == seen.count(nn.BatchNorm2d) == STEPS + 1


def test_a_model_whose_forward_fails_is_left_as_it_was():
    model = network(norm(), nn.ReLU(), nn.Linear(1, 1))
    with pytest.raises(RuntimeError):
        MAML(model, inner_lr=RATE, inner_steps=STEPS).meta_backward(batch())
    assert not any("forward" in vars(module) for module in model.modules())


class Teaching(nn.Module):
    """Copies a part of itself, which is frozen, while it runs."""

    def __init__(self, how) -> None:
        super().__init__()
        self.body = network(norm(), nn.ReLU()).requires_grad_(False)
        self.head = nn.Linear(WAYS, WAYS)
        self.how, self.held = how, []

    def forward(self, x: Tensor) -> Tensor:
        self.held[:] = [self.how(self.body)]
        return self.head(self.body(x) + self.held[0](x))


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy])
def test_a_sequence_that_is_copied_meanwhile_is_a_sequence(how):
    """It runs its own layers, can be pickled, and knows nothing of the original's."""
    model = Teaching(how).double()
    MAML(model, inner_lr=RATE, inner_steps=STEPS, first_order=True).meta_backward(batch())
    (copied,) = model.held
    x = torch.randn(7, LENGTH, FEATURES, dtype=torch.float64)
    restored = pickle.loads(pickle.dumps(copied))
    if how is copy.deepcopy:
        with torch.no_grad():
            [p.zero_() for p in model.body.parameters()]
    expected = x
    for layer in copied:
        expected = layer(expected)
    assert expected.any()
    torch.testing.assert_close(copied(x), expected)
    torch.testing.assert_close(restored(x), expected)
