"""Operator calls of a meta-step: what a small network's step costs beside its kernels.

Every call of the dispatcher counts, those inside others too. The bounds only ever go down.
"""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from metasparse_ext import _library
from metasparse_ext.algorithms import MAML, MetaDOCK, MetaLearner
from metasparse_ext.data import Samples, TaskBatch
from metasparse_ext.nn import Conv4

pytestmark = pytest.mark.skipif(_library.problem is not None, reason="no compiled library")


def calls_of(learner: MetaLearner, shots: int, queries: int, image: tuple[int, ...]) -> int:
    """Of a meta-step on 4 tasks of 5 classes after the first, with gradients there already."""

    def samples(each: int) -> Samples:
        labels = torch.arange(5).repeat_interleave(each).expand(4, -1)
        return Samples(torch.rand(4, 5 * each, *image), labels)

    batch = TaskBatch(samples(shots), samples(queries))
    learner.meta_backward(batch)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        learner.meta_backward(batch)
    ours = ("aten::", "metasparse::")
    return sum(event.name.startswith(ours) for event in profiler.events())


def test_maml_of_five_steps():
    """Second order, strided Conv-4 of 64 channels at 28 pixels."""
    learner = MAML(Conv4(1, 28, 64, ways=5), inner_lr=0.05, inner_steps=5)
    assert calls_of(learner, 1, 15, (1, 28, 28)) <= 1825


def test_metadock_of_sixteen_steps():
    """And 5 products of conjugate gradients, half-way through the ramp of its budget."""
    learner = MetaDOCK(Conv4(3, 32, 64, ways=5), inner_steps=16, total_iterations=4)
    learner.iteration.fill_(2)
    assert calls_of(learner, 5, 5, (3, 32, 32)) <= 4747
