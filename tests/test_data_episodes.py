"""Tasks: what is in them, that they are reproducible, and that workers change nothing."""

import dataclasses
import math
import threading
from itertools import combinations, islice

import numpy as np
import pytest
import torch
from support.data_sets import coded_classes, decode

from metasparse_ext.data import DataError, EpisodeSampler, ImageClasses, Mixture, episodes
from metasparse_ext.data.prefetch import prefetch
from metasparse_ext.data.sampler import nth_set

TASK = {"ways": 5, "shots": 2, "queries": 3, "tasks": 4}


def equal(first, second):
    return all(
        torch.equal(a, b)
        for one, two in zip(first, second, strict=True)
        for a, b in zip(one[:2], two[:2], strict=True)
    )


@pytest.fixture
def data():
    return coded_classes([6, 9, 5, 7, 20, 5, 8, 11])


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("tasks", [1, 4])
def test_shapes_and_types(data, tasks, shots):
    batch = EpisodeSampler(data, ways=5, shots=shots, queries=2, tasks=tasks)[0]
    for samples, each in ((batch.support, shots), (batch.query, 2)):
        assert samples.images.shape == (tasks, 5 * each, 1, 3, 3)
        assert samples.images.dtype == torch.float32
        assert samples.labels.shape == (tasks, 5 * each)
        assert samples.labels.dtype == torch.int64
        assert samples.images.is_contiguous()
        assert samples.labels.is_contiguous()
        assert samples.distribution is None


def test_pixels_span_zero_to_one():
    images = np.array([0, 255], np.uint8).reshape(2, 1, 1)
    data = ImageClasses.from_labels(images, np.zeros(2, int), ["a"], name="x", split="train")
    batch = EpisodeSampler(data, ways=1, shots=1, queries=1, tasks=1)[0]
    assert {batch.support.images.item(), batch.query.images.item()} == {0.0, 1.0}


def test_labels_stand_for_distinct_classes_and_images_for_one_class(data):
    sampler = EpisodeSampler(data, **TASK)
    for batch in (sampler[i] for i in range(20)):
        classes, indices = decode(torch.cat([batch.support.images, batch.query.images], dim=1))
        labels = torch.cat([batch.support.labels, batch.query.labels], dim=1).numpy()
        for task in range(4):
            meanings = [set(classes[task][labels[task] == label]) for label in range(5)]
            assert [len(meaning) for meaning in meanings] == [1] * 5
            assert len(set().union(*meanings)) == 5
            chosen = set(zip(classes[task], indices[task], strict=True))
            assert len(chosen) == 5 * (2 + 3), "support and query share an image"


def test_every_class_label_and_image_comes_up_equally_often(data):
    sampler = EpisodeSampler(data, ways=4, shots=1, queries=1, tasks=2000)
    classes, indices = decode(sampler[0].support.images)
    # 2000 tasks x 4 labels over 8 classes: each label is each class 250 times, deviation 15.
    counts = np.stack([np.bincount(classes[:, label], minlength=8) for label in range(4)])
    assert abs(counts - 250).max() < 75
    # class 4 has 20 images and is chosen about 1000 times: each image 50 times, deviation 7.
    assert abs(np.bincount(indices[classes == 4], minlength=20) - 50).max() < 35


def test_sets_are_numbered_as_combinations_are():
    for count, size in ((6, 3), (5, 5), (7, 1), (1, 1)):
        every = [nth_set(count, size, number).tolist() for number in range(math.comb(count, size))]
        assert every == [list(each) for each in combinations(range(count), size)]
    assert nth_set(64, 5, math.comb(64, 5) - 1).tolist() == [59, 60, 61, 62, 63]


def test_a_task_of_every_set_of_classes(data):
    sampler = EpisodeSampler(data, ways=3, shots=1, queries=2, tasks=56, every_set=True)
    assert sampler.sets == 56
    classes, _ = decode(sampler[0].support.images)
    assert sorted(sorted(task) for task in classes.tolist()) == [
        list(each) for each in combinations(range(8), 3)
    ]
    again, _ = decode(sampler[1].support.images)
    assert [sorted(task) for task in again.tolist()] == [sorted(task) for task in classes.tolist()]
    # Which class has which label is drawn: of 6 orders each comes about 9 times in 56.
    orders = {tuple(np.argsort(task)) for task in classes.tolist()}
    assert len(orders) == 6
    assert not equal(sampler[0], sampler[1])


def test_every_set_is_of_one_data_set(data):
    mixture = Mixture.of([data, dataclasses.replace(data, name="other")])
    with pytest.raises(ValueError, match=r"every_set to be False, \w+\+other"):
        episodes(mixture, **TASK, every_set=True)
    with pytest.raises(TypeError, match="every_set"):
        EpisodeSampler(data, **TASK, every_set=1)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_and_start_change_nothing(data, workers):
    sampler = EpisodeSampler(data, **TASK, seed=3)
    stream = episodes(data, **TASK, seed=3, workers=workers, start=5)
    batches = list(islice(stream, 12))
    stream.close()
    assert all(equal(batch, sampler[5 + i]) for i, batch in enumerate(batches))


def test_tasks_do_not_depend_on_how_they_are_cut_into_batches(data):
    fours = EpisodeSampler(data, **TASK | {"tasks": 4})
    sixes = EpisodeSampler(data, **TASK | {"tasks": 6})
    together = [
        torch.cat([s[i].query.images for i in range(n)]) for s, n in ((fours, 3), (sixes, 2))
    ]
    assert torch.equal(*together)


def test_seeds_splits_and_batches_differ(data):
    same_sizes = coded_classes(data.sizes.tolist(), split="test")
    base = EpisodeSampler(data, **TASK)[0]
    assert not equal(base, EpisodeSampler(data, **TASK)[1])
    assert not equal(base, EpisodeSampler(data, **TASK, seed=1)[0])
    assert not equal(base, EpisodeSampler(same_sizes, **TASK)[0])


def test_the_sequence_of_a_seed_never_changes():
    """A change here breaks every resumed run and every fixed evaluation set."""
    data = coded_classes([7, 4, 5, 6])
    batch = EpisodeSampler(data, ways=3, shots=1, queries=1, tasks=2, seed=42)[7]
    classes, indices = decode(torch.stack([batch.support.images, batch.query.images]))
    assert (classes.tolist(), indices.tolist()) == (
        [[[3, 2, 1], [2, 0, 1]], [[3, 2, 1], [2, 0, 1]]],
        [[[5, 1, 1], [2, 3, 0]], [[4, 4, 3], [4, 2, 3]]],
    )


def test_rotations_turn_each_class_as_one():
    images = np.zeros((40, 4, 4, 3), np.uint8)
    images[:, 0, 0] = 200  # a corner that says which way is up
    images[:, 1, 2] = np.arange(40)[:, None]
    data = ImageClasses.from_labels(
        images, np.repeat(np.arange(4), 10), list("abcd"), name="x", split="train"
    )
    task = {"ways": 4, "shots": 2, "queries": 3, "tasks": 16}
    upright = EpisodeSampler(data, **task)[1]
    turned = EpisodeSampler(data, **task, rotations=True)[1]
    seen = set()
    for t in range(16):
        for label in range(4):
            (match,) = [
                k
                for k in range(4)
                if all(
                    torch.equal(
                        torch.rot90(a.images[t][a.labels[t] == label], k, (-2, -1)),
                        b.images[t][b.labels[t] == label],
                    )
                    for a, b in zip(upright, turned, strict=True)
                )
            ]
            seen.add(match)
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ways": 9}, "coded/train: 9-way tasks need 9 classes, there are 8"),
        ({"queries": 4}, "need 6 images of every class, there are 5 of 'class2'"),
    ],
)
def test_too_few(data, change, message):
    with pytest.raises(DataError, match=message):
        episodes(data, **TASK | change)


@pytest.mark.parametrize(
    "argument", ["ways", "shots", "queries", "tasks", "seed", "workers", "start"]
)
def test_numbers_out_of_range(data, argument):
    with pytest.raises(ValueError, match=f"episodes: expected {argument} to be at least ., got -1"):
        episodes(data, **TASK | {argument: -1})
    with pytest.raises(TypeError, match=f"expected {argument} to be an integer, got float 2.5"):
        episodes(data, **TASK | {argument: 2.5})


def test_rotations_need_square_images():
    data = ImageClasses.from_labels(
        np.zeros((4, 2, 3), np.uint8), np.array([0, 0, 1, 1]), ["a", "b"], name="x", split="val"
    )
    with pytest.raises(DataError, match="rotations need square images, these are 2x3"):
        episodes(data, ways=2, shots=1, queries=1, tasks=1, rotations=True)


def test_split_of_given_classes_is_checked(data):
    with pytest.raises(DataError, match="expected data to be of split 'test', got coded/train"):
        episodes(data, split="test", **TASK)


def test_data_by_name(tmp_path):
    np.savez(
        tmp_path / "omniglot.npz",
        images=np.zeros((8, 4, 4), np.uint8),
        labels=np.repeat([0, 1], 4),
        class_names=["a", "b"],
        split=["val", "val"],
    )
    batch = next(episodes("omniglot", tmp_path, split="val", ways=2, shots=1, queries=2, tasks=3))
    assert batch.query.images.shape == (3, 4, 1, 4, 4)
    with pytest.raises(DataError, match="no class in split 'train'"):
        episodes("omniglot", tmp_path, ways=2, shots=1, queries=2, tasks=3)


def workers_alive():
    return [t for t in threading.enumerate() if t.name.startswith("metasparse-data")]


class TestPrefetch:
    def test_order_is_kept_when_later_items_are_ready_first(self):
        second_is_done = threading.Event()

        def function(index):
            if index == 0:
                assert second_is_done.wait(10)
            if index == 1:
                second_is_done.set()
            return index

        stream = prefetch(function, 0, workers=2)
        assert list(islice(stream, 5)) == [0, 1, 2, 3, 4]
        stream.close()

    def test_runs_a_bounded_number_of_items_ahead(self):
        called = []
        stream = prefetch(called.append, 0, workers=2)
        next(stream)
        stream.close()
        assert len(called) <= 5

    @pytest.mark.parametrize("workers", [0, 2])
    def test_an_exception_comes_where_its_item_would_have(self, workers):
        def function(index):
            if index == 3:
                raise KeyError("third")
            return index

        stream = prefetch(function, 0, workers)
        assert list(islice(stream, 3)) == [0, 1, 2]
        with pytest.raises(KeyError, match="third"):
            next(stream)
        assert not workers_alive()

    @pytest.mark.parametrize("end", ["close", "drop"])
    def test_workers_end(self, end):
        stream = prefetch(str, 0, workers=3)
        next(stream)
        assert workers_alive()
        if end == "close":
            stream.close()
        del stream
        assert not workers_alive()
