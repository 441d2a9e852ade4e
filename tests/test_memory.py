"""Memory that is kept from step to step, each time in a process of its own."""

import subprocess
import sys

import pytest

import metasparse_ext as ms
from metasparse_ext import _memory

PROGRAM = """
import resource, torch
import metasparse_ext as ms

assert ms.keep_memory()

def step():
    tensors = [torch.ones(1 << 22), torch.ones(1 << 24)]  # 16 and 64 MB
    return sum(t.sum() for t in tensors)

for _ in range(10):  # the heap finds its size
    step()
before = resource.getrusage(resource.RUSAGE_SELF)
for _ in range(20):
    step()
after = resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_minflt - before.ru_minflt)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_pages_are_not_handed_out_anew():
    """Without it each of the 20 steps takes 20,480 page faults."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 100_000


def test_another_c_library(monkeypatch):
    monkeypatch.setattr(_memory.sys, "platform", "darwin")
    with pytest.warns(UserWarning, match="expected glibc"):
        assert not ms.keep_memory()
