"""Labels that are no classes are refused by name, by every learner, before anything is trained."""

import numpy as np
import pytest
import torch
from support.training_helpers import tiny_config

from metasparse_ext.algorithms import LEARNERS
from metasparse_ext.algorithms.samples import INTEGERS
from metasparse_ext.algorithms.task_networks import cross_entropy
from metasparse_ext.data import DataError, ImageClasses, Samples, TaskBatch
from metasparse_ext.training import build

WAYS = 3


def samples(each):
    labels = torch.arange(WAYS).repeat_interleave(each).expand(2, -1).contiguous()
    return Samples(torch.rand(2, WAYS * each, 1, 16, 16), labels)


def learner_of(name, root):
    return build.learner(tiny_config(root, name), (1, 16, 16))


def with_label(which, value):
    batch = TaskBatch(samples(1), samples(2))
    getattr(batch, which).labels[1, 2] = value
    return batch


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("which", ["support", "query"])
@pytest.mark.parametrize("value", [-100, -1, WAYS])
def test_a_label_that_is_no_class_is_refused(tiny_root, name, which, value):
    learner = learner_of(name, tiny_root)
    with pytest.raises(ValueError, match=rf"expected .*labels to be .*, got {value} in task 1"):
        learner.meta_backward(with_label(which, value))
    assert all(parameter.grad is None for parameter in learner.parameters())
    if which == "support":
        with pytest.raises(ValueError, match=rf"expected .*labels to be .*, got {value} in task 1"):
            learner.adapt(with_label(which, value).support)


@pytest.mark.parametrize("name", LEARNERS)
def test_labels_that_are_not_as_many_as_the_images_are_refused(tiny_root, name):
    learner, batch = learner_of(name, tiny_root), TaskBatch(samples(1), samples(2))
    fewer = batch.support._replace(labels=batch.support.labels[:, :2])
    expected = r"support\.labels to be \(T, N\) = \(2, 3\) like the images, got \(2, 2\)"
    with pytest.raises(ValueError, match=expected):
        learner.meta_backward(batch._replace(support=fewer))
    with pytest.raises(ValueError, match=expected):
        learner.adapt(fewer)
    with pytest.raises(ValueError, match=r"query\.labels to be .* got \(2, 6, 1\)"):
        learner.meta_backward(
            batch._replace(query=batch.query._replace(labels=batch.query.labels[..., None]))
        )


def test_labels_that_are_not_integers_are_refused(tiny_root):
    learner, batch = learner_of("maml", tiny_root), TaskBatch(samples(1), samples(2))
    soft = batch.query._replace(labels=batch.query.labels.float())
    with pytest.raises(TypeError, match=r"query\.labels to be integers, got float32"):
        learner.meta_backward(batch._replace(query=soft))


def test_labels_without_values_are_not_looked_at():
    """On meta, and under a transform; one that is no class makes the loss of its task NaN."""
    logits, labels = torch.randn(2, 3, WAYS), torch.zeros(2, 3, dtype=torch.int64)
    assert cross_entropy(logits.to("meta"), labels.to("meta")).shape == (2,)
    each = torch.func.vmap(cross_entropy)(logits.expand(2, -1, -1, -1), labels.expand(2, -1, -1))
    torch.testing.assert_close(each[1], cross_entropy(logits, labels))


def test_query_sets_of_other_tasks_are_refused(tiny_root):
    learner, batch = learner_of("maml", tiny_root), TaskBatch(samples(1), samples(2))
    with pytest.raises(
        ValueError, match=r"batch\.query to be of T = 2 tasks like the support set, got 1"
    ):
        learner.meta_backward(batch._replace(query=batch.query.tasks(slice(1))))


@pytest.mark.parametrize("name", LEARNERS)
def test_narrow_integers_train_as_wide_ones_do(tiny_root, name):
    batch = TaskBatch(samples(1), samples(2))
    losses = []
    for dtype in INTEGERS:
        narrow = TaskBatch(*(part._replace(labels=part.labels.to(dtype)) for part in batch))
        learner = learner_of(name, tiny_root)
        losses.append(learner.meta_backward(narrow).loss)
        learner.adapt(narrow.support)
    assert all(torch.equal(loss, losses[0]) for loss in losses)


@pytest.mark.parametrize("part", ["images", "labels"])
def test_samples_on_another_device_are_refused(tiny_root, part):
    learner, support = learner_of("maml", tiny_root), samples(1)
    elsewhere = support._replace(**{part: getattr(support, part).to("meta")})
    expected = rf"MAML: expected support\.{part} to be on cpu like the model, got meta"
    with pytest.raises(ValueError, match=expected):
        learner.adapt(elsewhere)
    expected = rf"MAML: expected batch\.query\.{part} to be on cpu like the model, got meta"
    with pytest.raises(ValueError, match=expected):
        learner.meta_backward(TaskBatch(support, elsewhere))


def test_a_distribution_that_there_is_not_is_refused(tiny_root):
    learner, support = learner_of("multi-maml", tiny_root), samples(1)
    for which, expected in (
        (torch.tensor([0, 1]), r"distribution of support to be from 0 to 0, got \[0, 1\]"),
        (torch.tensor([0]), r"support\.distribution to be \(T,\) = \(2,\)"),
    ):
        with pytest.raises(ValueError, match=expected):
            learner.adapt(support._replace(distribution=which))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (
            [0, 1, 2],
            "from 0 to 1, as class_names are, in .*, got 2 for image 2",
        ),
        ([0, -1, 1], "got -1 for image 1"),
        (
            [0, 1],
            r"an integer for each of 3 images of .*, got \(2,\) of int64",
        ),
        ([0.0, 1.0, 1.0], "of float64"),
    ],
)
def test_grouping_images_leaves_none_out(labels, expected):
    images = np.zeros((3, 4, 4), np.uint8)
    with pytest.raises(DataError, match=expected):
        ImageClasses.from_labels(images, np.array(labels), ["a", "b"], name="x", split="train")
