"""No accesses of the CUDA C++ kernels race, no wide one is unaligned, no order changes a result.

The kernels run emulated, on drawn orders of blocks and threads, with every access logged
(cuda_emulation/races.h) and operands between pages that nobody may touch. What that cannot see:
races of what only one thread of a launch touches in these calls, and what the hardware would make
of one.
"""

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import cuda_emulator

pytestmark = pytest.mark.skipif(
    shutil.which(cuda_emulator.COMPILER) is None, reason="no C++ compiler"
)
TESTS = Path(__file__).parent
FAULTS = {
    "none": "",
    "no barrier": "reads what thread .* writes, with no barrier|writes what thread .* reads",
    "a barrier of the warp alone": "with no barrier between",
    "two blocks write one place": r"of block [01] writes what thread \d+ of block [01] writes",
    "written while others read": "writes what thread .* reads, with no barrier",
    "unaligned": r"races_check.cu:\d+: an access that wants an address divisible by 16",
    "read before a copy is waited for": "with no barrier between",
}


@pytest.fixture(scope="module")
def check_races(tmp_path_factory):
    library = cuda_emulator.compile_check(tmp_path_factory.mktemp("races"))
    return ctypes.CDLL(str(library)).check_races


@pytest.mark.parametrize("fault", FAULTS)
def test_the_log_finds_the_faults_that_it_is_for(check_races, fault):
    data = (ctypes.c_float * 192)()
    text = ctypes.create_string_buffer(1 << 14)
    assert check_races(data, list(FAULTS).index(fault), text, len(text)) == 0
    found = text.value.decode()
    if fault == "none":
        assert found == ""
    else:
        assert re.search(FAULTS[fault], found), found
        if fault != "unaligned":
            assert "divisible" not in found


@pytest.mark.parametrize("pattern", ["topk_mask*", "cg_step*", "convolutions*", "softmax_head*"])
def test_no_access_races_and_no_order_matters(pattern):
    environment = os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    command = [sys.executable, "-m", "support.cuda_races", pattern]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("calls") >= 18
    assert found == {"findings": {}, "differing": []}
