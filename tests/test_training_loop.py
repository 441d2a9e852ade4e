"""The training loop: what it learns, writes, chooses and refuses."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from support.training_helpers import tiny_config

from metasparse_ext.training import (
    Run,
    Trainer,
    checkpoint,
    evaluate_run,
    evaluation,
    loop,
    metrics,
    outer,
)
from metasparse_ext.training.stages import SingleStage, eligible

pytestmark = pytest.mark.usefixtures("one_thread")


def records(run, kind):
    return [record for record in metrics.read(run.metrics_path) if record["kind"] == kind]


def test_a_short_run_learns(tmp_path, tiny_root):
    run = Run(tmp_path)
    config = tiny_config(
        tiny_root, iterations=100, validate_every=25, meta_lr=1e-2, width=8, tasks=4, save_every=50
    )
    outcome = Trainer(config, run).fit()
    steps = records(run, "train")
    assert [step["iteration"] for step in steps] == list(range(1, 101))
    first, last = steps[:10], steps[-10:]
    assert sum(s["loss"] for s in last) < 0.8 * sum(s["loss"] for s in first)
    assert outcome.best["accuracy"] == max(v["accuracy"] for v in records(run, "validation"))
    assert checkpoint.load(run.best_path).iteration == outcome.best["iteration"]


def test_validation_and_the_end_are_on_schedule(tmp_path, tiny_root):
    run = Run(tmp_path)
    Trainer(tiny_config(tiny_root, iterations=5, validate_every=2, log_every=2), run).fit()
    assert [v["iteration"] for v in records(run, "validation")] == [2, 4, 5]
    assert [s["iteration"] for s in records(run, "train")] == [2, 4]
    assert checkpoint.load(run.last_path).iteration == 5


def test_validation_tasks_are_always_the_same(tmp_path, tiny_root):
    run = Run(tmp_path)
    config = tiny_config(tiny_root, meta_lr=1e-30, validate_every=1)
    Trainer(config, run).fit()
    assert len({(v["accuracy"], v["loss"]) for v in records(run, "validation")}) == 1


def test_validation_and_evaluation_have_query_sets_of_their_own_size(
    tmp_path, tiny_root, monkeypatch
):
    drawn = []
    evaluate = loop.evaluate

    def noting(learner, batches, **options):
        batches = list(itertools.islice(batches, 3))
        drawn.append({batch.query.labels.shape[1] for batch in batches})
        return evaluate(learner, batches, **options)

    monkeypatch.setattr(loop, "evaluate", noting)
    monkeypatch.setattr(evaluation, "evaluate", noting)
    config = tiny_config(tiny_root, queries=1, evaluation_queries=2, iterations=1)
    run = Run(tmp_path)
    trainer = Trainer(config, run)
    trainer.fit()
    evaluate_run(run)
    assert next(trainer.batches).query.labels.shape[1] == 1 * config.ways
    assert drawn == [{2 * config.ways}] * 2


@pytest.mark.parametrize(
    ("budget", "active", "expected"),
    [(None, 1.0, True), (0.5, 1.0, False), (0.5, 0.515, True), (0.5, 0.47, False)],
)
def test_a_checkpoint_is_eligible_once_the_budget_holds(budget, active, expected):
    assert eligible(SimpleNamespace(budget=budget), SingleStage(), active) is expected


def test_no_checkpoint_of_a_search_is_eligible():
    assert not eligible(SimpleNamespace(), SimpleNamespace(stage=0, stages=2), 1.0)


def test_gradients_are_clipped_by_norm(tmp_path, tiny_root):
    config = tiny_config(tiny_root, clip_norm=1e-3, optimizer="sgd", iterations=1, meta_lr=1.0)
    trainer = Trainer(config, Run(tmp_path))
    before = [p.detach().clone() for p in trainer.learner.parameters()]
    trainer.fit()
    after = [p.detach() for p in trainer.learner.parameters()]
    moved = [(new - old).flatten() for new, old in zip(after, before, strict=True)]
    assert float(torch.cat(moved).norm()) == pytest.approx(1e-3, rel=1e-3)
    assert records(trainer.run, "train")[0]["gradient_norm"] > 1e-3


def test_gradients_are_clipped_by_value(tmp_path, tiny_root):
    config = tiny_config(tiny_root, clip_value=1e-4, optimizer="sgd", iterations=1, meta_lr=1.0)
    trainer = Trainer(config, Run(tmp_path))
    before = [p.detach().clone() for p in trainer.learner.parameters()]
    trainer.fit()
    for parameter, old in zip(trainer.learner.parameters(), before, strict=True):
        assert float((parameter.detach() - old).abs().max()) <= 1.01e-4


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1, 1, 1]),
        ("linear", [1, 0.75, 0.5]),
        ("cosine", [1, 0.853553, 0.5]),
        ("staircase", [1, 0.9**3, 0.9**6]),
    ],
)
def test_schedules(schedule, factors):
    found = [outer.scheduled(schedule, done) for done in (0, 0.25, 0.5)]
    assert found == pytest.approx(factors, rel=1e-5)


def test_the_same_seed_gives_the_same_run(tmp_path, tiny_root):
    runs = [Run(tmp_path / name) for name in "ab"]
    for run in runs:
        Trainer(tiny_config(tiny_root, iterations=2), run).fit()
    first, second = (records(run, "train") for run in runs)
    assert [r["loss"] for r in first] == [r["loss"] for r in second]


def test_training_images_are_changed_and_a_run_goes_on_exactly(tmp_path, tiny_root):
    config = tiny_config(tiny_root, iterations=4, augment="padding=2,flip,brightness=0.3")
    runs = {name: Run(tmp_path / name) for name in ("plain", "whole", "stopped")}
    Trainer(config.replace(augment=None), runs["plain"]).fit()
    Trainer(config, runs["whole"]).fit()
    Trainer(config.replace(iterations=2), runs["stopped"]).fit()
    Trainer(config, runs["stopped"]).fit()
    plain, whole, stopped = ([r["loss"] for r in records(run, "train")] for run in runs.values())
    assert whole == stopped
    assert all(a != b for a, b in zip(plain, whole, strict=True))


def test_metrics_are_strict_json(tmp_path, tiny_root):
    run = Run(tmp_path)
    options = {"inner_lr": 0.1, "inner_steps": 0}
    Trainer(tiny_config(tiny_root, options=options, iterations=2), run).fit()

    def refuse(text):
        raise AssertionError(text)

    for line in run.metrics_path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
