"""Numbers that are not finite: what ends a run, what is left out, and what is never saved."""

import math

import pytest
import torch
from support.training_helpers import tiny_config

from metasparse_ext.algorithms.finite import are_finite
from metasparse_ext.training import (
    Run,
    Trainer,
    TrainingError,
    checkpoint,
    meta_step,
    metrics,
    outer,
)

pytestmark = pytest.mark.usefixtures("one_thread")

AT = 3  # the iteration, counted from 0, whose numbers are not finite


@pytest.fixture(params=["eager", "captured"])
def way(request):
    """On the CPU, and as on a GPU: with its optimizer, and a graph that is none."""
    if request.param == "captured":
        request.getfixturevalue("fake_graph")
        patch = request.getfixturevalue("monkeypatch")
        patch.setattr(outer, "on_gpu", lambda config: True)
    return request.param


def nan_images(trainer, at=AT):
    """A loss that is NaN."""
    batches = trainer.batches

    def poisoned():
        for number, batch in enumerate(batches):
            if number == at:
                batch.query.images.fill_(torch.nan)
            yield batch

    trainer.batches = poisoned()


def with_gradient(trainer, value, at):
    """A meta-gradient of this size in one iteration."""
    original, seen = trainer.meta_step._clip, []

    def clip():
        seen.append(None)
        weight = trainer.learner.model.head.weight
        weight.grad.mul_(torch.full_like(weight, value if len(seen) == at + 1 else 1.0))
        return original()

    trainer.meta_step._clip = clip


def large_gradient(trainer, at=AT):
    """A meta-gradient that is finite, and whose square is not."""
    with_gradient(trainer, 1e30, at)


def far_step(trainer, at=AT):
    """A step of the optimizer that ends at infinity."""
    original, seen = trainer.optimizer.step, []

    def step(*arguments):
        original(*arguments)
        seen.append(None)
        weight = trainer.learner.model.head.weight.detach()
        weight.add_(torch.full_like(weight, torch.inf if len(seen) == at + 1 else 0.0))

    trainer.optimizer.step = step


FAULTS = [nan_images, large_gradient, far_step]


def config_of(root, **changes):
    return tiny_config(root, save_every=2, validate_every=2, **changes)


def finite_state(path):
    saved = checkpoint.load(path)
    states = [saved.learner, *saved.optimizer["state"].values()]
    return all(bool(v.isfinite().all()) for state in states for v in state.values())


@pytest.mark.parametrize("fault", FAULTS)
def test_the_run_ends_and_its_last_checkpoint_stays(tmp_path, tiny_root, fault, way):
    run = Run(tmp_path)
    trainer = Trainer(config_of(tiny_root), run)
    fault(trainer)
    with pytest.raises(TrainingError, match=r"(nan|not finite).*last finite state is in .*last"):
        trainer.fit()
    assert checkpoint.load(run.last_path).iteration == 2
    assert checkpoint.load(run.best_path).iteration == 2
    assert finite_state(run.last_path)
    assert finite_state(run.best_path)
    assert Trainer(config_of(tiny_root), run).fit().iteration == 6


def test_a_learned_strength_that_leaves_the_numbers(tmp_path, tiny_root):
    """R2D2's lambda is learned by its logarithm, and may become 0 or infinite."""
    run = Run(tmp_path)
    trainer = Trainer(config_of(tiny_root, learner="r2d2"), run)
    trainer.learner.log_lam.data.fill_(-1e4)
    with pytest.raises(TrainingError, match=r"R2D2: lambda is 0\.0 in iteration 0; .*last finite"):
        trainer.fit()


def test_what_is_not_finite_is_named(tmp_path, tiny_root):
    trainer = Trainer(config_of(tiny_root), Run(tmp_path))
    large_gradient(trainer)
    expected = r"the optimizer's exp_avg_sq of model\.head\.weight is not finite after iteration 4"
    with pytest.raises(TrainingError, match=expected):
        trainer.fit()


@pytest.mark.parametrize("learner", ["maml", "reptile"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_step_that_is_left_out_changes_nothing(tmp_path, tiny_root, fault, learner, way, caplog):
    run = Run(tmp_path)
    config = tiny_config(tiny_root, learner, save_every=1, on_nonfinite="skip")
    trainer = Trainer(config.replace(iterations=AT), run)
    trainer.fit()
    before = checkpoint.load(run.last_path)
    trainer = Trainer(config.replace(iterations=AT + 1), run)
    trainer.batches = iter([next(trainer.batches)])
    fault(trainer, at=0)
    trainer.fit()
    after = checkpoint.load(run.last_path)
    assert after.iteration == before.iteration + 1
    assert after.skipped["count"] == 1
    for name, value in before.learner.items():
        assert torch.equal(after.learner[name], value), name
    for number, state in before.optimizer["state"].items():
        for name, value in state.items():
            assert torch.equal(after.optimizer["state"][number][name], value), name
    assert "iteration 4 is left out" in caplog.text


@pytest.mark.parametrize("policy", ["skip", "halve"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_that_goes_on_is_counted_and_resumes_exactly(tmp_path, tiny_root, fault, policy, way):
    config = config_of(tiny_root, on_nonfinite=policy)
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    trainer = Trainer(config, whole)
    fault(trainer)
    assert trainer.fit().iteration == 6
    records = metrics.read(whole.metrics_path)
    assert [r["iteration"] for r in records if r["kind"] == "skipped"] == [AT + 1]
    assert all(math.isfinite(r["loss"]) for r in records if r["kind"] == "train")
    factor = 0.5 if policy == "halve" else 1.0
    assert (records[-1]["kind"], records[-2]["skipped"]) == ("validation", 1)
    assert records[-2]["rate_factor"] == factor
    assert float(trainer.optimizer.param_groups[0]["lr"]) == pytest.approx(config.meta_lr * factor)
    trainer = Trainer(config.replace(iterations=4), parts)
    fault(trainer)
    trainer.fit()
    Trainer(config, parts).fit()
    left, right = checkpoint.load(whole.last_path), checkpoint.load(parts.last_path)
    assert all(torch.equal(left.learner[name], right.learner[name]) for name in left.learner)
    assert left.skipped == right.skipped == {"count": 1, "in_a_row": 0, "factor": factor}


def test_a_run_that_never_recovers_ends(tmp_path, tiny_root, monkeypatch):
    config = tiny_config(tiny_root, iterations=100, on_nonfinite="skip", validate_every=100)
    trainer = Trainer(config, Run(tmp_path))

    def never(batch):
        raise FloatingPointError("the loss is nan")

    monkeypatch.setattr(trainer.learner, "meta_backward", never)
    with pytest.raises(TrainingError, match="so were the 20 meta-steps before"):
        trainer.fit()
    assert trainer.iteration == 21


def test_a_large_gradient_can_be_clipped(tmp_path, tiny_root):
    trainer = Trainer(config_of(tiny_root, clip_norm=1.0), Run(tmp_path))
    large_gradient(trainer)
    trainer.fit()
    records = metrics.read(trainer.run.metrics_path)
    norms = [record["gradient_norm"] for record in records if record["kind"] == "train"]
    assert 1e25 < norms[AT] < math.inf
    assert finite_state(trainer.run.last_path)


def test_the_total_norm_does_not_overflow():
    gradients = [torch.full((4,), 1e30), torch.full((2, 2), -3e30)]
    assert float(meta_step.total_norm(gradients)) == pytest.approx(math.sqrt(4 + 36) * 1e30)


def test_tensors_of_several_types_are_looked_at_together():
    wide = torch.tensor([1e300], dtype=torch.float64)
    large = torch.tensor([3e38], dtype=torch.float32)  # its square is infinite
    narrow = torch.tensor([3e38], dtype=torch.bfloat16)
    assert are_finite([wide, large, narrow, torch.ones(2), torch.tensor(3.0)])
    for wrong in (torch.inf, -torch.inf, torch.nan):
        assert not are_finite([wide, torch.tensor([1.0, wrong])])
        assert not are_finite([large, torch.tensor([wrong])])


@pytest.mark.parametrize(
    ("name", "was", "now"),
    [("meta_lr", 1e-3, 1e-4), ("clip_norm", None, 1.0), ("on_nonfinite", "stop", "skip")],
)
def test_a_resumed_run_may_be_made_safer(tmp_path, tiny_root, name, was, now, caplog):
    run = Run(tmp_path)
    Trainer(tiny_config(tiny_root, iterations=2, **{name: was}), run).fit()
    Trainer(tiny_config(tiny_root, iterations=3, **{name: now}), run).fit()
    assert f"goes on with {name} = {now!r}, it was {was!r}" in caplog.text
    assert getattr(run.config(), name) == now


@pytest.mark.parametrize(
    ("name", "was", "now"), [("meta_lr", 1e-3, 1e-2), ("clip_norm", 1.0, None)]
)
def test_but_not_less_safe(tmp_path, tiny_root, name, was, now):
    run = Run(tmp_path)
    Trainer(tiny_config(tiny_root, iterations=2, **{name: was}), run).fit()
    with pytest.raises(ValueError, match=f"was begun with {name} = {was!r}, got {now!r}"):
        Trainer(tiny_config(tiny_root, iterations=3, **{name: now}), run)


def test_a_checkpoint_whose_validation_is_not_finite_cannot_become_the_best(
    tmp_path, tiny_root, monkeypatch, caplog
):
    from metasparse_ext.training import loop

    original = loop.evaluate

    def diverging(*arguments, **options):
        report = original(*arguments, **options)
        return type(report)(**{**vars(report), "loss": math.nan})

    monkeypatch.setattr(loop, "evaluate", diverging)
    run = Run(tmp_path)
    assert Trainer(tiny_config(tiny_root, iterations=3), run).fit().best is None
    assert not run.best_path.exists()
    assert "the validation loss is nan" in caplog.text
    assert [r["loss"] for r in metrics.read(run.metrics_path) if r["kind"] == "validation"] == [
        None
    ]


@pytest.mark.parametrize("policy", ["skip", "halve"])
def test_a_run_that_goes_on_leaves_a_validation_out_that_cannot_be_computed(
    tmp_path, tiny_root, monkeypatch, caplog, policy
):
    from metasparse_ext.training import loop

    original, seen = loop.evaluate, []

    def failing_once(*arguments, **options):
        seen.append(None)
        if len(seen) == 1:
            raise FloatingPointError("a density is not finite")
        return original(*arguments, **options)

    monkeypatch.setattr(loop, "evaluate", failing_once)
    run = Run(tmp_path)
    config = tiny_config(tiny_root, iterations=6, on_nonfinite=policy)
    assert Trainer(config, run).fit().best["iteration"] == 6
    assert "in validation: a density is not finite; it is left out" in caplog.text


def test_a_validation_that_cannot_be_computed_ends_any_other_run(tmp_path, tiny_root, monkeypatch):
    from metasparse_ext.training import loop

    def failing(*arguments, **options):
        raise FloatingPointError("a density is not finite")

    monkeypatch.setattr(loop, "evaluate", failing)
    with pytest.raises(TrainingError, match="in validation: a density is not finite"):
        Trainer(tiny_config(tiny_root, iterations=3), Run(tmp_path)).fit()
