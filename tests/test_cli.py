"""The command line: what it prints, writes, refuses, and with which exit code."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.training_helpers import package_path, tiny_config

from metasparse_ext import _library, cli, explain
from metasparse_ext.algorithms import LEARNERS
from metasparse_ext.cli import demo, payoff
from metasparse_ext.cli.options import read
from metasparse_ext.data import Samples, TaskBatch
from metasparse_ext.nn import Conv4
from metasparse_ext.training import Run, Trainer, checkpoint, metrics
from metasparse_ext.training.progress import Lines

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {
    "--ways": 3,
    "--queries": 2,
    "--tasks": 2,
    "--width": 4,
    "--iterations": 4,
    "--validate-every": 2,
    "--validation-tasks": 4,
    "--evaluation-tasks": 6,
    "--inner-lr": 0.1,
    "--inner-steps": 2,
}


@pytest.fixture(scope="module")
def trained(tiny_root, tmp_path_factory, one_thread):
    """A finished run."""
    run = Run(tmp_path_factory.mktemp("runs") / "maml")
    Trainer(tiny_config(tiny_root), run).fit()
    return run


def invoke(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def train(learner, root, out, *more):
    tiny = [part for option in TINY.items() for part in option]
    return invoke(
        "train", learner, "--data", "omniglot", "--root", root, "--out", out, *tiny, *more
    )


def assert_one_line_error(result, *parts):
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    for part in parts:
        assert part in result.stderr


def test_train_writes_a_run_and_says_what_came_out(tmp_path, tiny_root):
    result = train("maml", tiny_root, tmp_path / "run", "--order", "first", "--seed", "3")
    assert result.exit_code == 0, result.output
    run = Run(tmp_path / "run")
    config = run.config()
    assert (config.ways, config.seed, config.iterations) == (3, 3, 4)
    assert config.options == {"inner_lr": 0.1, "inner_steps": 2, "first_order": True}
    assert len(metrics.read(run.metrics_path)) == 4 + 2
    assert checkpoint.load(run.last_path).iteration == 4
    assert "iteration 2: validation" in result.stdout
    assert "on 4 tasks (transductive), active kernels 100.0%" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("best: iteration")


@pytest.mark.parametrize(
    ("data", "backbone"), [("omniglot", "conv4"), ("cifar-fs", "resnet12"), ("glyphs", "conv4")]
)
@pytest.mark.parametrize("learner", LEARNERS)
def test_every_learner_trains_evaluates_and_exports(tmp_path, tiny_root, learner, data, backbone):
    config = tiny_config(tiny_root, learner)
    flags = {"data": data, "backbone": backbone, "root": tiny_root, "ways": 3, "queries": 2}
    flags |= {"tasks": 2, "iterations": 2, "validation_tasks": 2, "evaluation_tasks": 2, "width": 2}
    flags |= config.options
    given = [
        part for name, value in flags.items() for part in (f"--{name}".replace("_", "-"), value)
    ]
    result = invoke("train", learner, "--out", tmp_path, *given)
    assert result.exit_code == 0, result.output
    assert (Run(tmp_path).config().data, Run(tmp_path).config().model) == (data, backbone)
    evaluated = invoke("evaluate", tmp_path)
    assert evaluated.exit_code == 0, evaluated.output
    assert f"{data} test classes" in " ".join(evaluated.stdout.split())
    assert Run(tmp_path).usage_path("test").exists()
    exported = invoke("export", tmp_path, "--out", tmp_path / "masks.npz")
    assert exported.exit_code == 0, exported.output
    with np.load(tmp_path / "masks.npz") as arrays:
        assert len(arrays) == (4 if backbone == "conv4" else 16)
        assert all(np.isin(array, (0, 1)).all() for array in arrays.values())


def test_masks_are_exported_where_the_data_has_moved(tmp_path, trained):
    run = tmp_path / "run"
    shutil.copytree(trained.folder, run)
    config = trained.config()
    (run / "config.json").write_text(config.replace(root=str(tmp_path / "gone")).to_json())
    out = tmp_path / "masks.npz"
    assert invoke("export", run, "--out", out).exit_code == 0
    (run / "images.json").unlink()  # as in runs of earlier versions
    assert_one_line_error(invoke("export", run, "--out", out), "omniglot", "gone")
    assert invoke("export", run, "--out", out, "--root", config.root).exit_code == 0
    assert out.exists()


def test_train_resumes(tmp_path, tiny_root):
    out = tmp_path / "run"
    assert train("maml", tiny_root, out, "--iterations", "2").exit_code == 0
    assert_one_line_error(train("maml", tiny_root, out), "already holds a run", "--resume")
    resumed = train("maml", tiny_root, out, "--iterations", "4", "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "of 4 iterations, from iteration 2" in resumed.stdout
    assert checkpoint.load(Run(out).last_path).iteration == 4


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_a_command_may_be_corrected_that_failed_at_the_first_step(tmp_path, tiny_root, resume):
    out, failing = tmp_path / "run", ("--inner-lr", "1e30", "--inner-steps", "3")
    assert train("maml", tiny_root, out, *failing).exit_code == 1
    assert Run(out).untrained
    mended = train("maml", tiny_root, out, "--shots", "2", *resume)
    assert mended.exit_code == 0, mended.output
    assert Run(out).config().shots == 2


def test_resume_needs_no_flags_and_refuses_other_ones(tmp_path, tiny_root):
    out = tmp_path / "run"
    assert train("maml", tiny_root, out).exit_code == 0
    assert invoke("train", "maml", "--out", out, "--resume").exit_code == 0
    other = invoke("train", "maml", "--out", out, "--resume", "--shots", "2")
    assert_one_line_error(other, "was begun with shots = 1, got 2")
    assert_one_line_error(invoke("train", "imaml", "--out", out, "--resume"), "learner = 'maml'")


def test_resume_refuses_an_end_that_is_past(tmp_path, tiny_root):
    out = tmp_path / "run"
    assert train("maml", tiny_root, out).exit_code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    shorter = invoke("train", "maml", "--out", out, "--resume", "--iterations", "2")
    assert_one_line_error(
        shorter,
        f"expected iterations to be no less than what {out} has done already, 4 iterations, got 2",
    )
    shorter = invoke("train", "maml", "--out", out, "--resume", "--max-seconds", "1e-6")
    assert_one_line_error(
        shorter,
        f"expected max_seconds to be no less than what {out} has done",
        "seconds, got 1e-06",
    )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_resume_of_nothing_starts(tmp_path, tiny_root):
    result = train("maml", tiny_root, tmp_path / "run", "--resume")
    assert result.exit_code == 0, result.output
    assert "nothing to resume" in result.stdout


def test_metadock_starts_from_a_dense_run_and_reports_its_budget(tmp_path, trained):
    out = tmp_path / "pruned"
    root = trained.config().root
    result = train(
        "metadock", root, out, "--init-from", trained, "--budget", "0.25", "--set", "cg_steps=2"
    )
    assert result.exit_code == 0, result.output
    assert Run(out).config().options["budget"] == 0.25
    assert Run(out).config().options["cg_steps"] == 2
    assert "not eligible" in result.stdout
    assert "no checkpoint met the budget" in result.stdout
    evaluated = invoke("evaluate", out)
    assert evaluated.exit_code == 0, evaluated.output
    assert "budget 25 %, achieved" in evaluated.stdout
    assert "last checkpoint" in evaluated.stdout


@pytest.mark.parametrize("kind", ["transductive", "no-transductive"])
def test_evaluate_prints_and_keeps_what_it_found(trained, kind):
    result = invoke("evaluate", trained, "--tasks", "8", f"--{kind}")
    assert result.exit_code == 0, result.output
    words = "8 tasks, transductive" if kind == "transductive" else "8 tasks, not transductive"
    text = " ".join(result.stdout.split())
    assert words in text
    assert "3-way 1-shot, omniglot test classes" in text
    assert "±" in text
    assert "best checkpoint, iteration" in text
    name = "test-8tasks" if kind == "transductive" else "test-8tasks-not-transductive"
    kept = json.loads(trained.evaluation_path(name).read_text())
    assert kept["numbers"]["tasks"] == 8
    assert len(kept["numbers"]["accuracies"]) == 8
    assert kept["numbers"]["transductive"] is (kind == "transductive")


def test_evaluate_takes_more_steps_of_adaptation(trained):
    result = invoke("evaluate", trained, "--adapt-steps", "7")
    assert result.exit_code == 0, result.output
    assert "7 steps of adaptation" in " ".join(result.stdout.split())
    assert json.loads(trained.evaluation_path("test-7steps").read_text())["adapt_steps"] == 7


def test_evaluate_names_a_device_that_is_not_there(trained):
    result = invoke("evaluate", trained, "--device", "abacus")
    assert_one_line_error(result, "expected device to be one that can be used, got 'abacus'")


def test_evaluate_takes_the_number_of_tasks_of_the_run(trained):
    assert invoke("evaluate", trained, "--split", "val").exit_code == 0
    assert json.loads(trained.evaluation_path("val").read_text())["numbers"]["tasks"] == 5


def test_masks_are_those_of_the_best_checkpoint(tmp_path, tiny_root):
    run = Run(tmp_path / "run")
    config = tiny_config(tiny_root, "metadock", iterations=1)
    Trainer(config, run).fit()
    saved = run.best()
    name = "model.blocks.1.conv.masker.scores"
    saved.learner[name] = torch.tensor([[1.0, -1.0, 0.0, 2.0]] * 4)
    checkpoint.save(saved, run.last_path)
    for path in (run.best_path, checkpoint.previous(run.best_path)):
        path.unlink(missing_ok=True)
    assert invoke("export", run, "--out", tmp_path / "some.npz").exit_code == 0
    with np.load(tmp_path / "some.npz") as arrays:
        assert arrays["blocks.1.conv"].tolist() == [[1, 0, 0, 1]] * 4
        assert arrays["blocks.0.conv"].dtype == np.uint8


def test_plot_draws_what_a_run_has(tmp_path, trained):
    assert invoke("evaluate", trained).exit_code == 0
    result = invoke("plot", trained, "--out", tmp_path / "pictures", "--against", "elapsed")
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"learning-curves.png", "accuracy-macs.png"}
    assert result.stdout.split() == [
        str(tmp_path / "pictures" / name) for name in ("learning-curves.png", "accuracy-macs.png")
    ]


def test_info_prints_versions():
    result = invoke("info")
    assert result.exit_code == 0
    for name in ("metasparse_ext", "torch", "cpu", "cuda", "triton"):
        assert f"\n{name} " in f"\n{result.stdout}"


@pytest.mark.skipif(_library.problem is not None, reason="the compiled library is missing")
@pytest.mark.parametrize("tasks", [None, 3])
def test_info_explains_a_convolution(tasks):
    lead = () if tasks is None else (tasks,)
    x = torch.zeros(*lead, 6, 8, 9, 10, dtype=torch.float64)
    weight = torch.zeros(*lead, 4, 8, 5, 3, dtype=torch.float64)
    mask = torch.zeros(4, 8, dtype=torch.float64)
    mask.view(-1)[:8] = 1
    sizes = ["--shape", "6,8,9,10", "--weight", "4,5,3", "--stride", 2, "--padding", 1]
    more = [] if tasks is None else ["--tasks", tasks]
    result = invoke("info", *sizes, "--density", 0.25, "--dtype", "float64", *more)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{explain(x, weight, mask, stride=2, padding=1)}\n"


def test_learners_are_listed_with_their_sources():
    result = invoke("learners")
    assert result.exit_code == 0
    first = [line.split()[0] for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert first[1:] == list(LEARNERS)
    assert "ICML 2017" in result.stdout


@pytest.mark.parametrize("name", LEARNERS)
def test_a_learner_says_what_is_exact_and_what_is_not(name):
    result = invoke("learners", name)
    assert result.exit_code == 0
    words = " ".join(result.stdout.split())
    assert LEARNERS[name].source.exact.split(",")[0] in words
    assert ("our own" in words) is bool(LEARNERS[name].source.reconstructed)
    options = {"convex-imaml": "lam=", "protonet": "temperature=", "r2d2": "lam="}
    option = options.get(name, "inner_lr=")
    assert option in words


def test_an_unknown_learner_is_named():
    assert_one_line_error(invoke("learners", "reptil"), "unknown learner 'reptil'", "reptile")


def test_presets_are_listed_and_taken(tmp_path, tiny_root):
    name = "metadock/cifar-fs/5way-5shot"
    listed = invoke("presets")
    assert listed.exit_code == 0
    assert name in listed.stdout.splitlines()
    assert "lambda3=50.0" in invoke("presets", name).stdout
    assert "\ninitialization    imaml\n" in invoke("presets", "imaml/omniglot/5way-1shot").stdout
    of_learner = invoke("presets", "metadock").stdout.splitlines()
    assert name in of_learner
    assert all(each.startswith("metadock/") for each in of_learner)
    out = tmp_path / "run"
    result = train("metadock", tiny_root, out, "--preset", name, "--inner-lr", "0.2")
    assert result.exit_code == 0, result.output
    config = Run(out).config()
    assert (config.preset, config.shots, config.meta_lr, config.adam_eps) == (name, 5, 5e-5, 1e-3)
    assert config.image_size == 32
    assert config.options["inner_lr"] == 0.2
    assert config.options["lambda3"] == 50
    assert config.options["total_iterations"] == config.iterations == 4


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train", "metadok", "--out", "x"], ["unknown learner 'metadok'", "metadock"]),
        (["train", "zzz", "--out", "x"], ["unknown learner 'zzz'", "maml, fomaml"]),
        (["train", "maml", "--out", "x", "--data", "omniglott"], ["'omniglott'", "omniglot"]),
        (["train", "maml", "--out", "x", "--data", "omniglot", "--root", "no/such"], ["no/such"]),
        (["train", "maml", "--out", "x", "--preset", "no-such"], ["unknown preset 'no-such'"]),
        (["train", "cavia", "--out", "x", "--preset", "cavia"], ["there are cavia/mini-imagenet/"]),
        (["presets", "no-such"], ["unknown preset 'no-such': `metasparse presets` lists them"]),
        (
            ["train", "meta-ticket", "--out", "x", "--rewind", "9", "--iterations", "3"],
            ["MetaTicket: expected rewind to be at most 3, the training, got 9"],
        ),
        (
            ["train", "maml", "--out", "x", "--preset", "imaml/omniglot/5way-1shot"],
            ["is of imaml, not of maml"],
        ),
        (["train", "maml", "--out", "x", "--ways", "1"], ["ways", "at least 2"]),
        (["train", "maml", "--out", "x", "--ways", "many"], ["--ways", "many"]),
        (["train", "maml", "--out", "x", "--ways", "5000"], ["5000", "classes"]),
        (["train", "maml", "--out", "x", "--budget", "0.5"], ["maml has no option budget"]),
        (["train", "maml", "--out", "x", "--set", "alpha=1"], ["no option alpha", "inner_lr"]),
        (["train", "maml", "--out", "x", "--set", "alpha"], ["KEY=VALUE"]),
        (
            ["train", "bmp", "--out", "x", "--set", "first_order=no"],
            ["bmp: first_order: expected bool, got 'no'"],
        ),
        (["train", "maml", "--out", "x", "--inner-lr", "-1"], ["inner_lr", "above 0"]),
        (
            ["train", "maml", "--out", "x", "--device", "abacus"],
            ["expected device to be one that can be used, got 'abacus'"],
        ),
        (["train", "maml", "--out", "x", "--init-from", "no/run"], ["no/run"]),
        (["train", "maml"], ["--out"]),
        (["evaluate", "no/run"], ["no/run", "not a run folder"]),
        (["export", "no/run", "--out", "masks.npz"], ["no/run", "not a run folder"]),
        (["plot", "no/run"], ["no/run", "not a run folder"]),
        (["evaluate"], ["RUN"]),
        (["info", "--shape", "1,2,3,4"], ["a convolution needs --weight too"]),
        (["info", "--shape", ",".join(4 * ["99999"]), "--weight", "1,3,3"], ["info: no tensor"]),
        (["info", "--stride", "2"], ["a convolution needs --shape and --weight too"]),
        (
            ["info", "--shape", "1,2,3", "--weight", "1,3,3"],
            ["--shape", "expected N,I,H,W", "1,2,3"],
        ),
        (["info", "--shape", "1,2,0,4", "--weight", "1,3,3"], ["--shape", "whole numbers from 1"]),
        (["info", "--shape", "1,2,3,4", "--weight", f"1,3,{2**31}"], ["--weight", "2**31 - 1"]),
        (["info", "--shape", "1,2,3,4", "--weight", "1,7,7"], ["kernels that fit 3 x 4", "7 x 7"]),
        (["trian"], ["trian"]),
    ],
    ids=lambda value: " ".join(value) if "x" in value or len(value) < 3 else "",
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    assert_one_line_error(invoke(*arguments), *parts)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_run_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    assert_one_line_error(invoke("evaluate", tmp_path), "config.json")
    (tmp_path / "config.json").write_text(tiny_config(tmp_path).to_json())
    assert_one_line_error(invoke("evaluate", tmp_path), "omniglot")


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("3", int, 3),
        ("3", float, 3),
        ("1e-3", float, 1e-3),
        ("True", bool, True),
        ("false", bool, False),
        ("none", int | None, None),
        ("paper", str, "paper"),
        ("head, bias", Sequence[str], ["head", "bias"]),
        ("head", Sequence[str], ["head"]),
        ("", Sequence[str], []),
        ("('head', 'bias')", Sequence[str], ("head", "bias")),
        ("0.4,0.01", float | Sequence[float], (0.4, 0.01)),
        ("layer", Literal["fixed", "layer"], "layer"),
        ("inter,intra", Sequence[Literal["inter", "intra"]], ["inter", "intra"]),
        ("3", "a name that is not imported", 3),
    ],
)
def test_settings_are_read_as_they_are_declared(text, annotation, value):
    assert read(text, annotation) == value


@pytest.mark.parametrize(
    ("text", "annotation"),
    [
        ("abc", int),
        ("2.5", int),
        ("true", float),
        ("no", bool),
        ("1", bool),
        ("none", str),
        ("0.4,x", float | Sequence[float]),
        ("layers", Literal["fixed", "layer"]),
    ],
)
def test_settings_of_another_type_are_refused(text, annotation):
    with pytest.raises(ValueError, match=r"expected .*, got"):
        read(text, annotation)


def test_demo_compares_dense_and_pruned(tmp_path, tiny_root, monkeypatch):
    tiny = {
        **{"data": "omniglot", "root": str(tiny_root), "ways": 3, "queries": 2, "width": 8},
        **{"iterations": 40, "validate_every": 10, "validation_tasks": 4, "evaluation_tasks": 6},
    }
    monkeypatch.setattr(demo, "DENSE", demo.DENSE.replace(**tiny))
    monkeypatch.setattr(demo, "PRUNED", demo.PRUNED.replace(**tiny, mask_lr=1e-3))
    result = invoke("demo", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    dense = next(row for row in rows if row[:1] == ["dense"])
    pruned = next(row for row in rows if row[:1] == ["pruned"])
    assert dense[5:7] == ["100.0", "%"]
    assert float(pruned[5]) < 90
    assert float(pruned[7]) < float(dense[7])
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {"accuracy-macs.png", "kernels-pruned.png", "learning-curves.png"}
    assert "seconds in all" in result.stdout
    assert "s/iteration" not in result.stdout
    timed = [row for row in rows if row[:1] in (["dense"], ["pruned"])][-2:]
    assert [row[0] for row in timed] == ["dense", "pruned"]
    assert all(float(cell) > 0 for row in timed for cell in row[1:])


@pytest.mark.parametrize("strided", [True, False])
def test_the_demo_times_nothing_whose_outputs_differ(strided, monkeypatch):
    torch.manual_seed(0)
    net = payoff.masked(
        Conv4(1, 16, width=6, ways=3, strided=strided),
        {f"blocks.{block}.conv": torch.rand(6, 6 if block else 1) < 0.5 for block in range(4)},
    )
    labels = torch.arange(3)[None]
    task = TaskBatch(*(Samples(torch.rand(1, 3, 1, 16, 16), labels) for _ in range(2)))
    found = payoff.measure({"pruned": net}, task)["pruned"]
    assert min(found.ours, found.stock) > 0
    monkeypatch.setattr(payoff.F, "relu", payoff.F.leaky_relu)
    with pytest.raises(ArithmeticError, match="pruned: the logits differ"):
        payoff.measure({"pruned": net}, task)


def test_help_is_short_and_complete():
    result = invoke("--help")
    assert result.exit_code == 0
    for command in ("train", "evaluate", "info", "plot", "demo", "learners", "presets", "export"):
        assert f"\n  {command} " in result.stdout
    assert "--init-from" in invoke("train", "--help").stdout


def test_as_a_process(tmp_path):
    command = [sys.executable, "-m", "metasparse_ext", "train", "metadok", "--out", "x"]
    ended = subprocess.run(
        command, cwd=tmp_path, env=package_path(), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == "metasparse: unknown learner 'metadok': did you mean metadock?\n"


@pytest.fixture
def interrupted(monkeypatch):
    """Presses Ctrl-C in the second iteration."""
    original = Lines.step

    def step(self, record, done):
        original(self, record, done)
        if record["iteration"] == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Lines, "step", step)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, tiny_root, interrupted):
    result = train("maml", tiny_root, tmp_path / "run")
    assert result.exit_code == 130
    assert "stopped at iteration 2" in result.stdout
    assert "--resume" in result.stdout
    assert checkpoint.load(Run(tmp_path / "run").last_path).iteration == 2


def test_ctrl_c_ends_the_demo(tmp_path, tiny_root, monkeypatch, interrupted):
    tiny = {"data": "omniglot", "root": str(tiny_root), "ways": 3, "queries": 2, "width": 4}
    monkeypatch.setattr(demo, "DENSE", demo.DENSE.replace(**tiny))
    result = invoke("demo", "--out", tmp_path)
    assert result.exit_code == 130
    assert not (tmp_path / "pruned").exists()
