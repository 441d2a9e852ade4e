"""Ops that several Python threads call at once, and ops in a process that was forked."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from support import every_op

from metasparse_ext import _library

CALLERS, CALLS = 4, 3


def called(threads: int, seeds: range, start: threading.Barrier | None = None) -> list:
    """The results for some seeds on so many threads, whose number is this Python thread's own."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        if start is not None:
            start.wait()
        return [every_op.results(seed) for seed in seeds]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
def test_python_threads_at_once_get_the_bits_of_one_alone(threads):
    """Callers share what is kept from call to call: the lists of masks, scratch memory, OpenMP.

    Two callers each have the same masks, and every caller has some of its own.
    """
    seeds = [range(caller // 2, caller // 2 + CALLS) for caller in range(CALLERS)]
    expected = [called(threads, own) for own in seeds]
    start = threading.Barrier(CALLERS)
    with ThreadPoolExecutor(CALLERS) as pool:
        found = list(pool.map(lambda own: called(threads, own, start), seeds))
    for one, other in zip(expected, found, strict=True):
        for alone, together in zip(one, other, strict=True):
            assert all(map(torch.equal, alone, together))


FORKS = """
import os, signal, sys, torch
from support import every_op
torch.set_num_threads(2)
every_op.results(0)  # OpenMP has its threads from now on
child = os.fork()
if child == 0:
    signal.alarm(200)  # ends a child that waits for ever
    try:
        child_results = every_op.results(1)
        assert torch.get_num_threads() == 1, torch.get_num_threads()
    except BaseException as error:
        print(error, flush=True)
        os._exit(1)
    torch.save(child_results, sys.argv[1])
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0, "the child failed"
assert torch.get_num_threads() == 2
torch.set_num_threads(1)
assert all(map(torch.equal, every_op.results(1), torch.load(sys.argv[1])))
torch.set_num_threads(2)
every_op.results(0)  # the parent has its threads still
"""


ALONE = """
import os, torch
import metasparse_ext as ms
threads = len(os.listdir("/proc/self/task"))
child = os.fork()
if child == 0:
    torch.set_num_threads(2)
    ms.topk_mask(torch.randn(2, 50), 0.2)
    os._exit(torch.get_num_threads())
print(threads, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def output_of(code: str, *arguments: str) -> str:
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests.parent), str(tests)])
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


forks = pytest.mark.skipif(
    not hasattr(os, "fork") or _library.problem is not None,
    reason="processes cannot be forked, or there is no library to watch it",
)


@forks
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system tells no threads")
def test_a_child_of_a_process_without_threads_has_as_many_as_it_wants():
    threads, in_child = map(int, output_of(ALONE).split())
    if threads > 1:
        pytest.skip("importing PyTorch starts threads here")
    assert in_child == 2


@forks
def test_a_forked_child_uses_one_thread(tmp_path):
    """OpenMP's threads are not in a child: what waits for them waits for ever.

    From the first op on that is true of PyTorch's operators, too.
    """
    output_of(FORKS, str(tmp_path / "results.pt"))
