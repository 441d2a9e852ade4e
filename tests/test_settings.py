"""Settings in a file, one run a seed, and sweeps over settings."""

import json
import sys
from types import ModuleType

import pytest
from click.testing import CliRunner
from support.training_helpers import StopAfter, assert_same_state, one_line, timeless

from metasparse_ext import cli
from metasparse_ext.cli.messages import UserError
from metasparse_ext.cli.options import base_fields, configure
from metasparse_ext.cli.settings import read_settings
from metasparse_ext.training import Run, RunConfig, Trainer, checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

MINE = "support.own_parts"
FIELDS = {
    **{"learner": "maml", "data": "sinusoid", "tasks": 2, "queries": 3, "iterations": 2},
    **{"validate_every": 2, "validation_tasks": 4},
}


def invoke(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def written(path, *lines, **fields):
    """A TOML file of fields, and then lines."""
    values = {**FIELDS, **fields}
    text = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    path.write_text("\n".join([*text, *lines]))
    return path


def test_settings_come_from_a_file_and_flags_win(tmp_path):
    file = written(tmp_path / "a.toml", "[options]", "inner_lr = 0.2", "inner_steps = 3")
    flags = ("--iterations", 1, "--inner-steps", 1)
    result = invoke("train", "--config", file, *flags, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    options = {"inner_lr": 0.2, "inner_steps": 1}
    asked = RunConfig(
        **{**FIELDS, "iterations": 1, "options": options, "model": "mlp", "loss": "mse"}
    )
    run = Run(tmp_path / "run")
    assert run.config() == asked
    again = Run(tmp_path / "again")
    copied = invoke("train", "--config", run.config_path, "--seed", 1, "--out", again)
    assert copied.exit_code == 0, copied.output
    assert again.config() == asked.replace(seed=1)
    other = invoke("train", "fomaml", "--config", run.config_path, "--out", tmp_path / "other")
    assert other.exit_code == 0, other.output
    assert Run(tmp_path / "other").config().learner == "fomaml"


def test_a_run_goes_on_with_its_file(tmp_path):
    file, run = written(tmp_path / "a.toml"), Run(tmp_path / "run")
    train = ("train", "--config", file, "--out", run)
    assert invoke(*train).exit_code == 0
    assert "already holds a run" in one_line(invoke(*train))
    written(file, iterations=4)
    resumed = invoke(*train, "--resume")
    assert "of 4 iterations, from iteration 2" in resumed.stdout
    written(file, shots=3)
    assert "was begun with shots = 1, got 3" in one_line(invoke(*train, "--resume"))


def test_a_file_over_a_preset(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('preset = "maml/omniglot/5way-1shot"\ndata = "glyphs"\niterations = 7\n')
    configured = configure(None, {}, base_fields(None, {}, read_settings(file)))
    assert (configured.learner, configured.data, configured.iterations) == ("maml", "glyphs", 7)
    assert configured.options["inner_lr"] > 0


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.toml", "learner = ", "a.toml: "),
        ("a.toml", "ways = " + "[" * 100_000, "a.toml: "),
        ("a.json", "[" * 100_000, "a.json: not JSON"),
        ("a.toml", "iteration = 3", "unknown field 'iteration': did you mean iterations?"),
        (
            "a.toml",
            "inner_lr = 0.1",
            "'inner_lr': an option of the learner is options.inner_lr, or",
        ),
        (
            "a.toml",
            'learner = "maml"\n[options]\ninner_step = 1',
            "maml has no option 'inner_step': did you mean inner_steps?",
        ),
        ("a.toml", "learner = 3", "learner: expected name to be text, got int 3"),
        ("a.json", '{"preset": 1.5}', "preset: expected name to be text, got float 1.5"),
        ("a.toml", "options = 3", "expected options to be a table, got 3"),
        ("a.toml", "[grid]", "a grid is of `metasparse sweep`"),
        ("a.json", "[1]", "expected fields with values, got list"),
        ("a.yaml", "learner: [", "a.yaml: "),
        ("a.ini", "", "expected a file whose suffix is one of .toml, .json, .yaml, .yml"),
        ("a.toml", "ways = 3", "expected a LEARNER, or a --config or --preset that names one"),
        ("a.toml", 'learner = "maml"\nways = "many"', "expected ways to be an integer"),
    ],
)
def test_a_file_that_is_wrong_is_one_line(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text)
    result = invoke("train", "--config", tmp_path / name, "--out", tmp_path / "run")
    assert sentence in one_line(result)


def test_yaml_is_read_where_its_reader_is_installed(tmp_path, monkeypatch):
    reader = ModuleType("yaml")
    reader.safe_load, reader.YAMLError = json.loads, ValueError
    monkeypatch.setitem(sys.modules, "yaml", reader)
    (tmp_path / "a.yml").write_text('{"learner": "maml"}')
    assert read_settings(tmp_path / "a.yml") == {"learner": "maml"}
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(UserError, match="PyYAML is not installed, which reads YAML"):
        read_settings(tmp_path / "a.yml")


def test_a_file_that_is_missing_is_named(tmp_path):
    result = invoke("train", "--config", tmp_path / "no.toml", "--out", tmp_path / "run")
    assert "no.toml: No such file" in one_line(result)


# One run a seed.


def test_a_run_for_each_seed(tmp_path):
    flags = [
        p for n, v in FIELDS.items() if n != "learner" for p in (f"--{n.replace('_', '-')}", v)
    ]
    result = invoke("train", "maml", *flags, "--seeds", "0,3", "--out", tmp_path / "runs")
    assert result.exit_code == 0, result.output
    for seed in (0, 3):
        run = Run(tmp_path / "runs" / f"seed-{seed}")
        assert run.config().seed == seed
        alone = invoke("train", "maml", *flags, "--seed", seed, "--out", tmp_path / f"{seed}")
        assert alone.exit_code == 0
        assert timeless(run) == timeless(Run(tmp_path / f"{seed}"))
    table = result.stdout[result.stdout.index("seed   validation") :]
    rows = [line.split() for line in table.splitlines() if "mse" in line]
    assert {row[0] for row in rows[:2]} == {"0", "3"}
    mean, spread = (float(rows[2][place].rstrip(",")) for place in (2, -1))
    scores = [float(row[2]) for row in rows[:2]]
    assert rows[2][0] == "mean"
    assert mean == pytest.approx(sum(scores) / 2, rel=1e-2)
    assert spread == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5, rel=0.1)
    longer = invoke(
        *("train", "maml", "--seeds", "0, 3, 4", "--iterations", 3, "--out", tmp_path / "runs"),
        *("--resume", "--data", "sinusoid"),
    )
    assert longer.exit_code == 0, longer.output
    assert "of 3 iterations, from iteration 2" in longer.stdout
    assert "of 3 iterations, from iteration 0" in longer.stdout


@pytest.mark.parametrize("seeds", ["0,a", "1,1", "", "-1", "0.5"])
def test_seeds_that_are_none_are_refused(tmp_path, seeds):
    result = invoke("train", "maml", "--seeds", seeds, "--out", tmp_path)
    assert f"expected different whole numbers, such as 0,1,2, got {seeds!r}" in one_line(result)


def test_a_seed_beside_seeds_is_refused(tmp_path):
    result = invoke("train", "maml", "--seeds", "0", "--seed", 1, "--out", tmp_path)
    assert "--seeds: expected no --seed beside it" in one_line(result)


# Sweeps.

GRID = (
    "[options]",
    "inner_steps = 1",
    "[grid]",
    "shots = [1, 2]",
    "options.inner_lr = [0.01, 0.1]",
)
NAMES = [f"shots={shots},inner_lr={rate}" for shots in (1, 2) for rate in (0.01, 0.1)]


def test_a_sweep_trains_every_setting(tmp_path):
    file = written(tmp_path / "sweep.toml", *GRID)
    result = invoke("sweep", file, "--seed", 5, "--out", tmp_path / "runs")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == sorted(NAMES)
    config = Run(tmp_path / "runs" / NAMES[1]).config()
    assert (config.shots, config.seed) == (1, 5)
    assert config.options == {"inner_steps": 1, "inner_lr": 0.1}
    table = result.stdout[result.stdout.index("shots   inner_lr") :].splitlines()
    rows = [line.split() for line in table if "mse" in line]
    assert {(row[0], row[1]) for row in rows} == {(s, r) for s in "12" for r in ("0.01", "0.1")}
    scores = [float(row[3]) for row in rows]
    assert scores == sorted(scores)
    assert "(4 of 4)" in result.stdout


def test_a_sweep_trains_every_setting_for_each_seed(tmp_path):
    file = written(tmp_path / "sweep.toml", "[grid]", "shots = [1, 2]")
    result = invoke("sweep", file, "--seeds", "0,1", "--out", tmp_path / "runs")
    assert result.exit_code == 0, result.output
    assert {Run(path).config().seed for path in (tmp_path / "runs").glob("shots=1/seed-*")} == {
        0,
        1,
    }
    rows = [line.split() for line in result.stdout.splitlines() if " mse " in line]
    means = [row for row in rows if row[1] == "mean"]
    assert sorted(row[0] for row in means) == ["1", "2"]
    for row in means:
        scores = [float(other[3]) for other in rows if other[0] == row[0] and other[1] in "01"]
        assert float(row[3].rstrip(",")) == pytest.approx(sum(scores) / 2, rel=1e-2)
    again = invoke("sweep", file, "--seeds", "0,1", "--out", tmp_path / "runs")
    assert "already holds a run" in one_line(again)
    seeded = written(tmp_path / "seeds.toml", "[grid]", "seed = [1, 2]")
    refused = invoke("sweep", seeded, "--seeds", "0", "--out", tmp_path / "other")
    assert "--seed was given, and seed is in the grid" in one_line(refused)


def test_a_sweep_that_was_stopped_goes_on(tmp_path, monkeypatch):
    file, runs = written(tmp_path / "sweep.toml", *GRID), tmp_path / "runs"
    sweep = ("sweep", file, "--out", runs)
    original = Trainer.fit

    def stopped(self):
        if "shots=2,inner_lr=0.01" in str(self.run):
            self.reporter = StopAfter(1)
        return original(self)

    monkeypatch.setattr(Trainer, "fit", stopped)
    ended = invoke(*sweep)
    assert ended.exit_code == 130
    assert "stopped at iteration 1, saved: --resume goes on" in ended.stdout
    assert not Run(runs / NAMES[3]).started
    monkeypatch.undo()
    assert "already holds a run" in one_line(invoke(*sweep))
    resumed = invoke(*sweep, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert resumed.stdout.count("from iteration 2") == 2
    assert resumed.stdout.count("from iteration 1\n") == 1
    whole = tmp_path / "whole"
    assert invoke("sweep", file, "--out", whole).exit_code == 0
    for name in NAMES:
        states = [checkpoint.load(Run(f / name).last_path).learner for f in (runs, whole)]
        assert_same_state(*states)


def test_a_setting_that_diverges_does_not_stop_the_others(tmp_path):
    grid = ("[grid]", "options.inner_lr = [1e30, 0.01]")
    file = written(tmp_path / "sweep.toml", *grid)
    result = invoke("sweep", file, "--out", tmp_path / "runs")
    assert result.exit_code == 1
    assert "inner_lr=1e+30: MAML: the loss of task 0 is inf" in result.stdout
    table = result.stdout[result.stdout.index("inner_lr   validation") :]
    assert table.index("0.01") < table.index("1e+30")
    (failed,) = [line.split() for line in table.splitlines() if "1e+30" in line][:1]
    assert failed[:2] == ["1e+30", "failed"]


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ((), "expected a table [grid] of lists, got none"),
        (("[grid]",), "expected a table [grid] of lists, got {}"),
        (("[grid]", "shots = 1"), "of lists, got shots = 1"),
        (("[grid]", "shots = []"), "of lists, got shots = []"),
        (("[grid]", "options = [1]"), "options in a table of its own, got [1]"),
        (("[grid]", "shots = [1, 1]"), "every setting of the grid to be another one"),
        (("[grid]", "shot = [1, 2]"), "unknown field 'shot': did you mean shots?"),
        (("[grid]", "inner_lr = [1, 2]"), "unknown field 'inner_lr': an option of the learner is"),
        (("[grid]", "options.inner_lrr = [1]"), "no option 'inner_lrr': did you mean inner_lr?"),
        (
            ("[grid]", 'loss = ["nowhere:loss", "nowhere:error"]'),
            "loss=nowhere-loss: RunConfig: expected loss to be package",
        ),
        (("[grid]", "shots = [1, 'many']"), "expected shots to be an integer"),
        (("[grid]", "seed = [1]"), "--seed was given, and seed is in the grid"),
        (("[grid]", 'device = ["cpu", "cuda"]'), "expected one device for all runs, got cpu, cuda"),
    ],
)
def test_a_grid_that_is_wrong_is_one_line(tmp_path, lines, sentence):
    file = written(tmp_path / "sweep.toml", *lines)
    result = invoke("sweep", file, "--seed", 1, "--out", tmp_path / "runs")
    assert sentence in one_line(result)
    assert not (tmp_path / "runs").exists()


def test_a_setting_that_fails_does_not_stop_the_others(tmp_path):
    grid = ("[grid]", "options.inner_lr = [-1.0, 0.01]", f'metric = ["mae", "{MINE}:late"]')
    file = written(tmp_path / "sweep.toml", *grid)
    result = invoke("sweep", file, "--out", tmp_path / "runs")
    assert result.exit_code == 1
    said = " ".join(result.stdout.split())
    # What can be told before is told before.
    first = said.index("(1 of 2)")
    assert said.count("MAML: expected inner_lr to be above 0, got -1.0", 0, first) == 2
    assert "KeyError: 'of my own' (own_parts.py, line" in said
    table = result.stdout[result.stdout.index("validation", result.stdout.rindex("(2 of 2)")) :]
    assert result.stdout.count(" failed ") == 3
    assert table.index("mae") < table.index("late")


def test_what_is_judged_by_different_losses_is_not_ranked_together(tmp_path):
    grid = ("[grid]", f'loss = ["mse", "{MINE}:squared"]', "shots = [1, 2]")
    file = written(tmp_path / "sweep.toml", *grid)
    result = invoke("sweep", file, "--out", tmp_path / "runs")
    assert result.exit_code == 0, result.output
    table = result.stdout[result.stdout.rindex("iteration   run") :].splitlines()
    first, *_, last = (number for number, line in enumerate(table) if "mse" in line.split()[:1])
    others = [number for number, line in enumerate(table) if "squared" in line]
    assert last < others[0]
    assert any(not line.strip() for line in table[last + 1 : others[0]])
    assert first < last


def test_folders_are_named_by_what_differs(tmp_path):
    file = written(tmp_path / "sweep.toml", "[grid]", 'model = ["mlp", "metasparse_ext.nn:MLP"]')
    assert invoke("sweep", file, "--out", tmp_path / "runs").exit_code == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["model=metasparse_ext.nn-MLP", "model=mlp"]
