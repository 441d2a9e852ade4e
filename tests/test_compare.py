"""Evaluations in other settings than the run's own, and runs against one another."""

import json
import shutil

import numpy as np
import pytest
from scipy import stats
from support.data_sets import coded_classes
from support.training_helpers import tiny_config
from test_cli import assert_one_line_error, invoke

from metasparse_ext.cli.display import comparison_table, draw_figures, table
from metasparse_ext.training import (
    CheckpointError,
    Run,
    Trainer,
    compare,
    evaluate_run,
)
from metasparse_ext.training.evaluation import _count, require_one_task
from metasparse_ext.training.kept import find, kept
from metasparse_ext.training.paired import paired_test, t_quantile, two_sided_p
from metasparse_ext.training.setting import Setting

pytestmark = pytest.mark.usefixtures("one_thread")


def trained(root, folder, learner="maml", **changes):
    run = Run(folder)
    Trainer(tiny_config(root, learner, iterations=1, width=2, **changes), run).fit()
    return run


@pytest.fixture(scope="module")
def runs(tiny_root, tmp_path_factory, one_thread):
    """Two trainings by MAML, and one by FOMAML with 2 shots; none is evaluated."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        "a0": trained(tiny_root, folder / "a0"),
        "a1": trained(tiny_root, folder / "a1", seed=1),
        "b": trained(tiny_root, folder / "b", "fomaml", shots=2),
    }


@pytest.fixture
def fresh(runs, tmp_path):
    """The same in folders of one test."""
    return {name: Run(shutil.copytree(run.folder, tmp_path / name)) for name, run in runs.items()}


# Settings.


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "test"),
        ({"split": "val"}, "val"),
        ({"shots": 1, "ways": 3, "queries": 2, "tasks": 5, "transductive": True}, "test"),
        ({"data": "omniglot"}, "test"),
        ({"ways": 2, "shots": 5}, "test-2way-5shot"),
        ({"queries": 4, "tasks": 50}, "test-4query-50tasks"),
        ({"transductive": False, "split": "train"}, "train-not-transductive"),
        ({"data": "cifar-fs"}, "test-cifar-fs"),
        ({"every_set": True, "ways": 2}, "test-2way-every-set"),
        ({"every_set": False}, "test"),
    ],
)
def test_the_name_tells_what_differs_from_the_runs_own(tiny_root, given, name):
    config = tiny_config(tiny_root)
    assert Setting.of(config, **given).name(config) == name
    assert Setting.of(config, **given).name(config, 7) == f"{name}-7steps"


def test_data_sets_have_names_of_their_own_that_files_can_have(tiny_root):
    config = tiny_config(tiny_root)
    sets = ("cub:/a/b", "cub:_a_b", "cub_:a/b", "cub:/a/b,splits=ye", "x" * 300, "y" * 300)
    names = {Setting.of(config, data=data).name(config) for data in sets}
    assert len(names) == len(sets)
    assert all(len(name) < 80 and "/" not in name and ":" not in name for name in names)


def test_no_evaluation_takes_the_place_of_another(fresh):
    run = fresh["a0"]
    own = evaluate_run(run)
    before = run.evaluation_path("test").read_bytes()
    few = evaluate_run(run, ways=2, shots=3, queries=4)
    many = evaluate_run(run, tasks=9, adapt_steps=5)
    names = ("test", "test-2way-3shot-4query", "test-9tasks-5steps")
    assert (own.name, few.name, many.name) == names
    assert run.evaluation_path("test").read_bytes() == before
    for name, evaluation in zip(names, (own, few, many), strict=True):
        assert vars(kept(run, name)) == json.loads(json.dumps(vars(evaluation)))
        assert run.usage_path(name).exists()
        numbers = evaluation.numbers
        assert len(numbers["accuracies"]) == numbers["tasks"]
        assert np.mean(numbers["accuracies"]) == pytest.approx(numbers["accuracy"])
    assert few.setting == "2-way 3-shot, omniglot test classes"
    assert few.drawn == {
        **{"data": "omniglot", "split": "test", "ways": 2, "shots": 3, "queries": 4},
        "every_set": False,
    }
    assert {round(8 * accuracy, 6) % 1 for accuracy in few.numbers["accuracies"]} == {0}
    assert many.adapt_steps == 5
    assert len(run.evaluation_path("test-9tasks-5steps").read_text().splitlines()) < 45
    assert find(run, tasks=9, adapt_steps=5).name == names[2]
    assert find(run, tasks=9) is None
    assert find(run, adapt_steps=2).name == "test"
    assert find(run, adapt_steps=3) is None


def test_one_task_of_every_set_of_classes(fresh):
    """Of the eight test classes there are 28 sets of two."""
    run = fresh["a0"]
    found = evaluate_run(run, every_set=True, ways=2)
    assert (found.name, found.numbers["tasks"]) == ("test-2way-every-set", 28)
    assert found.drawn["every_set"] is True
    drawn = evaluate_run(run, ways=2, tasks=28)
    assert drawn.numbers["episodes"] != found.numbers["episodes"]
    assert vars(find(run, every_set=True, ways=2)) == json.loads(json.dumps(vars(found)))
    with pytest.raises(ValueError, match=r"evaluations to be of one kind .* one of every"):
        require_one_task("plot", {"every": found, "drawn": drawn})
    with pytest.raises(CheckpointError, match=r"one task of every set .* --every-set"):
        compare([run, fresh["b"]], every_set=True)


def test_more_sets_than_can_be_evaluated_are_refused():
    numbers = {"ways": 5, "shots": 1, "queries": 1, "tasks": 600}
    setting = Setting(data="coded", split="test", **numbers, transductive=True, every_set=True)
    with pytest.raises(ValueError, match="every_set to be False, there are 4804945320 sets of 5"):
        _count("evaluate_run", setting, coded_classes([1] * 227))


def test_the_command_that_makes_an_evaluation_says_every_option(fresh):
    """No steps of adaptation are an option too, though 0 equals False."""
    pair = [fresh["a0"], fresh["b"]]
    asked = {"adapt_steps": 0, "transductive": False, "every_set": False, "ways": 2}
    flags = "--no-transductive --adapt-steps 0 --ways 2`"
    with pytest.raises(CheckpointError, match=f"metasparse evaluate {fresh['a0']} {flags}"):
        compare(pair, **asked)
    with pytest.raises(CheckpointError, match="--every-set`"):
        compare(pair, every_set=True)


def test_every_set_is_of_classes_and_no_number_of_tasks(fresh, tiny_root, tmp_path):
    with pytest.raises(ValueError, match="expected tasks to be None, as one task of every set"):
        evaluate_run(fresh["a0"], every_set=True, tasks=5)
    mixed = trained(tiny_root, tmp_path, "multi-maml", data="omniglot+cifar-fs")
    with pytest.raises(ValueError, match=r"every_set to be False, omniglot\+cifar-fs/test are no"):
        evaluate_run(mixed, every_set=True)


def test_the_runs_own_steps_are_no_difference(fresh):
    assert evaluate_run(fresh["a0"], adapt_steps=2).name == "test"


def test_another_data_set_comes_in_the_shape_of_the_networks_images(fresh, tiny_root):
    found = evaluate_run(fresh["a0"], data="cifar-fs")  # in colour
    assert found.name == "test-cifar-fs"
    assert found.setting == "3-way 1-shot, cifar-fs test classes"
    assert found.numbers["dense_macs"] == evaluate_run(fresh["a0"]).numbers["dense_macs"]
    other = evaluate_run(fresh["a0"], data=f"{tiny_root}/omniglot-tiny.npz")
    assert other.numbers["episodes"] == kept(fresh["a0"]).numbers["episodes"]
    assert other.numbers["accuracies"] == kept(fresh["a0"]).numbers["accuracies"]


def test_parts_for_data_sets_meet_those_alone(tiny_root, tmp_path):
    run = trained(tiny_root, tmp_path, "multi-maml", data="omniglot+cifar-fs")
    for data in ("omniglot", "cifar-fs+omniglot"):
        said = r"data to be 'omniglot\+cifar-fs', for multi-maml has a part for each"
        with pytest.raises(ValueError, match=said):
            evaluate_run(run, data=data)
    found = evaluate_run(run, data="omniglot+cifar-fs")
    assert found.name == "test"
    assert list(found.numbers["distributions"]) == ["omniglot", "cifar-fs"]


def test_the_digest_is_that_of_the_tasks(fresh):
    first, second = (evaluate_run(fresh[name]) for name in ("a0", "a1"))
    again = evaluate_run(fresh["a0"], transductive=False)
    digests = {each.numbers["episodes"] for each in (first, second, again)}
    assert len(digests) == 1
    others = [evaluate_run(fresh["a0"], **{n: 4}).numbers for n in ("tasks", "shots", "queries")]
    others.append(evaluate_run(fresh["a0"], split="val").numbers)
    assert len(digests | {each["episodes"] for each in others}) == 5


def test_validations_keep_the_accuracy_alone(runs):
    record = json.loads(runs["a0"].metrics_path.read_text().splitlines()[-1])
    assert record["kind"] == "validation"
    assert not {"accuracies", "episodes", "usage"} & record.keys()


def test_evaluations_of_earlier_versions_are_read(fresh):
    run = fresh["a0"]
    evaluate_run(run)
    path = run.evaluation_path("test")
    old = json.loads(path.read_text())
    del old["name"], old["drawn"], old["numbers"]["accuracies"], old["numbers"]["episodes"]
    path.write_text(json.dumps(old))
    evaluation = kept(run)
    assert evaluation.numbers == old["numbers"]
    table({"old": evaluation, "new": evaluate_run(fresh["a1"])})
    assert draw_figures({"old": run}, run.folder)
    path.write_text(json.dumps(old))
    with pytest.raises(
        CheckpointError, match="does not say the accuracy on each task; `metasparse"
    ):
        compare([run, fresh["a1"]])


def test_the_command_line_evaluates_several_runs_in_one_setting(fresh):
    one, two = fresh["a0"], fresh["b"]
    result = invoke("evaluate", one, two)
    assert_one_line_error(
        result,
        "evaluate: expected evaluations to be of one kind of task, got 3-way 1-shot, omniglot test "
        f"classes ({one}) and 3-way 2-shot, omniglot test classes ({two})",
    )
    flags = ("--shots", 2, "--ways", 2, "--queries", 3, "--tasks", 4, "--split", "val")
    result = invoke("evaluate", one, two, *flags)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "2-way 2-shot, omniglot val classes, 4 tasks, transductive" in text
    assert f"{one}: " in text
    assert kept(one, "val-2way-2shot-3query-4tasks") is not None
    assert kept(two, "val-2way-3query-4tasks") is not None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--ways", 4], "expected ways to be at most 3, the outputs of the network, got 4"),
        (["--ways", 1], "--ways"),
        (["--shots", 0], "--shots"),
        (["--queries", "many"], "--queries"),
        (["--data", "nothing"], "unknown data set 'nothing'"),
        (["--data", ""], "expected data to be text that is not empty"),
        (["--shots", 7], "class"),
    ],
)
def test_settings_that_cannot_be_are_one_line(fresh, flags, said):
    assert_one_line_error(invoke("evaluate", fresh["a0"], *flags), said)
    assert not list(fresh["a0"].folder.glob("evaluation-*"))


def test_a_table_and_figures_are_of_one_kind_of_task(fresh, tmp_path):
    one, two = fresh["a0"], fresh["b"]
    evaluations = {"one": evaluate_run(one), "two": evaluate_run(two)}
    with pytest.raises(ValueError, match=r"table: expected evaluations to be of one kind of task"):
        table(evaluations)
    result = invoke("plot", one, two, "--out", tmp_path)
    assert_one_line_error(
        result, "plot: expected evaluations to be of one kind of task, got 3-way 1"
    )
    assert not list(tmp_path.glob("*.png"))
    evaluate_run(one, shots=2)
    result = invoke("plot", one, two, "--out", tmp_path, "--shots", 2)
    assert result.exit_code == 0, result.output
    assert "accuracy-macs.png" in result.stdout
    for change in ({"tasks": 4}, {"queries": 3}, {"transductive": False}):
        with pytest.raises(ValueError, match="of one kind of task"):
            table({"one": evaluations["one"], "other": evaluate_run(one, **change)})


# Paired tests.


@pytest.mark.parametrize("count", [2, 3, 30, 600])
def test_a_paired_test_is_that_of_scipy(count):
    rng = np.random.default_rng(count)
    first, second = rng.random(count), rng.random(count) + 0.05
    found = paired_test(first.tolist(), second.tolist())
    wanted = stats.ttest_rel(second, first)
    low, high = wanted.confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(second - first))
    assert found.p == pytest.approx(wanted.pvalue, rel=1e-9)
    assert (found.mean - found.interval, found.mean + found.interval) == pytest.approx((low, high))
    assert found.count == count


def test_students_t():
    for freedom in (1, 2, 7, 100, 5000):
        for t in (0.0, 1e-3, 0.7, 2.5, 40.0):
            wanted = 2 * stats.t.sf(t, freedom)
            assert two_sided_p(t, freedom) == pytest.approx(wanted, rel=1e-8, abs=1e-300)
        assert t_quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom))


def test_pairs_that_do_not_differ_or_all_alike():
    same = paired_test([0.5, 0.25, 1.0], [0.5, 0.25, 1.0])
    assert (same.mean, same.interval, same.p) == (0, 0, 1)
    alike = paired_test([0.5, 0.25], [0.75, 0.5])
    assert (alike.mean, alike.interval, alike.p) == (0.25, 0, 0)
    with pytest.raises(ValueError, match="second to be 2 numbers, got 1"):
        paired_test([0.5, 0.25], [0.75])
    with pytest.raises(ValueError, match="at least 2 numbers"):
        paired_test([0.5], [0.75])


def test_runs_are_compared_on_the_same_tasks(fresh):
    runs = list(fresh.values())
    numbers = [evaluate_run(run, shots=2, tasks=8).numbers for run in runs]
    found = compare(runs, shots=2, tasks=8)
    ours, theirs = found.contenders
    assert ours.label.endswith("a*")
    assert ours.runs == (str(runs[0]), str(runs[1]))
    pair = [each["accuracy"] for each in numbers[:2]]
    assert (ours.score, ours.spread) == pytest.approx((np.mean(pair), np.std(pair, ddof=1)))
    assert (ours.interval, ours.difference) == (None, None)
    assert (theirs.label, theirs.spread) == (str(runs[2]), None)
    assert theirs.interval == numbers[2]["interval"]
    means = np.mean([each["accuracies"] for each in numbers[:2]], 0)
    wanted = stats.ttest_rel(numbers[2]["accuracies"], means)
    assert theirs.difference.p == pytest.approx(wanted.pvalue)
    assert theirs.difference.mean == pytest.approx(theirs.score - ours.score)
    assert theirs.difference.count == 8
    flags = ("--shots", 2, "--tasks", 8)
    result = invoke("compare", *runs, *flags)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "3-way 2-shot, omniglot test classes, 8 tasks, transductive" in text
    assert f"{100 * theirs.difference.mean:+.2f} ±" in text
    printed = invoke("compare", *runs, *flags, "--json")
    assert json.loads(printed.stdout) == json.loads(json.dumps(found.to_dict()))
    assert comparison_table(found).row_count == 2


def test_one_seed_twice_is_no_second_training(fresh, tmp_path):
    copy = Run(shutil.copytree(fresh["a0"].folder, tmp_path / "copy"))
    for run in (fresh["a0"], copy):
        evaluate_run(run)
    found = compare([fresh["a0"], copy])
    assert [len(each.runs) for each in found.contenders] == [1, 1]
    assert found.contenders[1].difference.p == 1


def test_what_cannot_be_compared_is_one_line(fresh):
    one, two, other = fresh.values()
    result = invoke("compare", one, two)
    command = f"`metasparse evaluate {one}` makes one"
    assert_one_line_error(
        result, f"{one}: there is no evaluation of 3-way 1-shot, omniglot", command
    )
    result = invoke("compare", one, two, "--shots", 3, "--no-transductive", "--split", "val")
    command = f"`metasparse evaluate {one} --split val --no-transductive --shots 3`"
    assert_one_line_error(result, command)
    for run in (one, two, other):
        evaluate_run(run)
    assert_one_line_error(invoke("compare", one, two), "runs to be of at least two configurations")
    assert_one_line_error(invoke("compare", one), "runs to be of at least two configurations")
    assert_one_line_error(
        invoke("compare", one, other), "compare: expected evaluations to be of one kind of task"
    )
    evaluate_run(other, shots=1)
    path = other.evaluation_path("test-1shot")
    changed = json.loads(path.read_text())
    changed["numbers"]["episodes"] = "0" * 64
    path.write_text(json.dumps(changed))
    assert_one_line_error(
        invoke("compare", one, other, "--shots", 1), "on the same tasks, got others for"
    )
    changed["numbers"]["accuracies"] = [2.0]
    path.write_text(json.dumps(changed))
    assert_one_line_error(
        invoke("compare", one, other, "--shots", 1), "not a whole file of evaluation"
    )
