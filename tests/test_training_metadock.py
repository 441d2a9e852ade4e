"""MetaDOCK in the training loop: the dense start, the budget, the choice of checkpoint."""

import pytest
import torch
from support.training_helpers import tiny_config

from metasparse_ext.nn import MaskedConv2d
from metasparse_ext.training import Run, Trainer, build, metrics, outer

pytestmark = pytest.mark.usefixtures("one_thread")


def validations(run):
    return [r for r in metrics.read(run.metrics_path) if r["kind"] == "validation"]


def test_no_best_checkpoint_while_the_budget_is_not_met(tmp_path, tiny_root):
    run = Run(tmp_path)
    config = tiny_config(tiny_root, "metadock", iterations=3)
    outcome = Trainer(config, run).fit()
    assert outcome.best is None
    assert not run.best_path.exists()
    assert [v["eligible"] for v in validations(run)] == [False]
    assert run.best().iteration == 3


def test_best_checkpoints_meet_the_budget(tmp_path, tiny_root):
    run = Run(tmp_path)
    config = tiny_config(
        tiny_root,
        "metadock",
        width=8,
        iterations=50,
        validate_every=10,
        mask_lr=4e-4,
        options={"inner_lr": 0.05, "inner_steps": 2, "lambda4": 0.0},
    )
    outcome = Trainer(config, run).fit()
    assert outcome.best is not None
    assert abs(outcome.best["active"] - 0.5) <= 0.02
    assert not validations(run)[0]["eligible"]


def test_a_budget_ramps_over_the_iterations_of_the_run(tiny_root):
    config = tiny_config(tiny_root, "metadock", iterations=77)
    assert build.learner(config, (1, 16, 16)).budget_loss.iterations == 77
    given = config.replace(options={"total_iterations": 50})
    assert build.learner(given, (1, 16, 16)).budget_loss.iterations == 50


def test_mask_scores_have_their_own_rate(tiny_root):
    config = tiny_config(tiny_root, "metadock", meta_lr=1e-3, mask_lr=1e-2)
    learner = build.learner(config, (1, 16, 16))
    groups = outer.optimizer(config, learner).param_groups
    scores = {id(m.masker.scores) for m in learner.modules() if isinstance(m, MaskedConv2d)}
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == len(list(learner.parameters()))
    assert all(rate == (1e-2 if p in scores else 1e-3) for p, rate in rates.items())


def test_a_run_starts_from_another_runs_network(tmp_path, tiny_root):
    dense = Run(tmp_path / "dense")
    Trainer(tiny_config(tiny_root), dense).fit()
    config = tiny_config(tiny_root, "metadock", init_from=str(dense))
    learner = build.learner(config, (1, 16, 16))
    weights = dense.best().learner
    for name, parameter in learner.named_parameters():
        if not name.endswith("scores"):
            assert torch.equal(parameter, weights[name])


def test_starting_from_a_network_of_another_width_is_refused(tmp_path, tiny_root):
    dense = Run(tmp_path / "dense")
    Trainer(tiny_config(tiny_root, iterations=1), dense).fit()
    config = tiny_config(tiny_root, "metadock", init_from=str(dense), width=8)
    with pytest.raises(ValueError, match=r"cannot start from this run: blocks\.0\.conv\.weight"):
        build.learner(config, (1, 16, 16))


def test_starting_from_several_initializations_is_refused(tmp_path, tiny_root):
    several = Run(tmp_path / "several")
    Trainer(tiny_config(tiny_root, "multi-maml", iterations=1), several).fit()
    config = tiny_config(tiny_root, "metadock", init_from=str(several))
    with pytest.raises(ValueError, match="an initialization for each of 1 distributions"):
        build.learner(config, (1, 16, 16))


def test_a_rate_for_scores_that_there_are_not_is_refused(tiny_root):
    config = tiny_config(tiny_root, "maml", mask_lr=1e-2)
    with pytest.raises(
        ValueError, match="expected mask_lr to be None, maml has no mask scores to learn, got"
    ):
        outer.optimizer(config, build.learner(config, (1, 16, 16)))
