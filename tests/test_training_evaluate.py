"""Evaluation against plain loops."""

import math

import pytest
import torch
from support.training_helpers import tiny_config
from torch import nn

from metasparse_ext.algorithms import MAML
from metasparse_ext.algorithms.task_networks import AdaptedTasks
from metasparse_ext.data import Samples
from metasparse_ext.nn import FixedMask
from metasparse_ext.training import build, evaluate, predict

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def config(tiny_root):
    return tiny_config(tiny_root)


@pytest.fixture(scope="module")
def classes(config):
    return build.images(config, "test")


@pytest.fixture
def learner(config, classes):
    return build.learner(config, classes.shape)


def batches(config, classes, tasks=2):
    return build.episodes(config, classes, seed=1, tasks=tasks)


def one(samples: Samples, task: int) -> Samples:
    return samples.tasks(slice(task, task + 1))


@pytest.mark.parametrize("transductive", [True, False])
def test_accuracy_and_interval_equal_a_loop_over_tasks(config, classes, learner, transductive):
    found = evaluate(learner, batches(config, classes), tasks=6, transductive=transductive)
    accuracies = []
    stream = batches(config, classes)
    for batch in (next(stream) for _ in range(3)):
        for task in range(2):
            support, query = one(batch.support, task), one(batch.query, task)
            adapted = learner.adapt(support)
            guesses = predict(adapted, support, query.images, transductive=transductive)
            accuracies.append(float((guesses.argmax(-1) == query.labels).double().mean()))
    mean = sum(accuracies) / 6
    variance = sum((accuracy - mean) ** 2 for accuracy in accuracies) / 6
    assert found.tasks == 6
    assert found.transductive is transductive
    assert found.accuracy == pytest.approx(mean)
    assert found.interval == pytest.approx(1.96 * math.sqrt(variance / 6))


def test_the_last_batch_is_cut_and_batch_size_does_not_matter(config, classes, learner):
    by_two = evaluate(learner, batches(config, classes), tasks=5)
    by_five = evaluate(learner, batches(config, classes, tasks=5), tasks=5)
    assert by_two.tasks == 5
    assert by_two.accuracy == pytest.approx(by_five.accuracy)
    assert by_two.loss == pytest.approx(by_five.loss, rel=1e-4)


def test_not_transductive_sees_the_support_set_and_one_query_at_a_time(config, classes, learner):
    batch = next(batches(config, classes))
    adapted = learner.adapt(batch.support)
    with torch.no_grad():
        found = predict(adapted, batch.support, batch.query.images, transductive=False)
        for query in range(batch.query.labels.shape[1]):
            image = batch.query.images[:, query : query + 1]
            alone = adapted(torch.cat([batch.support.images, image], 1))[:, -1]
            torch.testing.assert_close(found[:, query], alone, rtol=1e-4, atol=1e-5)


def test_not_transductive_predictions_do_not_depend_on_the_other_queries(config, classes, learner):
    batch = next(batches(config, classes))
    adapted = learner.adapt(batch.support)
    with torch.no_grad():
        several = predict(adapted, batch.support, batch.query.images, transductive=False)
        single = predict(adapted, batch.support, batch.query.images[:, :1], transductive=False)
        torch.testing.assert_close(several[:, :1], single, rtol=1e-4, atol=1e-5)
        together = predict(adapted, batch.support, batch.query.images)
    assert not torch.allclose(several, together, atol=1e-4)


def test_many_queries_are_folded_in_parts(monkeypatch, config, classes, learner):
    calls = []
    original = AdaptedTasks.__call__

    def counted(self, images):
        calls.append(images.shape[0])
        return original(self, images)

    batch = next(batches(config, classes))
    adapted = learner.adapt(batch.support)
    whole = predict(adapted, batch.support, batch.query.images, transductive=False)
    monkeypatch.setattr(AdaptedTasks, "__call__", counted)
    monkeypatch.setattr("metasparse_ext.training.scores._FOLDED_TASKS", 8)
    parts = predict(adapted, batch.support, batch.query.images, transductive=False)
    assert calls == [8, 4]
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_the_learner_is_left_as_it_is(config, classes, learner):
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    evaluate(learner, batches(config, classes), tasks=2)
    for name, value in learner.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in learner.parameters())


def test_dropout_rests_in_evaluation_alone(config, classes):
    net = nn.Sequential(nn.Dropout(0.9), build.network(config, classes.shape))
    net[1].blocks[0].eval()
    learner = MAML(net, inner_lr=0.1, inner_steps=1)
    modes = [module.training for module in learner.modules()]
    assert sum(modes) < len(modes)
    found = [evaluate(learner, batches(config, classes), tasks=4).loss for _ in range(2)]
    assert found[0] == found[1]
    assert [module.training for module in learner.modules()] == modes
    support = next(batches(config, classes)).support
    losses = [learner.gradient(learner.start(2), support)[0] for _ in range(2)]
    assert not torch.equal(*losses)


def test_kernels_and_multiply_accumulates_are_those_of_the_masks(config, classes, learner):
    dense = evaluate(learner, batches(config, classes), tasks=2)
    assert dense.active == 1
    assert dense.macs == dense.dense_macs
    second = learner.model.blocks[1].conv
    mask = torch.ones(4, 4)
    mask[0] = 0
    second.masker = FixedMask(mask)
    pruned = evaluate(learner, batches(config, classes), tasks=2)
    assert pruned.kernels == dense.kernels == 4 + 3 * 16
    assert pruned.active == pytest.approx(1 - 4 / pruned.kernels)
    assert pruned.dense_macs == dense.macs
    assert dense.macs - pruned.macs == 4 * 9 * 4 * 4
    assert torch.equal(pruned.usage["blocks.1.conv"].float(), mask)


def test_too_few_tasks_are_an_error(config, classes, learner):
    stream = batches(config, classes)
    with pytest.raises(ValueError, match="batches to be those of 5 tasks, got 4"):
        evaluate(learner, [next(stream), next(stream)], tasks=5)
