"""The tables of the sources: made of what is there, and of nothing that is not."""

import itertools
import json
from fnmatch import fnmatch

import numpy as np
import pytest
import torch
from support.data_sets import coded_classes
from support.training_helpers import tiny_config

from benchmarks import (
    contributions,
    errors,
    evidence,
    evidence_tables,
    published,
    sources,
    study,
    ticket_patterns,
    training_curves,
)
from benchmarks.evidence_tables import MISSING, SECTIONS, Results
from benchmarks.harness import RESULTS
from benchmarks.studies import Budget
from metasparse_ext.algorithms import LEARNERS
from metasparse_ext.data import EpisodeSampler
from metasparse_ext.training import Run, Trainer, build, evaluate

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_document_is_that_of_the_raw_results():
    assert evidence.render(Results(RESULTS)) == evidence.DOCUMENT.read_text(encoding="utf-8")


def test_every_section_is_in_the_document():
    text = evidence.DOCUMENT.read_text(encoding="utf-8")
    assert [name for _, name, _ in evidence._BLOCK.findall(text)] == list(SECTIONS)


def test_without_results_every_section_says_how_to_get_them(tmp_path):
    results = Results(tmp_path / "benchmarks" / "results")
    for name, make in SECTIONS.items():
        *tables, last = make(results)
        assert last.startswith("Not run yet:"), name
        assert "python -m benchmarks.study " in last
        assert not any("±" in row.split("|")[-2] for table in tables for row in _rows(table))


def _rows(table):
    return [line for line in table.splitlines() if line.startswith("| ")][2:]


def test_the_commands_name_cases_that_there_are(tmp_path):
    for make in SECTIONS.values():
        commands = make(Results(tmp_path / "a" / "results"))[-1].splitlines()
        for words in (line.split() for line in commands if "benchmarks.study" in line):
            names = [case.name for case in study.ALL[words[3]](Budget())]
            pattern = words[words.index("--only") + 1].strip("'") if "--only" in words else "*"
            assert any(fnmatch(name, pattern) for name in names), words


def test_quick_trains_cases_of_every_study_and_shows_them(tmp_path):
    results = evidence.quick(tmp_path, sample=2)
    for name in study.ALL:
        done = [case for case, found in results.cases(name) if found]
        assert 2 <= len(done) <= 4, name
    text = evidence.render(results)
    assert "Ours, the source's setting" in text
    assert MISSING in text
    for case, found in results.cases("ablations"):
        if found:
            accuracy = f"{100 * found[1].numbers['accuracy']:.2f}"
            assert f"| {case.labels['axis']}, {case.labels['learner']} |" in text
            assert f"| {case.labels['value']} | {accuracy} ± " in text


def test_a_case_that_is_done_stays_done_when_settings_get_new_fields(tmp_path, tiny_root):
    trained = []

    def train(config, run):
        trained.append(run)
        return study.train_here(config, run)

    case = study.Case("one", (tiny_config(tiny_root, iterations=1),), {})
    study.run_case(case, tmp_path / "runs", tmp_path / "results", train)
    path = tmp_path / "results" / "one" / "measured.json"
    kept = json.loads(path.read_text(encoding="utf-8"))
    for stage in kept["stages"]:
        del stage["initialization"], stage["head"]
    path.write_text(json.dumps(kept), encoding="utf-8")
    study.run_case(case, tmp_path / "runs", tmp_path / "results", train)
    assert len(trained) == 1


def test_sources_are_as_long_as_published_unless_a_budget_is_given():
    cases = {case.name: case for case in sources.budgets(Budget())}
    case = cases["5shot-64-0.25"]
    (pruned,) = case.stages
    (dense,) = case.parent.stages
    assert case.parent is cases["5shot-64-1"]
    assert (dense.iterations, pruned.iterations) == (60_000, 60_000)
    assert build.resolved(pruned).options["total_iterations"] == 60_000
    assert (pruned.options["budget"], pruned.seed) == (0.25, 10)
    short = next(iter(sources.gems(Budget(iterations=7)))).stages[0]
    assert (short.iterations, short.meta_lr, short.seed) == (7, 1e-4, 21)
    fixed = [c for c in sources.ablations(Budget()) if c.labels["axis"] == "sparsity"]
    assert [c.stages[0].options["density"] for c in fixed] == pytest.approx(
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    )


def test_the_size_of_a_pruned_network_is_that_of_the_kernels_in_use():
    results = Results(RESULTS)
    for name, case in {c.name: c for c, _ in results.cases("learners")}.items():
        if name not in ("omniglot-5shot-metadock", "omniglot-5shot-convex-imaml"):
            continue
        done = results.of("learners", name)
        active = done[1].numbers["active"]
        assert (active < 0.6) == name.endswith("metadock")
        # Weights, biases and norms of four blocks of width 32; a head on maps of 2x2.
        count = 9 * (32 + 3 * 32 * 32) * active + 4 * 3 * 32 + (32 * 2 * 2 * 5 + 5)
        share, parameters, _ = evidence_tables._size(case, done)
        assert share == f"{100 * active:.1f} %"
        assert parameters == f"{count / 1e3:.1f} k"


def test_published_numbers_are_of_learners_that_there_are():
    tables = *published.CIFAR_FS.values(), *published.GEMS.values(), *published.CONVEX.values()
    assert {name for table in tables for name in table} <= set(LEARNERS)


def test_curves_are_of_the_records_that_are_kept(tmp_path):
    runs = training_curves.records(RESULTS, "omniglot-1shot")
    assert list(runs) == list(published.CONVEX["1shot"])
    assert all("gradient_norm" in steps[0] for steps in runs.values())
    assert training_curves.records(tmp_path, "omniglot-1shot") == {}
    short = {name: steps[:3] for name, steps in runs.items()}
    training_curves.draw(short, tmp_path / "curves.png", "three records")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_smoothing_takes_what_there_is():
    np.testing.assert_allclose(training_curves.smoothed(np.ones(60)), 1)
    few = training_curves.smoothed(np.array([0.0, 3.0, 6.0]))
    np.testing.assert_allclose(few, [1.5, 3.0, 4.5])
    ramp = training_curves.smoothed(np.arange(100.0))
    np.testing.assert_allclose(ramp[20:80], np.arange(20.0, 80.0))


def test_the_images_that_tasks_get_wrong(tmp_path, tiny_root):
    run = Run(tmp_path / "run")
    config = build.resolved(tiny_config(tiny_root, iterations=1))
    Trainer(config, run).fit()
    found = errors.tally(run, tasks=20)
    data = build.images(config, "test")
    task = {"ways": config.ways, "shots": config.shots, "queries": config.queries}
    batches = EpisodeSampler(data, **task, tasks=config.tasks, seed=errors._SEED)
    made = build.trained(run, config, data.shape)
    expected = evaluate(made, (batches[index] for index in itertools.count()), tasks=20)
    assert found.tasks.sum() == 20 * config.ways * config.queries
    assert found.wrong.sum() / found.tasks.sum() == pytest.approx(1 - expected.accuracy)
    worst = found.worst(5, least=1)
    rates = [each.wrong / each.tasks for each in worst]
    assert rates == sorted(rates, reverse=True)
    assert all(each.name != each.taken_for for each in worst)
    errors.draw(worst, tmp_path / "sheet.png", "five")
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_a_tally_by_hand():
    data = coded_classes([2, 2, 3])
    found = errors.Tally(data)
    # Classes 2 and 0 are labels 0 and 1: image 5 of class 2 is taken for class 0 in one task.
    found.add(np.array([[4, 5], [0, 1]]), np.array([[0, 1], [1, 1]]))
    found.add(np.array([[5, 6], [2, 3]]), np.array([[0, 0], [0, 1]]))
    assert found.tasks.tolist() == [1, 1, 1, 1, 1, 2, 1]
    assert found.wrong.tolist() == [0, 0, 1, 0, 0, 1, 0]
    first, second = found.worst(9, least=1)
    assert (first.name, first.taken_for, first.wrong, first.tasks) == ("class1", "class2", 1, 1)
    assert (second.name, second.taken_for, second.wrong, second.tasks) == ("class2", "class0", 1, 2)
    assert [each.name for each in found.worst(9, least=2)] == ["class2"]


def test_the_patterns_of_tickets(tmp_path, tiny_root):
    runs = {}
    for seed in (0, 1):
        run = Run(tmp_path / f"ticket{seed}")
        options = {"density": 0.5, "rounds": 1, "inner_steps": 1}
        given = {"iterations": 4, "width": 8, "seed": seed, "options": options}
        Trainer(tiny_config(tiny_root, "meta-ticket", **given), run).fit()
        runs[f"seed {seed}"] = ticket_patterns.masks(run)
    first, second = runs.values()
    assert all(mask.dtype == bool for mask in first.values())
    densities = ticket_patterns.densities(first)
    sizes = np.array([mask.size for mask in first.values()])
    assert (densities * sizes).sum() / sizes.sum() == pytest.approx(0.5, abs=0.05)
    assert ticket_patterns.overlap(first, first) == 1
    both = sum(int((first[name] & second[name]).sum()) for name in first)
    either = sum(int((first[name] | second[name]).sum()) for name in first)
    assert ticket_patterns.overlap(first, second) == both / either
    ticket_patterns.draw(runs, tmp_path / "patterns.png")
    assert (tmp_path / "patterns.png").stat().st_size > 1000


def test_the_overlap_of_chance():
    """Of masks of densities p and q that know nothing of each other: pq / (p + q - pq)."""
    draw = np.random.default_rng(0)
    ours, theirs = ({"a": draw.random((300, 300)) < p} for p in (0.3, 0.6))
    expected = ticket_patterns.chance(ours, theirs)
    assert expected == pytest.approx(0.18 / 0.72, rel=0.02)
    assert ticket_patterns.overlap(ours, theirs) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("learner", ["maml", "metadock"])
def test_contributions_are_the_norms_of_the_kernels_in_use(tmp_path, tiny_root, learner):
    run = Run(tmp_path / learner)
    config = build.resolved(tiny_config(tiny_root, learner, iterations=1))
    trainer = Trainer(config, run)
    if learner == "metadock":
        with torch.no_grad():
            scores = trainer.learner.model.blocks[3].conv.masker.scores
            scores[:, ::2] = -1.0
            scores[1] = -1.0
    trainer.fit()
    parts = contributions.kernel_contributions(run, channels=3)
    made = build.trained(run, config, run.image_shape())
    conv = made.model.blocks[3].conv
    norms = conv.weight.detach().flatten(2).norm(dim=-1)
    if learner == "metadock":
        norms = norms * (conv.masker.scores > 0)
    sums = norms.sum(1, keepdim=True)
    every = torch.where(sums > 0, norms / sums, 0).double().numpy()
    assert parts.shape == (3, len(every[0]))
    for row in parts:
        assert min(np.abs(every - row).max(1)) < 1e-6
    contributions.draw({"one": parts, "other": parts}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
