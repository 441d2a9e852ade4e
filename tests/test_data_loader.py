"""Samplers of tasks in torch's DataLoader, and under a default device."""

import pytest
import torch
from support.data_sets import coded_classes
from torch.utils.data import DataLoader

from metasparse_ext.data import EpisodeSampler, Mixture, MixtureSampler, TaskBatch, episodes

TASK = {"ways": 3, "shots": 1, "queries": 2, "tasks": 2}


@pytest.fixture
def data():
    return coded_classes([6, 9, 5, 7])


def same(first, second):
    return all(
        torch.equal(a, b)
        for one, two in zip(first, second, strict=True)
        for a, b in zip(one, two, strict=True)
        if a is not None
    )


def mixture():
    other = coded_classes([8, 8, 8])
    object.__setattr__(other, "name", "other")
    return Mixture((coded_classes([6, 9, 5, 7]), other))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("pin", [False, pytest.param(True, marks=pytest.mark.cuda)])
def test_batches_come_in_order(data, workers, pin):
    if pin and not torch.cuda.is_available():
        pytest.skip("pinned memory needs CUDA")
    sampler = EpisodeSampler(data, **TASK, length=5)
    loader = DataLoader(sampler, batch_size=None, num_workers=workers, pin_memory=pin)
    batches = list(loader)
    assert len(loader) == len(batches) == len(sampler) == 5
    assert all(isinstance(batch, TaskBatch) for batch in batches)
    assert all(same(batch, sampler[i]) for i, batch in enumerate(batches))


@pytest.mark.parametrize("make", [lambda data: data, lambda data: mixture()])
def test_batches_of_batches_are_joined(data, make):
    data = make(data)
    kind = MixtureSampler if isinstance(data, Mixture) else EpisodeSampler
    (joined, rest) = DataLoader(kind(data, **TASK, length=3), batch_size=2)
    whole = kind(data, **TASK | {"tasks": 4})[0]
    assert same(joined, whole)
    assert (joined.distribution is None) == (kind is EpisodeSampler)
    assert rest.query.images.shape == (2, 6, 1, 3, 3)


def test_a_loader_may_shuffle(data):
    sampler = EpisodeSampler(data, **TASK, length=4)
    shuffled = list(DataLoader(sampler, batch_size=None, shuffle=True))
    places = [next(i for i in range(4) if same(batch, sampler[i])) for batch in shuffled]
    assert sorted(places) == [0, 1, 2, 3]


@pytest.mark.parametrize("make", [coded_classes, lambda sizes: mixture()])
def test_length(make):
    kind = EpisodeSampler if make is coded_classes else MixtureSampler
    data = make([6, 9, 5, 7])
    sampler = kind(data, **TASK, length=2)
    assert len(list(sampler)) == 2
    with pytest.raises(IndexError, match="batch 2 of 2"):
        sampler[2]
    with pytest.raises(TypeError, match="expected length to be a number"):
        len(kind(data, **TASK))


def test_every_tensor_is_in_host_memory_under_another_default_device(data):
    expected = next(episodes(data, **TASK))
    # torch draws the seed of its workers on the default device, which the meta device cannot.
    loaded = iter(DataLoader(EpisodeSampler(data, **TASK, length=1), batch_size=None))
    with torch.device("meta"):
        for batch in (next(episodes(data, **TASK)), next(loaded)):
            devices = {t.device.type for part in batch for t in part if t is not None}
            assert devices == {"cpu"}
            with torch.device("cpu"):
                assert same(batch, expected)
        mixed = next(episodes(mixture(), **TASK))
    assert mixed.distribution.tolist() == [0, 1]
