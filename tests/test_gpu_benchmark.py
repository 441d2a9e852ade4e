"""The benchmark on a GPU and its script, as far as a machine without one can run them."""

import contextlib
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import ceilings, meta_steps, ops, retune
from benchmarks.gpu.timing import Clock, precision
from benchmarks.harness import WrongResult
from metasparse_ext.ops import cuda as backends
from metasparse_ext.ops import cuda_table
from metasparse_ext.ops.backends import CUDA_BACKENDS

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.usefixtures("one_thread")


def script():
    spec = importlib.util.spec_from_file_location("gpu_script", ROOT / "tools/gpu.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


gpu = script()


def test_every_part_of_the_benchmark_runs(tmp_path, capsys):
    command.main(["--device", "cpu", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    assert "these are not times of a GPU" in text
    for name in meta_steps.SIDES:
        assert f"| {name}, T=2" in text
    assert "| forward, 2, 3, 4, 5, 6, 1, float32 |" in text
    assert "| topk_mask |" in text
    assert "Failed" not in text
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="there is no GPU"):
        command.main([])


@pytest.fixture
def results(tmp_path):
    return command.Results(tmp_path, ceilings.Ceilings(4.0, 400.0, 50.0, 1.5, 2.0))


def tiny_row(clock, results):
    return next(ops.jobs(clock, results.ceilings, quick=True, tiny=True))


def test_what_fails_has_no_row_and_costs_no_other_its_own(results, tmp_path):
    def wrong():
        raise WrongResult("forward: error 1e-1 of the largest entry, bound 1e-5")

    jobs = [wrong, tiny_row(Clock("cpu"), results)]
    results.gather(iter(jobs), time.monotonic() + 60)
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert document["failures"] == [
        "WrongResult: forward: error 1e-1 of the largest entry, bound 1e-5"
    ]
    assert [row["case"]["density"] for row in document["rows"]] == [1.0, 0.5, 0.2, 0.1]
    assert {row["case"]["precision"] for row in document["rows"]} == {"tf32"}
    assert document["ceilings"]["copy_tbs"] == 4.0
    assert "Failed: WrongResult" in (tmp_path / "gpu.md").read_text()


def test_cases_without_time_are_counted(results):
    results.gather(iter([tiny_row(Clock("cpu"), results)] * 3), until=0.0)
    assert (results.rows, results.left_out) == ([], 3)


def test_achieved_rates():
    case = ops.Conv("forward", 2, 3, 4, 5, 6, 2, 0.5)
    limits = ceilings.Ceilings(4.0, 400.0, 50.0, 1.5, 2.0)
    second = ops.Timing(1.0, 1.0, 1.0, 3)
    found = ops.achieved(case, "float32", 0.5, second, limits)
    assert found["tflops"] == pytest.approx(2 * 9 * 2 * 3 * 4 * 5 * 3 * 3 * 0.5 / 1e12)
    assert found["tbs"] == pytest.approx(4 * 2 * (3 * 4 * 36 + 3 * 5 * 9 + 9 * 4 * 5) / 1e12)
    assert found["of_tflops"] == pytest.approx(found["tflops"] / 50)
    assert found["of_tbs"] == pytest.approx(found["tbs"] / 4)


def test_the_grid_is_that_of_the_cpu_with_every_op():
    shapes = ops.conv_shapes(quick=False)
    assert len(shapes) == len(set(shapes)) > 100
    assert shapes[0].tasks == 4
    assert {shape.op for shape in shapes} >= {"forward", "input gradient", "weight gradient"}


@pytest.mark.parametrize("name", ["tf32", "float32"])
def test_precision_is_set_and_put_back(name):
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    with precision(name):
        assert [switch.allow_tf32 for switch in switches] == [name == "tf32"] * 2
    assert [switch.allow_tf32 for switch in switches] == before


@pytest.fixture
def dense_only(monkeypatch):
    """The CPU has PyTorch's own operators alone: launchers and CUDA C++ are for a GPU."""
    monkeypatch.setattr(
        backends, "refusal", lambda op, name, *_: None if name == "dense" else "not on the CPU"
    )


@pytest.fixture(scope="module")
def calls():
    return retune.recorded(Clock("cpu"), tiny=True)


def test_retuning_measures_the_calls_of_meta_steps(calls, dense_only, monkeypatch, capsys):
    assert {op for op, _ in calls} >= {"masked_conv", "norm_act_pool", "cg_step", "softmax_head"}
    assert {dict(features).get("precision") for _, features in calls} == {"tf32", "float32", None}
    monkeypatch.setattr(retune, "recorded", lambda clock, tiny: calls)
    before = cuda_table.PATH.read_text()
    command.main(["--device", "cpu", "--retune"])
    assert f"{len(calls)} of {len(calls)} calls measured" in capsys.readouterr().out
    assert cuda_table.PATH.read_text() == before


def test_retuning_stops_in_time(calls, dense_only, monkeypatch, tmp_path):
    monkeypatch.setattr(retune, "recorded", lambda clock, tiny: calls)
    assert f"0 of {len(calls)} calls" in retune.run(Clock("cpu"), 0.0, tmp_path, tiny=True)


def test_retuning_tries_the_cuts_next_to_the_present_one(calls, monkeypatch):
    monkeypatch.setattr(
        backends, "refusal", lambda op, name, *_: "not built" if name == "cuda" else None
    )
    (op, _), args = next(item for item in calls.items() if item[0][0] == "masked_conv")
    candidates = backends.candidates(op, args)
    tried = retune.near(op, args, candidates)
    grid = backends.OPS[op].grid.values()
    assert len(tried) <= 2 + sum(len(values) - 1 for values in grid) < len(candidates)
    assert tried[0] == backends.Choice("dense")


def test_a_candidate_with_a_wrong_result_is_none(calls, monkeypatch):
    (op, features), args = next(item for item in calls.items() if item[0][0] == "masked_conv")
    right, wrong = backends.Choice("dense"), backends.Choice("cuda")
    monkeypatch.setattr(backends, "candidates", lambda op, args: [wrong, right])
    run = backends.run_choice

    def run_choice(op, choice, args):
        found = run(op, right, args)
        return found + 1 if choice == wrong else found

    monkeypatch.setattr(backends, "run_choice", run_choice)
    assert retune.fastest(Clock("cpu"), op, dict(features), args) == right


def test_recorded_arguments_stay_shared():
    weight = torch.randn(1, 2, 3).expand(4, 2, 3)
    (copied, number) = retune._copied((weight, 7))
    assert torch.equal(copied, weight)
    assert (copied.stride(0), number) == (0, 7)
    assert copied.data_ptr() != weight.data_ptr()


# As on a GPU


class FakeEvent:
    def __init__(self, enable_timing=False):
        self.at = None

    def record(self, stream=None):
        self.at = time.perf_counter()

    def synchronize(self):
        assert self.at is not None

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


class FakeStream:
    def __init__(self, device=None):
        self.device = device

    def wait_stream(self, other):
        assert isinstance(other, FakeStream)


class FakeCudaGraph:
    """Replays nothing: what is timed has run once, when it was recorded."""

    def replay(self):
        pass


@pytest.fixture
def fake_driver(monkeypatch, fake_graph):
    """What the benchmark asks of torch.cuda, on the CPU; no other name of it may be asked for."""
    names = {
        "Event": FakeEvent,
        "Stream": FakeStream,
        "CUDAGraph": FakeCudaGraph,
        "current_stream": lambda device=None: FakeStream(),
        "stream": lambda stream: contextlib.nullcontext(),
        "graph": lambda graph, stream=None: contextlib.nullcontext(),
        "synchronize": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 1 << 20,
        "max_memory_allocated": lambda: 3 << 20,
        "get_device_name": lambda: "a GPU that is none",
    }
    for name, value in names.items():
        monkeypatch.setattr(torch.cuda, name, value)
    real = Clock.__init__

    def on_gpu(self, device):
        real(self, device)
        self.on_gpu = True

    monkeypatch.setattr(Clock, "__init__", on_gpu)
    most = {"least": 2, "most": 2}
    interleave = Clock.interleave
    monkeypatch.setattr(
        Clock, "interleave", lambda self, v, **o: interleave(self, v, **{**o, **most})
    )


@pytest.mark.usefixtures("fake_driver")
def test_the_way_of_a_gpu_through_the_benchmark(tmp_path, capsys):
    command.main(["--device", "cpu", "--quick", "--out", str(tmp_path), "--seconds", "600"])
    text = capsys.readouterr().out
    assert "Failed" not in text
    for name in meta_steps.SIDES:
        assert f"| {name}, T=2" in text
    assert "| 2 |" in text  # MiB of the peak


@pytest.mark.usefixtures("fake_driver", "dense_only")
def test_a_measured_table_goes_where_out_says(calls, tmp_path, monkeypatch, capsys):
    one = dict([next(iter(calls.items()))])
    monkeypatch.setattr(retune, "recorded", lambda clock, tiny: one)
    before = cuda_table.PATH.read_text()
    command.main(["--device", "cpu", "--retune", "--out", str(tmp_path / "new")])
    table = cuda_table.read(tmp_path / "new" / "cuda_table.json")
    assert (table.status, table.device) == ("measured", "a GPU that is none")
    assert len(table.rows) == 1 + len(cuda_table.read().rows)
    assert f"cp {tmp_path}/new/cuda_table.json" in capsys.readouterr().out
    assert cuda_table.PATH.read_text() == before


# The script


def test_a_rehearsal_of_every_stage(tmp_path, monkeypatch):
    """Every command that the stages would run names what there is, in options that are known."""
    commands = []

    def run(command, log, seconds, environment=None):
        commands.append((list(command), dict(environment or {})))
        log.write_text("")
        return gpu.Outcome("passed", 0.1)

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu, "capability", lambda: "9.0")
    monkeypatch.setattr(gpu.shutil, "which", lambda name: sys.executable)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert not ended.value.code
    summary = json.loads((tmp_path / "gpu-summary.json").read_text())
    assert {name: record["status"] for name, record in summary.items()} == dict.fromkeys(
        gpu.STAGES, "passed"
    )
    known = vars(command.parser().parse_args([]))
    backends_asked = set()
    for words, environment in commands:
        for word in words:
            path = word.split("::")[0]
            if path.endswith(".py"):
                assert (ROOT / path).is_file(), word
        if "benchmarks.gpu" in words:
            given = command.parser().parse_args(words[words.index("benchmarks.gpu") + 1 :])
            assert vars(given).keys() == known.keys()
            assert given.out == tmp_path
        backends_asked.add(environment.get("METASPARSE_CUDA_BACKEND"))
    assert backends_asked == {None, "automatic", *CUDA_BACKENDS}
    assert commands[0][1]["TORCH_CUDA_ARCH_LIST"] == "9.0"


def test_a_stage_that_takes_too_long_is_stopped_with_all_it_started(tmp_path):
    code = """
import subprocess, sys
print("begun", flush=True)
subprocess.run([sys.executable, "-c", "import time; time.sleep(600)"])
"""
    outcome = gpu.run([sys.executable, "-c", code], tmp_path / "log", 3)
    assert outcome.status == "stopped"
    assert outcome.seconds < 60
    assert (tmp_path / "log").read_text() == "begun\n"


def test_outcomes_of_commands(tmp_path):
    passed = gpu.run([sys.executable, "-c", "pass"], tmp_path / "log", 60)
    failed = gpu.run([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "log", 60)
    late = gpu.run([sys.executable, "-c", "pass"], tmp_path / "log", 0.5)
    assert (passed.status, failed.status, failed.note) == ("passed", "failed", "exit code 3")
    assert late.status == "skipped"
    both = gpu.combined({"a": passed, "b": failed}, 1.0)
    assert (both.status, both.note) == ("failed", "b")
    assert gpu.combined({"a": passed, "late": late}, 1.0).status == "passed"


def test_stages_keep_their_results_whatever_becomes_of_the_others(tmp_path, monkeypatch):
    def stage(status):
        return lambda out, seconds: gpu.Outcome(status, 1.0)

    stages = {"build": "passed", "tests": "failed", "sanitizer": "stopped", "benchmark": "passed"}
    monkeypatch.setattr(gpu, "STAGES", {name: stage(status) for name, status in stages.items()})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code
    summary = json.loads((tmp_path / "gpu-summary.json").read_text())
    assert {name: record["status"] for name, record in summary.items()} == stages


def test_without_a_library_nothing_else_is_tried(tmp_path, monkeypatch):
    monkeypatch.setitem(gpu.STAGES, "build", lambda out, seconds: gpu.Outcome("failed", 1.0))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        gpu.main()
    summary = json.loads((tmp_path / "gpu-summary.json").read_text())
    assert [record["status"] for record in summary.values()] == ["failed"] + ["skipped"] * 3


def test_the_stages_fit_in_nine_minutes():
    assert gpu.TOTAL <= 9 * 60
    assert gpu.SECONDS.keys() == gpu.STAGES.keys()


COLLECT = """
import sys
import torch
torch.cuda.is_available = lambda: True
import pytest
class Files:
    def pytest_collection_finish(self, session):
        print(*sorted({item.path.name for item in session.items}), sep=" ", file=sys.stderr)
sys.exit(pytest.main(["-m", "cuda", "--collect-only", "-q", "-p", "no:cacheprovider", "tests"],
                     plugins=[Files()]))
"""


def test_every_file_with_a_test_for_a_gpu_has_a_job():
    """As pytest finds them where there is a GPU."""
    found = subprocess.run(
        [sys.executable, "-c", COLLECT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-2000:]
    files = set(found.stderr.splitlines()[-1].split())
    assert {"test_triton_masked_conv.py", "test_capture.py", "test_masked_conv.py"} <= files
    assert files <= {Path(file).name for _, file, _ in gpu.test_jobs()}


def test_what_wants_a_gpu_has_a_job_and_the_ops_one_for_each_backend():
    names = [name for name, *_ in gpu.test_jobs()]
    assert len(names) == len(set(names))
    assert {"capture", "training_capture", "narrow_inputs", *gpu.OPS} <= set(names)
    assert {f"{op}-{name}" for op in gpu.OPS for name in ("triton", "cuda", "dense")} <= set(names)
    assert set(gpu.FORCED) == set(CUDA_BACKENDS)
    assert "cli" not in names
    for test in {test for tests in gpu.SANITIZED.values() for test in tests}:
        file, name = test.split("::")
        assert f"def {name}(" in (ROOT / file).read_text()
