"""Tasks are computed as many at a time as fit into a budget of memory, and nothing else changes."""

import copy
import gc
import json
import sys

import pytest
import torch
from click.testing import CliRunner
from support.plain_tasks import batch, network
from support.training_helpers import StopAfter, assert_same_state, timeless, tiny_config

from metasparse_ext import cli
from metasparse_ext.algorithms import MAML, Reptile
from metasparse_ext.nn import Conv4
from metasparse_ext.training import Run, RunConfig, Trainer, evaluate_run, memory
from metasparse_ext.training.memory import Chunk, budget_of, check_chunks, chunk_of

pytestmark = pytest.mark.usefixtures("one_thread")

MIB = 1024**2
linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is Linux's")


@pytest.fixture
def peaks(monkeypatch):
    """Has a meta-gradient of n tasks take 100 + 50 n MiB; says of how many it was asked."""
    asked = []

    def measured(work, device):
        work()
        asked.append((1, 2, 1)[len(asked) % 3])
        return (100 + 50 * asked[-1]) * MIB

    monkeypatch.setattr(memory, "_peak", measured)
    return asked


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 << 30),
        ("2 gb", 2 * 10**9),
        ("1.5MiB", 3 << 19),
        ("4096", 4096),
        ("1TB", 10**12),
        ("3kB", 3000),
    ],
)
def test_budgets(text, size):
    assert budget_of("X", "memory", text) == size


@pytest.mark.parametrize("text", ["", "0", "2 GiB more", "-1GB", "much", "2XB", "0.1"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(ValueError, match="expected memory to be a size such as 2GiB"):
        RunConfig(learner="maml", memory=text)


@pytest.mark.parametrize(
    ("budget", "tasks"), [("150MiB", 1), ("207MiB", 1), ("208MiB", 2), ("330MiB", 4), ("9GiB", 8)]
)
def test_the_largest_chunk_that_fits(budget, tasks):
    found = Chunk.of_peaks(budget, 8, 150 * MIB, 200 * MIB)
    assert (found.tasks, found.of, found.more) == (tasks, 8, 50 * MIB)
    assert Chunk(**json.loads(json.dumps(found.to_dict()))) == found


def test_one_task_alone_and_tasks_that_take_nothing_more():
    assert Chunk.of_peaks("1GiB", 1, 500, None).tasks == 1
    assert Chunk.of_peaks("1GiB", 8, 500, 400).tasks == 8
    with pytest.raises(ValueError, match=r"memory to be at least 2\.00 MiB, for one task, got '1M"):
        Chunk.of_peaks("1MiB", 8, 2 * MIB, 3 * MIB)


@linux
def test_measuring_changes_nothing():
    learner, tasks = MAML(network()), batch(3)
    before = copy.deepcopy(learner.state_dict())
    state = torch.get_rng_state()
    found = chunk_of(learner, tasks, "100GiB")
    assert found.tasks == 3
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_state(dict(learner.state_dict()), dict(before))
    assert all(parameter.grad is None for parameter in learner.parameters())


def garbage(size):
    """Leaves so many bytes of tensors to the collector, which is off until the test's end."""
    cycle = [torch.ones(size // 4)]
    cycle.append(cycle)


@linux
def test_what_others_left_is_not_measured(monkeypatch):
    gc.collect()
    gc.disable()
    try:
        garbage(200 * MIB)
        learner, tasks, tried = MAML(network()), batch(2), []

        def collecting(learner, batch):
            tried.append(learner.meta_backward(batch))
            if len(tried) == 2:
                gc.collect()

        monkeypatch.setattr(memory, "_try", collecting)
        first = chunk_of(learner, tasks, "100GiB").one
        tried.clear()
        assert first == pytest.approx(chunk_of(learner, tasks, "100GiB").one, abs=50 * MIB)
    finally:
        gc.enable()


@linux
@pytest.mark.parametrize("peaks", [(900, 700, 600), (600, 700, 600), (600, 700, 900)], ids=str)
def test_memory_that_goes_back_meanwhile_does_not_hide_a_task(monkeypatch, peaks):
    """As when a cache of earlier work is dropped between two of the measurements."""
    left = iter(peaks)
    monkeypatch.setattr(memory, "_peak", lambda work, device: next(left) * MIB)
    found = chunk_of(MAML(network()), batch(3), "100GiB")
    assert (found.one, found.more) == (600 * MIB, 100 * MIB)
    assert next(left, None) is None


@linux
def test_what_is_measured_is_what_more_tasks_take():
    torch.manual_seed(0)
    learner = MAML(Conv4(2, 32, 64, 3, dtype=torch.float64), inner_steps=2)
    tasks = batch(6)
    tasks = type(tasks)(*(s._replace(images=s.images.repeat(1, 1, 1, 4, 4)) for s in tasks))
    found = chunk_of(learner, tasks, "100GiB")
    assert found.more > 4 * MIB
    whole = memory._peak(lambda: memory._try(learner, tasks), torch.device("cpu"))
    assert whole == pytest.approx(found.one + 5 * found.more, rel=0.25)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_peak_on_a_gpu_is_that_of_tensors():
    learner, tasks = MAML(network()).cuda(), batch(6).to("cuda")
    state = torch.cuda.get_rng_state()
    found = chunk_of(learner, tasks, "100GiB")
    assert found.tasks == 6
    assert found.more > 0
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in learner.parameters())


def test_a_run_keeps_to_its_budget(tmp_path, tiny_root, peaks):
    config = tiny_config(tiny_root, tasks=5)
    plain, run = Run(tmp_path / "plain"), Run(tmp_path / "run")
    Trainer(config, plain).fit()
    asked = config.replace(memory="210MiB")
    trainer = Trainer(asked, run, reporter=StopAfter(3))
    assert peaks == [1, 2, 1]
    assert trainer.learner.task_chunk == 2
    assert str(trainer.chunk) == (
        "memory 210MiB: 2 of 5 tasks at a time, about 200.00 MiB (150.00 MiB with one, 50.00 MiB "
        "each more)"
    )
    trainer.fit()
    assert json.loads(run.memory_path.read_text())["tasks"] == 2
    going_on = Trainer(asked, run)
    assert peaks == [1, 2, 1]
    assert going_on.learner.task_chunk == 2
    going_on.fit()
    for ours, theirs in zip(timeless(run), timeless(plain), strict=True):
        assert ours["iteration"] == theirs["iteration"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    one, other = evaluate_run(run), evaluate_run(plain)
    assert one.score == pytest.approx(other.score)


def test_a_smaller_budget_mends_a_run(tmp_path, tiny_root, peaks, caplog):
    run = Run(tmp_path)
    config = tiny_config(tiny_root, tasks=5, memory="300MiB")
    Trainer(config, run, reporter=StopAfter(2)).fit()
    peaks.clear()
    trainer = Trainer(config.replace(memory="210MiB"), run)
    assert trainer.learner.task_chunk == 2
    assert "goes on with memory = '210MiB', it was '300MiB'" in caplog.text
    assert json.loads(run.memory_path.read_text())["budget"] == "210MiB"


def test_a_budget_that_holds_all_tasks_divides_nothing(tmp_path, tiny_root, peaks):
    trainer = Trainer(tiny_config(tiny_root, memory="1GiB"), Run(tmp_path))
    assert trainer.chunk.tasks == 2
    assert trainer.learner.task_chunk is None


def test_refusals():
    adam = Reptile(network(), optimizer="adam")
    with pytest.raises(ValueError, match=r"memory to be None for Reptile: the moments .* '1GiB'"):
        check_chunks(adam, "1GiB")
    with pytest.raises(ValueError, match=r"memory and .* one of them at most, got '1GiB' and 2"):
        check_chunks(MAML(network(), task_chunk=2), "1GiB")


def invoke(root, out, *options):
    small = {"--data": "omniglot", "--root": root, "--out": out, "--ways": 3, "--queries": 2}
    small |= {"--tasks": 5, "--width": 4, "--iterations": 2, "--validation-tasks": 2}
    flags = [str(part) for option in small.items() for part in option]
    return CliRunner().invoke(cli.main, ["train", "fomaml", *flags, *options])


def test_the_command_line_says_it_in_a_line(tmp_path, tiny_root, peaks):
    result = invoke(tiny_root, tmp_path / "run", "--memory", "210MiB")
    assert result.exit_code == 0, result.output
    assert "memory 210MiB: 2 of 5 tasks at a time" in result.stdout


@pytest.mark.parametrize("budget", ["120MiB", "lots"])
def test_a_budget_for_less_than_one_task_is_refused(tmp_path, tiny_root, peaks, budget):
    result = invoke(tiny_root, tmp_path / "run", "--memory", budget)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "expected memory to be" in result.stderr
    assert not (tmp_path / "run").exists()
