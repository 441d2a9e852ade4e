"""Adapted networks in PyTorch's own layers: the same logits, without channels that do nothing."""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.exported import masks_of, numbers, prune, task_images
from support.training_helpers import tiny_config
from torch import nn

import metasparse_ext as ms
from metasparse_ext.algorithms import LEARNERS
from metasparse_ext.export.channels import without_dead_channels
from metasparse_ext.export.plain import plain_network
from metasparse_ext.export.statistics import fix_statistics
from metasparse_ext.nn import (
    BatchNorm2d,
    Conv4,
    Linear,
    MaskedConv2d,
    NormActPool,
    ResNet12,
    ScoreMask,
    TopKMask,
    sparsify,
)
from metasparse_ext.training import Run, Trainer, build

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def task(tiny_root, tmp_path_factory, one_thread):
    """An adapted task and query images (9, 1, 16, 16) of its classes."""
    run = Run(tmp_path_factory.mktemp("runs") / "maml")
    Trainer(tiny_config(tiny_root, iterations=2), run).fit()
    support, query = task_images(build.images(run.config(), "test"))
    return ms.load(run).adapt(support), query / 255


class Own(nn.Module):
    """Functions instead of layers, a shortcut, and a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.first = MaskedConv2d(3, 8, 3, padding=1)
        self.norm = BatchNorm2d(8)
        self.again = MaskedConv2d(8, 8, 3, padding=1)
        self.last = MaskedConv2d(8, 6, 3, padding=1, padding_mode="reflect", bias=False)
        self.pool = NormActPool(6, pool=2)
        self.head = Linear(6, 7)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        x = x + self.again(torch.relu(self.again(x)))
        return self.head(self.pool(self.last(x)).mean((-2, -1)))


class Untraceable(Own):
    def forward(self, x):
        return super().forward(x if x.sum() < 1e9 else -x)


class Grouped(nn.Sequential):
    def __init__(self):
        super().__init__(
            *(MaskedConv2d(3, 6, 3, groups=3), nn.LeakyReLU(), MaskedConv2d(6, 6, 1, bias=False)),
            *(BatchNorm2d(6, affine=False), nn.Sigmoid(), MaskedConv2d(6, 4, 3, stride=2)),
            *(nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
        )


NETWORKS = {
    "conv4": lambda: Conv4(3, 16, 8, 5),
    "pooled": lambda: Conv4(3, 16, 8, 5, strided=False, bias=False),
    "act-pool-norm": lambda: Conv4(3, 16, 8, 5, blocks=2, strided=False, order="act_pool_norm"),
    "norm-pool-act": lambda: Conv4(3, 16, 8, 5, strided=False, order="norm_pool_act", head="mean"),
    "resnet12": lambda: ResNet12(3, 16, 4, 5),
    "resnet12 relu": lambda: ResNet12(3, 16, 4, 5, activation="relu", head="mean"),
    "own": Own,
    "untraceable": Untraceable,
    "grouped": Grouped,
    "sparsified": lambda: sparsify(
        nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.Softplus(), nn.Conv2d(8, 8, 3), nn.LeakyReLU()),
            *(nn.MaxPool2d(2), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(150, 7)),
        )
    ),
}


def close(found, wanted):
    tolerance = 1e-8 if wanted.dtype == torch.float64 else 1e-4
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("density", [0.3, 1.0])
@torch.no_grad()
def test_stock_layers_compute_the_same_with_and_without_dead_channels(name, density):
    # In float64: batch norm magnifies the rounding of channels that hardly vary.
    net = prune(NETWORKS[name](), density, dead=density < 1).double()
    images, others = torch.rand(17, 3, 16, 16, dtype=torch.float64).split((10, 7))
    wanted = net(images)[:, :4]
    found = plain_network(net, {}, masks_of(net), 4)
    layers = [type(module) for module in found.modules() if not list(module.children())]
    assert all(kind.__module__.startswith("torch.nn") for kind in layers)
    close(found(images), wanted)
    if name == "untraceable":
        return
    for frozen in (False, True):
        whole = copy.deepcopy(found)
        if frozen:
            fix_statistics(whole, images)
        close(whole(images), wanted)
        shrunk = copy.deepcopy(whole)
        without_dead_channels(shrunk)
        close(shrunk(others), whole(others))
        if density < 1:
            assert numbers(shrunk) < numbers(whole)
        else:
            assert numbers(shrunk) == numbers(whole)


@torch.no_grad()
def test_channels_that_nothing_makes_or_reads_are_gone():
    net = Conv4(3, 16, 8, 5, blocks=2).eval()
    mask = torch.ones(8, 8)
    mask[:, :3] = 0  # the second convolution reads none of these three
    net.blocks[1].conv.masker.mask.copy_(mask)
    net.blocks[1].norm.bias[:] = torch.tensor([-1.0, 1, 1, 1, -1, 1, 1, 1])
    net.blocks[1].conv.masker.mask[4] = 0  # no kernel makes it, and ReLU leaves 0 of its shift -1
    net.blocks[1].conv.masker.mask[5] = 0  # nor this, which is 1: that goes into the head
    found = plain_network(net, {}, masks_of(net), 5)
    without_dead_channels(found)
    assert found.get_submodule("blocks.0.conv").weight.shape == (5, 3, 3, 3)
    assert found.get_submodule("blocks.1.conv").weight.shape == (6, 5, 3, 3)
    assert found.head.in_features == 6 * 4 * 4
    images = torch.rand(6, 3, 16, 16)
    close(found(images), net(images))


@torch.no_grad()
def test_a_constant_that_ends_at_a_zero_border_is_kept_in_one_channel():
    net = Conv4(3, 16, 8, 5, blocks=2).eval()
    net.blocks[0].conv.masker.mask[:4] = 0
    net.blocks[0].norm.bias[:4] = torch.tensor([0.5, 2.0, 1.0, 0.1])
    found = plain_network(net, {}, masks_of(net), 5)
    without_dead_channels(found)
    assert found.get_submodule("blocks.0.conv").out_channels == 5
    assert (found.get_submodule("blocks.0.conv").weight == 0).flatten(1).all(1).sum() == 1
    images = torch.rand(6, 3, 16, 16)
    close(found(images), net(images))


@torch.no_grad()
def test_a_network_of_which_nothing_is_left_keeps_a_channel_a_layer():
    net = prune(Conv4(3, 16, 8, 5), 0.0)
    found = plain_network(net, {}, masks_of(net), 5)
    without_dead_channels(found)
    assert {m.out_channels for m in found.modules() if isinstance(m, nn.Conv2d)} == {1}
    images = torch.rand(6, 3, 16, 16)
    close(found(images), net(images))


@pytest.mark.parametrize("masker", [ScoreMask.like, lambda weight: TopKMask(0.5)])
@torch.no_grad()
def test_masks_of_weights_and_of_scores(masker):
    net = sparsify(Conv4(3, 16, 4, 5), masker).eval()
    images = torch.rand(6, 3, 16, 16)
    close(plain_network(net, {}, masks_of(net), 5)(images), net(images))


def test_a_network_leaves_the_one_it_is_from_as_it_was(task):
    adapted, _ = task
    before = {n: v.clone() for n, v in adapted.networks.model.state_dict().items()}
    adapted.network()
    after = adapted.networks.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@torch.no_grad()
def test_statistics_are_fixed_to_those_of_the_support_set(task):
    adapted, query = task
    own = {name: value[0] for name, value in adapted.networks.parameters.items()}
    known, x = adapted.support.images[0], query
    for block in range(4):
        place = f"blocks.{block}"
        known, x = (F.conv2d(v, own[f"{place}.conv.weight"], None, 2, 1) for v in (known, x))
        mean, var = known.mean((0, 2, 3)), known.var((0, 2, 3), correction=0)
        affine = own[f"{place}.norm.weight"], own[f"{place}.norm.bias"]
        known, x = (F.batch_norm(v, mean, var, *affine).relu() for v in (known, x))
    wanted = F.linear(x.flatten(1), own["head.weight"], own["head.bias"])
    found = adapted.network()
    close(found(query), wanted)
    close(torch.cat([found(image[None]) for image in query]), wanted)


@pytest.mark.parametrize("learner", LEARNERS)
def test_every_learner_leaves(tmp_path, tiny_root, learner):
    run = Run(tmp_path)
    Trainer(tiny_config(tiny_root, learner, iterations=1, width=3), run).fit()
    support, query = task_images(build.images(run.config(), "test"), ways=2)
    adapted = ms.load(run).adapt(support)
    found = adapted.network(transductive=True)(query / 255)
    close(found, adapted.logits(query / 255, transductive=True))
    assert found.shape == (6, 2)
    close(
        adapted.network()(adapted.support.images[0]),
        adapted.networks(adapted.support.images)[0, :, :2],
    )


def test_a_network_that_stock_layers_do_not_compute_is_refused(task, monkeypatch):
    adapted, _ = task
    monkeypatch.setattr("metasparse_ext.export.plain._STOCK", {})
    adapted.network(transductive=True)

    def other(layer, _):
        return nn.Linear(layer.in_features, layer.out_features)

    monkeypatch.setattr("metasparse_ext.export.plain._STOCK", {Linear: other})
    with pytest.raises(
        ValueError, match="export: expected the network to be one that PyTorch's own"
    ):
        adapted.network()


def test_numbers_that_are_not_finite_do_not_leave(task):
    adapted, _ = task
    broken = copy.copy(adapted)
    broken.networks = copy.copy(adapted.networks)
    broken.networks.parameters = {n: v * torch.nan for n, v in adapted.networks.parameters.items()}
    with pytest.raises(FloatingPointError, match="not finite"):
        broken.network()
    with pytest.raises(TypeError, match="network: expected transductive to be True or False"):
        adapted.network(transductive=1)
