"""The learner that the documentation writes: two methods are enough."""

import re
from pathlib import Path

import torch
from plain_tasks import batch, network

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "learners.md"


def test_the_documented_learner_works():
    source = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)[-1]
    names = {}
    exec(source, names)
    net, tasks = network(), batch()
    learner = names["Reptile"](net, inner_lr=0.1, inner_steps=3)
    metrics = learner.meta_backward(tasks)
    adapted = learner.adapt(tasks.support)
    for name, parameter in net.named_parameters():
        expected = (parameter - adapted.parameters[name]).mean(0)
        torch.testing.assert_close(parameter.grad, expected)
    assert metrics.loss.shape == (3,)
    assert learner.iteration == 1
