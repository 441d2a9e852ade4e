"""Where a draw runs: threads, forced backend, instruction set, and a process that may die of it."""

import contextlib
import os
import pickle
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

import metasparse_ext as ms
from build_backend.isa import supported

TESTS = Path(__file__).resolve().parent.parent
INSTRUCTION_SETS = tuple(supported())
THREADS = (1, 2, 3, 8)
PATIENCE = 120  # seconds until a draw counts as hanging
START = 600  # seconds for a process to import PyTorch, on a machine that is busy


@contextlib.contextmanager
def conditions(threads: int, backend: str = "automatic") -> Iterator[None]:
    """So many threads, a forced convolution backend, and NaN in memory that is not yet written."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        with ms.backend(backend):
            yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(before)


def environment(isa: str) -> dict[str, str]:
    """Variables of a process that runs draws with one instruction set."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    # More threads than cores must not wait for each other on one.
    return {
        **os.environ,
        "METASPARSE_CPU_ISA": isa,
        "OMP_WAIT_POLICY": "passive",
        "PYTHONPATH": os.pathsep.join([path, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }


class Worker:
    """A process of one instruction set that checks draws; one that dies is a failure, then anew."""

    def __init__(self, isa: str) -> None:
        self._isa = isa
        self._process: subprocess.Popen | None = None

    def check(self, draw) -> str | None:
        """What is wrong with a draw, or None."""
        if self._process is None and (problem := self._start()) is not None:
            return problem
        pickle.dump(draw, self._process.stdin)
        self._process.stdin.flush()
        return self._answer(PATIENCE)

    def _start(self) -> str | None:
        """Why there is no process that is ready, or None."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.machine"],
            env=environment(self._isa),
            cwd=TESTS.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return self._answer(START)

    def _answer(self, patience: float) -> str | None:
        """What the process says; time that it had to wait for a core does not count."""
        process = self._process
        start, waited = time.monotonic(), _kept_waiting(process.pid)
        left = patience
        while not select.select([process.stdout], [], [], left)[0]:
            excused = max(0.0, _kept_waiting(process.pid) - waited)
            left = patience + excused - (time.monotonic() - start)
            if left <= 0:
                self.close()
                return f"no result after {patience} s"
        try:
            return pickle.load(process.stdout)
        except EOFError:
            return self._epitaph()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _epitaph(self) -> str:
        code = self._process.wait()
        self.close()
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
        return f"the process ended {how}"


def _kept_waiting(process: int) -> float:
    """Seconds that some thread of a process was ready and had no core, as far as Linux tells."""
    longest = 0
    for file in Path(f"/proc/{process}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            longest = max(longest, int(file.read_text().split()[1]))
    return longest / 1e9


class Workers:
    """One worker an instruction set, started when it is needed."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}

    def check(self, draw) -> str | None:
        return self._workers.setdefault(draw.isa, Worker(draw.isa)).check(draw)

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()


def outcome(draw) -> str | None:
    """``draw.check()``, an exception that it raises being a failure like any other."""
    try:
        return draw.check()
    except Exception:
        return traceback.format_exc()


def reproduction(draw) -> str:
    """A shell command that checks a draw once more."""
    kind = type(draw)
    code = f"from {kind.__module__} import {kind.__name__}; print({draw!r}.check())"
    return f'METASPARSE_CPU_ISA={draw.isa} PYTHONPATH=.:tests python -c "{code}"'


def _serve() -> None:
    """Checks the draws that arrive on standard input; what they print goes to standard error."""
    # Definitions take one thread: MKL's LU factorization of a batch can wait for ever for threads
    # that the parallel loop over the batch does not give it.
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    result = None  # the first one says that this process is ready
    while True:
        pickle.dump(result, answers)
        answers.flush()
        try:
            draw = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        result = outcome(draw)


if __name__ == "__main__":
    _serve()
