"""The Triton kernels compile for GPUs that are not there, without spilling much."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.sources import digest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[1]

# The program compiles a few variants and prints what became of them. A process of its own, as
# Triton either interprets or compiles.
COMPILE = """
import json, sys
from tools import compile_triton
calls = compile_triton.variants()
arch = int(sys.argv[1])
with compile_triton.compiling(arch) as compiled:
    for name in sys.argv[2:]:
        calls[name]()
print(json.dumps([launch._asdict() for launch in compiled]))
"""
REPRESENTATIVES = (
    "forward, tf32",
    "input grad, skipping",
    "weight grad, tf32x3",
    "mask grad, small tile",
    "forward pair, tf32",
    "norm forward, float32, pool",
    "norm double backward, float32, pool, gate first",
    "cg_step, float32",
    "topk_mask, float32",
)

NARROW = (
    "forward, bfloat16",
    "input grad, bfloat16",
    "weight grad, float16",
    "norm double backward, bfloat16, pool",
)


def compile_variants(arch: int, names: tuple[str, ...]) -> list[dict]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", COMPILE, str(arch), *names],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("arch", [80, 90], ids=["sm_80", "sm_90"])
def test_representative_variants_compile(arch):
    launches = compile_variants(arch, REPRESENTATIVES)
    kernels = [launch["kernel"] for launch in launches]
    assert kernels.count("list_blocks_kernel") == 1
    assert {"forward_kernel", "dots_kernel", "advance_kernel", "turn_kernel"} <= set(kernels)
    assert launches[0]["multiplies_by"] == ("mma.sync" if arch == 80 else "wgmma.mma")
    for launch in launches:
        assert launch["spilled_bytes"] == 0, launch
        assert launch["shared_bytes"] <= 163 * 1024, launch


def assert_summed_in_float32(launches: list[dict]) -> None:
    for launch in launches:
        assert launch["sums_in"] in ("f32", "none"), launch
        if launch["sums_in"] == "none":
            assert launch["arithmetic"] == ["f32"], launch


@pytest.mark.parametrize("arch", [80, 90], ids=["sm_80", "sm_90"])
def test_sixteen_bit_inputs_are_summed_in_float32(arch):
    launches = compile_variants(arch, NARROW)
    assert [launch["sums_in"] for launch in launches].count("f32") == 3  # the matrix products
    assert_summed_in_float32(launches)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_the_record_has_every_kernel_and_no_spill(arch):
    """What ``python -m tools.compile_triton`` wrote when it was last run."""
    record = json.loads((ROOT / "benchmarks/results/triton-compile.json").read_text())
    assert record["sources"] == digest(ROOT / "metasparse_ext/triton", "*.py"), "compile again"
    launches = [launch for launch in record["launches"] if launch["arch"] == arch]
    sources = "".join(p.read_text() for p in (ROOT / "metasparse_ext/triton").rglob("*.py"))
    kernels = set(re.findall(r"^def (\w+_kernel)\(", sources, re.MULTILINE))
    assert {launch["kernel"] for launch in launches} == kernels
    assert [launch for launch in launches if launch["spilled_bytes"]] == []
    narrow = [launch for launch in launches if "float16" in launch["variant"]]
    assert len({launch["kernel"] for launch in narrow}) == 8
    assert_summed_in_float32(narrow)
