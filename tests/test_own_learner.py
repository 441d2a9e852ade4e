"""A learner of one's own: two methods are enough, and the command line knows it once registered."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from support.plain_tasks import batch, network
from support.training_helpers import package_path

import metasparse_ext as ms
from metasparse_ext import cli

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "learners.md"


def documented() -> str:
    """The learner that the documentation writes."""
    return re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)[-1]


class Nearest(ms.algorithms.MetaLearner):
    """First-order MAML of one step."""

    source = ms.algorithms.Source(paper="a test", exact="one step")

    def __init__(self, model, *, inner_lr: float = 0.1) -> None:
        super().__init__(model, inner_lr=inner_lr, inner_steps=1)

    def _moved(self, support):
        loss, gradient, _ = self.gradient(self.start(len(support.images)), support)
        return self.start(len(support.images)) - self.inner_lr * gradient, loss

    def adapt(self, support):
        return self.adapted(self._moved(support)[0])

    def meta_backward(self, batch):
        phi, before = self._moved(batch.support)
        loss, gradient, logits = self.gradient(phi, batch.query)
        return self.finish(gradient, phi, [before, loss], batch.query, logits)


@pytest.fixture
def registered():
    ms.algorithms.register("nearest", Nearest)
    yield
    del ms.algorithms.LEARNERS["nearest"]


def flags(root, out):
    small = {"--data": "omniglot", "--root": root, "--out": out, "--ways": 3, "--queries": 2}
    small |= {"--tasks": 2, "--width": 4, "--iterations": 2, "--validation-tasks": 2}
    return [str(part) for option in small.items() for part in option]


def test_the_documented_learner_works():
    names = {}
    exec(documented(), names)
    net, tasks = network(), batch()
    learner = names["Reptile"](net, inner_lr=0.1, inner_steps=3)
    metrics = learner.meta_backward(tasks)
    adapted = learner.adapt(tasks.support)
    for name, parameter in net.named_parameters():
        expected = (parameter - adapted.parameters[name]).mean(0)
        torch.testing.assert_close(parameter.grad, expected)
    assert metrics.loss.shape == (3,)
    assert learner.iteration == 1


@pytest.mark.usefixtures("registered", "one_thread")
def test_a_registered_learner_is_listed_trained_and_evaluated(tmp_path, tiny_root):
    def invoke(*arguments):
        result = CliRunner().invoke(cli.main, arguments)
        assert result.exit_code == 0, result.output
        return " ".join(result.stdout.split())

    assert "nearest First-order MAML of one step. a test" in invoke("learners")
    assert "options inner_lr=0.1" in invoke("learners", "nearest")
    out = str(tmp_path / "run")
    trained = invoke("train", "nearest", *flags(tiny_root, out), "--set", "inner_lr=0.2")
    assert "best: iteration 2" in trained
    assert ms.training.Run(out).config().options == {"inner_lr": 0.2}
    assert "3-way 1-shot" in invoke("evaluate", out, "--tasks", "2")


def test_a_class_is_trained_by_its_path_in_another_process(tmp_path, tiny_root):
    (tmp_path / "mine.py").write_text(documented(), encoding="utf-8")
    run = tmp_path / "run"
    command = [sys.executable, "-m", "metasparse_ext", "train", "mine:Reptile"]
    options = ["--inner-lr", "0.1", "--inner-steps", "2"]
    ended = subprocess.run(
        [*command, *flags(tiny_root, run), *options],
        cwd=tmp_path,
        env=package_path(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ms.training.Run(run).config().learner == "mine:Reptile"


def test_what_is_no_learner_is_refused():
    with pytest.raises(
        TypeError, match=r"register: expected learner to be a subclass of MetaLearner, got .*Linear"
    ):
        ms.algorithms.register("linear", torch.nn.Linear)
    with pytest.raises(
        ValueError, match=r"register: expected name to be .* 'maml', which belongs to MAML"
    ):
        ms.algorithms.register("maml", Nearest)
    with pytest.raises(
        ValueError, match="register: expected name to be a word without a colon, got 'my:maml'"
    ):
        ms.algorithms.register("my:maml", Nearest)
    with pytest.raises(
        ValueError, match=r"find: expected name to be .* got 'no\.such:Maml': No module named 'no'"
    ):
        ms.algorithms.find("no.such:Maml")
    with pytest.raises(
        ValueError, match=r"find: expected name to be .* got 'math:Maml': .*no attribute 'Maml'"
    ):
        ms.algorithms.find("math:Maml")
    with pytest.raises(
        TypeError, match="find: expected name to be a subclass of MetaLearner, got 'math:pi', 3"
    ):
        ms.algorithms.find("math:pi")


def test_the_parts_of_the_package_are_imported_when_they_are_asked_for():
    code = """
import sys
import metasparse_ext as ms
parts = ("algorithms", "data", "implicit", "nn", "presets", "training")
assert set(parts) <= set(dir(ms)) & set(ms.__all__)
assert not {"metasparse_ext.training", "metasparse_ext.algorithms"} & set(sys.modules)
assert [getattr(ms, part).__name__ for part in parts] == [f"metasparse_ext.{p}" for p in parts]
"""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=package_path(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    with pytest.raises(AttributeError, match="no attribute 'learners'"):
        ms.learners  # noqa: B018
