"""Training with parts of one's own that few others are like."""

import pytest
import torch
from support.training_helpers import StopAfter, assert_same_state, timeless
from test_own_parts import config, state

from metasparse_ext.training import Run, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


def resumed_exactly(folder, asked, parts=dict):
    """Trains twice, once with a stop between; returns the records, which are the same."""
    whole, stopped = Run(folder / "whole"), Run(folder / "stopped")
    Trainer(asked, whole, **parts()).fit()
    assert Trainer(asked, stopped, reporter=StopAfter(4), **parts()).fit().interrupted
    Trainer(asked, stopped, **parts()).fit()
    assert timeless(stopped) == timeless(whole)
    assert_same_state(state(stopped), state(whole))
    return timeless(whole)


# Optimizers.


def head_alone(learner, lr):
    return torch.optim.Adam(list(learner.parameters())[-2:], lr=lr)


def test_the_meta_gradient_is_that_of_what_is_stepped(tmp_path):
    asked = config(clip_norm=0.01, meta_lr=1e-6, iterations=20, validate_every=20)
    records = resumed_exactly(tmp_path, asked, lambda: {"optimizer": head_alone})
    norms = [record["gradient_norm"] for record in records if record["kind"] == "train"]
    # Of weights that hardly change: what is not stepped does not pile up.
    assert max(norms[10:]) < 2 * max(norms[:10])
    trainer = Trainer(asked, Run(tmp_path / "one"), optimizer=head_alone)
    trainer._step(next(trainer.batches))
    *_, weight, bias = trainer.learner.parameters()
    norm = torch.stack([weight.grad.norm(), bias.grad.norm()]).norm()
    torch.testing.assert_close(float(norm), 0.01, rtol=1e-3, atol=0)


class Counting(torch.optim.SGD):
    """Keeps a count of its own beside what it has of each parameter."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr, momentum=0.9)
        self.state["count"] = 0

    def step(self, closure=None):
        self.state["count"] += 1
        return super().step(closure)


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_an_optimizer_may_keep_what_it_likes(tmp_path, on_nonfinite):
    asked = config(on_nonfinite=on_nonfinite)
    resumed_exactly(tmp_path, asked, lambda: {"optimizer": Counting})


class Rateless(torch.optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {})


def lbfgs(parameters, lr):
    return torch.optim.LBFGS(parameters, lr=lr)


@pytest.mark.parametrize(
    ("optimizer", "sentence"),
    [
        (Rateless, "optimizer to be one with a rate lr in each of its groups, .* Rateless without"),
        (lbfgs, r"optimizer to be one that steps by the gradients .* LBFGS, whose step\(closure\)"),
    ],
)
def test_optimizers_that_the_loop_cannot_step_are_refused(tmp_path, optimizer, sentence):
    with pytest.raises(ValueError, match=sentence):
        Trainer(config(), Run(tmp_path), optimizer=optimizer)
    assert not Run(tmp_path).started
