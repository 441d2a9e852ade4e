"""Our layers in learn2learn's algorithms, and its tasksets in our learners."""

from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import peers
from metasparse_ext.algorithms import MAML
from metasparse_ext.data import DataError, Samples, TaskBatch, from_learn2learn
from metasparse_ext.nn import Conv4, FixedMask, MaskedConv2d, ScoreMask, TopKMask, sparsify
from metasparse_ext.ops import norm_act_pool

needs_learn2learn = pytest.mark.skipif(
    not peers.HAS_LEARN2LEARN,
    reason="learn2learn is not installed; docs/learn2learn.md says how it is on Python >= 3.11",
)
pytestmark = pytest.mark.usefixtures("one_thread")

RATE, STEPS, WAYS = 0.1, 2, 3
MAKERS = {
    "whole": lambda weight: FixedMask(torch.ones(weight.shape[:2])),
    "fixed kernels": lambda weight: FixedMask(torch.rand(weight.shape[:2]) < 0.7),
    "fixed weights": lambda weight: FixedMask(torch.rand(weight.shape) < 0.5),
    "scores": lambda weight: ScoreMask.like(weight, -0.5, 1.0),
    "top kernels": lambda weight: TopKMask(0.6, "kernel"),
    "top weights": lambda weight: TopKMask(0.4, "weight"),
}


def network(maker="fixed kernels"):
    torch.manual_seed(1)
    net = Conv4(1, 8, 4, WAYS, blocks=2, strided=False, dtype=torch.float64)
    return sparsify(net, MAKERS[maker], inplace=True)


def tasks(count=3):
    torch.manual_seed(2)

    def samples(each):
        labels = torch.arange(WAYS).repeat_interleave(each).expand(count, -1)
        return Samples(torch.rand(count, WAYS * each, 1, 8, 8, dtype=torch.float64), labels)

    return TaskBatch(samples(2), samples(3))


def theirs(wrapped, batch):
    """The mean meta-gradient of an algorithm of learn2learn, by the name of its parameter."""
    wrapped.zero_grad()
    count = len(batch.support.images)
    for t in range(count):
        task = wrapped.clone()
        for _ in range(STEPS):
            task.adapt(F.cross_entropy(task(batch.support.images[t]), batch.support.labels[t]))
        loss = F.cross_entropy(task(batch.query.images[t]), batch.query.labels[t])
        (loss / count).backward()
    return {n: p.grad for n, p in wrapped.named_parameters() if p.grad is not None}


def assert_same(found, expected):
    flat, other = (torch.cat([g.flatten() for g in side.values()]) for side in (found, expected))
    assert flat.norm() > 0
    assert float((flat - other).norm() / other.norm()) < 1e-9


@needs_learn2learn
@pytest.mark.parametrize("first_order", [False, True], ids=["second order", "first order"])
@pytest.mark.parametrize("maker", MAKERS)
def test_maml_has_the_meta_gradient_of_our_maml(maker, first_order):
    net, batch = network(maker), tasks()
    wrapped = peers.learn2learn().algorithms.MAML(net, lr=RATE, first_order=first_order)
    expected = theirs(wrapped, batch)
    net.zero_grad()
    learner = MAML(net, inner_lr=RATE, inner_steps=STEPS, first_order=first_order)
    learner.meta_backward(batch)
    found = {f"module.{n}": p.grad for n, p in net.named_parameters()}
    assert found.keys() == expected.keys()
    assert_same(found, expected)


def wrappers(first_order):
    """MetaSGD, and GBML with a transform that scales, and one that has the weights' shapes."""
    l2l = peers.learn2learn()
    curvature = l2l.optim.transforms.MetaCurvatureTransform
    scale = l2l.optim.ModuleTransform(l2l.nn.Scale)
    order = {"first_order": first_order}
    return {
        "MetaSGD": lambda net: l2l.algorithms.MetaSGD(net, lr=RATE, **order),
        "GBML": lambda net: l2l.algorithms.GBML(net, scale, lr=RATE, **order),
        "GBML, curvature": lambda net: l2l.algorithms.GBML(net, curvature, lr=RATE, **order),
        "GBML, adapted": lambda net: l2l.algorithms.GBML(
            net, scale, lr=RATE, adapt_transform=True, **order
        ),
    }


@needs_learn2learn
@pytest.mark.parametrize(
    ("algorithm", "first_order"),
    [
        *(
            (name, order)
            for name in ("MetaSGD", "GBML", "GBML, curvature")
            for order in (False, True)
        ),
        # Of first order this one fails with stock layers too: it frees a graph that it needs again.
        ("GBML, adapted", False),
    ],
)
def test_other_algorithms_treat_ours_as_they_treat_stock_layers(algorithm, first_order):
    net, batch = network(), tasks()
    twin = peers.stock_twin(net).double()
    with torch.no_grad():
        for ours, stock in zip(net.parameters(), twin.parameters(), strict=True):
            stock.copy_(ours)
    wrap = wrappers(first_order)[algorithm]
    torch.manual_seed(3)
    found = theirs(wrap(net).double(), batch)
    torch.manual_seed(3)
    expected = theirs(wrap(twin).double(), batch)
    assert len(found) == len(expected)
    assert_same(found, expected)


class Own(nn.Module):
    """A user's module that calls an op of ours by itself."""

    def __init__(self):
        super().__init__()
        self.conv = MaskedConv2d(1, 4, 3, padding=1, mask=TopKMask(0.5), dtype=torch.float64)
        self.scale = nn.Parameter(torch.ones(4, dtype=torch.float64))
        self.head = nn.Linear(64, WAYS, dtype=torch.float64)

    def forward(self, x):
        return self.head(norm_act_pool(self.conv(x), self.scale, None, pool=2).flatten(1))


@needs_learn2learn
def test_a_module_that_calls_our_ops_is_cloned_and_adapted():
    net = Own()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    gradient = theirs(peers.learn2learn().algorithms.MAML(net, lr=RATE), tasks())
    assert set(gradient) == {f"module.{name}" for name in before}
    assert all(torch.equal(before[name], p) for name, p in net.named_parameters())


def taskset(l2l, classes=6, each=7, samples=5):
    torch.manual_seed(4)
    pixels = torch.rand(classes * each, 1, 8, 8, dtype=torch.float64)
    pixels[:, 0, 0, 0] = torch.arange(classes).repeat_interleave(each) / 10
    labels = torch.arange(classes).repeat_interleave(each)
    dataset = l2l.data.MetaDataset(torch.utils.data.TensorDataset(pixels, labels))
    names = ("NWays", "KShots", "LoadData", "RemapLabels", "ConsecutiveLabels")
    options = {"NWays": [WAYS], "KShots": [samples]}
    made = [getattr(l2l.data.transforms, n)(dataset, *options.get(n, [])) for n in names]
    return l2l.data.Taskset(dataset, made, num_tasks=20)


@needs_learn2learn
def test_its_tasksets_are_batches_of_tasks():
    for batch in islice(from_learn2learn(taskset(peers.learn2learn()), shots=2, tasks=4), 3):
        assert batch.support.images.shape == (4, WAYS * 2, 1, 8, 8)
        assert batch.query.images.shape == (4, WAYS * 3, 1, 8, 8)
        assert batch.support.labels.tolist() == [[0, 0, 1, 1, 2, 2]] * 4
        assert batch.query.labels.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2]] * 4
        for support, query in zip(batch.support.images, batch.query.images, strict=True):
            codes = support[::2, 0, 0, 0]
            assert len(codes.unique()) == WAYS
            assert torch.equal(query[:, 0, 0, 0], codes.repeat_interleave(3))
            both = torch.cat([support, query]).flatten(1)
            assert len(both.unique(dim=0)) == WAYS * 5


@needs_learn2learn
@pytest.mark.parametrize("first_order", [False, True], ids=["second order", "first order"])
def test_both_sides_agree_on_a_taskset(first_order):
    l2l, net = peers.learn2learn(), network("top kernels")
    batch = next(from_learn2learn(taskset(l2l), shots=2, tasks=4))
    expected = theirs(l2l.algorithms.MAML(net, lr=RATE, first_order=first_order), batch)
    net.zero_grad()
    learner = MAML(net, inner_lr=RATE, inner_steps=STEPS, first_order=first_order)
    learner.meta_backward(batch)
    assert_same({n: p.grad for n, p in net.named_parameters()}, expected)


class Fixed:
    """A taskset that always draws the same task."""

    def __init__(self, images, labels):
        self.task = images, labels

    def sample(self):
        return self.task


def test_bytes_become_numbers_up_to_one_and_labels_are_sorted():
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1) * 51
    batch = next(
        from_learn2learn(Fixed(images, torch.tensor([1, 0, 1, 0, 1, 0])), shots=1, tasks=2)
    )
    assert batch.support.images[1].flatten().tolist() == pytest.approx([0.2, 0])
    assert batch.query.images[0].flatten().tolist() == pytest.approx([0.6, 1, 0.4, 0.8])
    assert batch.support.images.dtype == torch.float32


@pytest.mark.parametrize(
    ("labels", "shots", "message"),
    [
        ([0, 0, 2, 2], 1, r"every label from 0, got \[2, 0, 2\]: see RemapLabels"),
        ([0, 0, 0, 1], 1, r"got \[3, 1\]"),
        ([0, 0, 1, 1], 2, "2 shots need at least 3 samples a class, the taskset draws 2"),
    ],
)
def test_tasks_that_do_not_fit_are_explained(labels, shots, message):
    drawn = Fixed(torch.rand(4, 1, 2, 2), torch.tensor(labels))
    with pytest.raises(DataError, match=message):
        next(from_learn2learn(drawn, shots=shots, tasks=1))


@pytest.mark.parametrize("argument", ["shots", "tasks"])
def test_numbers_out_of_range(argument):
    with pytest.raises(ValueError, match=f"expected {argument} to be at least 1, got 0"):
        from_learn2learn(Fixed(None, None), **{"shots": 1, "tasks": 1, argument: 0})
