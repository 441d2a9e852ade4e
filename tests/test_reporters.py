"""Several reporters at once, those of TensorBoard and Weights & Biases, and what fails in them."""

import csv
import sys
from types import ModuleType

import pytest
from click.testing import CliRunner
from support.training_helpers import StopAfter, tiny_config

from metasparse_ext import cli
from metasparse_ext.training import Run, TensorBoard, Trainer, WandB, metrics
from metasparse_ext.training.reporters import Reporters

pytestmark = pytest.mark.usefixtures("one_thread")


class Noted:
    """A reporter that keeps what it is told, and raises at a moment if asked to."""

    def __init__(self, fails=None):
        self.told, self.fails = [], fails

    def _note(self, moment):
        if moment == self.fails:
            raise ConnectionError("nobody\nlistens")
        self.told.append(moment)

    def start(self, config, iteration):
        self._note("start")

    def step(self, record, done):
        self._note("step")

    def validation(self, record, best):
        self._note("validation")

    def close(self):
        self._note("close")


class StandIn(ModuleType):
    """The part of wandb that is used, without its service."""

    def __init__(self):
        super().__init__("wandb")
        self.runs = []

    def init(self, **settings):
        self.settings, self.logged, self.summary, self.axes = settings, [], {}, []
        self.finished = False
        self.runs.append(settings["id"])
        return self

    def define_metric(self, name, step_metric=None):
        self.axes.append((name, step_metric))

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", StandIn())
    return sys.modules["wandb"]


def events(run):
    """The scalars of TensorBoard's files by name: iterations and values."""
    accumulated = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulated.EventAccumulator(str(run.folder / "tensorboard"))
    found.Reload()
    names = found.Tags()["scalars"]
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in names}


def of_kind(run, kind):
    return [record for record in metrics.read(run.metrics_path) if record["kind"] == kind]


@pytest.mark.parametrize("moment", ["start", "step", "validation", "close"])
def test_one_that_fails_is_named_and_told_no_more(tmp_path, tiny_root, caplog, moment):
    whole, broken = Noted(), Noted(fails=moment)
    outcome = Trainer(tiny_config(tiny_root), Run(tmp_path), reporter=[broken, whole]).fit()
    assert outcome.iteration == 6
    half = [*["step"] * 3, "validation"]
    assert whole.told == ["start", *half, *half, "close"]
    assert broken.told == whole.told[: whole.told.index(moment)]
    (line,) = [record.getMessage() for record in caplog.records]
    assert "Noted failed and is told no more, training goes on: ConnectionError: nobody li" in line
    assert "\n" not in line


def test_tensorboard_has_the_metrics_of_a_run_that_went_on(tmp_path, tiny_root):
    pytest.importorskip("tensorboard")
    run, config = Run(tmp_path), tiny_config(tiny_root, save_every=2, validate_every=2)
    Trainer(config, run, reporter=[TensorBoard(run), StopAfter(3)]).fit()
    Trainer(config, run, reporter=TensorBoard(run)).fit()
    found = events(run)
    for kind in ("train", "validation"):
        records = of_kind(run, kind)
        losses = found[f"{kind}/loss"]
        assert [step for step, _ in losses] == [record["iteration"] for record in records]
        expected = [record["loss"] for record in records]
        assert [value for _, value in losses] == pytest.approx(expected)
    assert "train/iteration" not in found


def test_wandb_goes_on_with_a_run(tmp_path, tiny_root, wandb, monkeypatch):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    run, config = Run(tmp_path / "mine"), tiny_config(tiny_root)
    Trainer(config, run, reporter=[WandB(run), StopAfter(3)]).fit()
    assert wandb.settings["project"] == "metasparse"
    assert wandb.settings["name"] == "mine"
    assert wandb.settings["config"]["learner"] == "maml"
    assert ("*", "iteration") in wandb.axes
    assert wandb.finished
    Trainer(config, run, reporter=WandB(run)).fit()
    assert wandb.runs[0] == wandb.runs[1]
    assert wandb.settings["resume"] == "allow"
    sent = [values for values in wandb.logged if "train/loss" in values]
    assert [values["iteration"] for values in sent] == [4, 5, 6]
    records = of_kind(run, "train")[3:]
    assert [values["train/loss"] for values in sent] == [record["loss"] for record in records]
    run.forget()
    Trainer(config, run, reporter=WandB(run)).fit()
    assert wandb.runs[2] != wandb.runs[0]
    assert wandb.summary["best/iteration"] in (3, 6)


def invoke(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def flags(root, out):
    small = {"--data": "omniglot", "--root": root, "--out": out, "--ways": 3, "--queries": 2}
    small |= {"--tasks": 2, "--width": 4, "--iterations": 2, "--validation-tasks": 2}
    return [part for option in small.items() for part in option]


def test_wandb_itself_keeps_a_run_offline(tmp_path, tiny_root, monkeypatch):
    """The package, as it is, without its service."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = Run(tmp_path / "mine")
    Trainer(tiny_config(tiny_root), run, reporter=["wandb", StopAfter(3)]).fit()
    Trainer(tiny_config(tiny_root), run, reporter="wandb").fit()
    files = [*(run.folder / "wandb").glob("offline-run-*/*.wandb")]
    assert {path.stem for path in files} == {f"run-{(run.folder / 'wandb-id').read_text()}"}
    kept = b"".join(path.read_bytes() for path in files)
    for name in (b"train/loss", b"validation/accuracy", b"best/iteration"):
        assert name in kept


def test_the_command_line_tells_several(tmp_path, tiny_root, wandb):
    pytest.importorskip("tensorboard")
    report = ["--report", "tensorboard", "--report", "wandb"]
    result = invoke("train", "fomaml", *flags(tiny_root, tmp_path / "run"), *report)
    assert result.exit_code == 0, result.output
    assert "best: iteration 2" in result.stdout
    assert len(events(Run(tmp_path / "run"))["train/loss"]) == 2
    assert any("validation/accuracy" in values for values in wandb.logged)


def test_a_package_that_is_missing_is_named_before_training(tmp_path, tiny_root, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    out = tmp_path / "run"
    result = invoke("train", "fomaml", *flags(tiny_root, out), "--report", "wandb")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "--report wandb needs wandb: pip install wandb" in result.stderr
    assert not out.exists()


def test_what_is_no_reporter_is_refused(tmp_path, tiny_root):
    with pytest.raises(TypeError, match=r"Trainer: expected reporter to be None, a Reporter"):
        Trainer(tiny_config(tiny_root), Run(tmp_path), reporter=[Noted(), 3])
    with pytest.raises(ValueError, match=r"reporter to be one of 'lines', .*, got 'wand'"):
        Trainer(tiny_config(tiny_root), Run(tmp_path), reporter="wand")
    for kind in (TensorBoard, WandB):
        with pytest.raises(TypeError, match=f"{kind.__name__}: expected run to be a Run"):
            kind(str(tmp_path))


def test_a_trainer_prints_lines_unless_told_not_to(tmp_path, tiny_root, capsys):
    Trainer(tiny_config(tiny_root), Run(tmp_path / "a")).fit()
    begun, *validations = capsys.readouterr().out.splitlines()
    assert begun == "maml: training of 6 iterations, from iteration 0"
    assert [line.split(":")[0] for line in validations] == ["iteration 3", "iteration 6"]
    Trainer(tiny_config(tiny_root), Run(tmp_path / "b"), reporter=None).fit()
    of_another_process = Reporters.of("Trainer", "lines", Run(tmp_path), first=False)
    of_another_process.validation({}, False)
    assert capsys.readouterr().out == ""


def test_reporters_by_name(tmp_path, tiny_root, wandb, capsys):
    Trainer(tiny_config(tiny_root), Run(tmp_path), reporter=["lines", "wandb"]).fit()
    assert "iteration 6: validation" in capsys.readouterr().out
    assert wandb.finished


def test_all_records_as_a_table(tmp_path, tiny_root):
    runs = [tmp_path / "a", tmp_path / "b"]
    Trainer(tiny_config(tiny_root), Run(runs[0])).fit()
    Trainer(tiny_config(tiny_root, data="omniglot+cifar-fs"), Run(runs[1])).fit()
    result = invoke("plot", *runs, "--csv", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "out" / "metrics.csv") in result.stdout
    with open(tmp_path / "out" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for run in runs:
        records = metrics.read(Run(run).metrics_path)
        own = [row for row in rows if row["run"] == str(run)]
        assert [row["kind"] for row in own] == [record["kind"] for record in records]
        assert [float(row["loss"]) for row in own] == [record["loss"] for record in records]
    assert rows[0]["distributions/omniglot/accuracy"] == ""
    assert 0 <= float(rows[-1]["distributions/omniglot/accuracy"]) <= 1
