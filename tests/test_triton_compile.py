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
    "input grad, tf32",
    "weight grad, tf32x3",
    "mask grad, tf32",
    "forward pair, tf32",
    "norm forward, float32, pool",
    "norm double backward, float32, gate first",
    "cg_step, float32",
    "topk_mask, float32",
)

NARROW = (
    "forward, bfloat16",
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
    assert {"convolve_kernel", "dots_kernel", "advance_kernel", "turn_kernel"} <= set(kernels)
    assert launches[1]["multiplies_by"] == ("mma.sync" if arch == 80 else "wgmma.mma")
    by_kernel = [launch["loop_instructions"] for launch in launches[:4]]
    assert by_kernel[0] is by_kernel[2] is None  # the launches that pack weights
    assert max(by_kernel[1], by_kernel[3]) <= 120  # forward pass and input gradient
    for launch in launches:
        assert launch["spilled_bytes"] == 0, launch
        assert launch["shared_bytes"] <= 163 * 1024, launch


# Kernels that multiply weights by masks and do nothing else.
PRODUCTS = ("pack_weights_kernel", "masked_weight_kernel")


def assert_summed_in_float32(launches: list[dict]) -> None:
    for launch in launches:
        assert launch["sums_in"] in ("f32", "none"), launch
        # Weights times masks are no sums: the product is rounded as PyTorch's is.
        if launch["kernel"] == "masked_weight_backward_kernel":
            assert "f32" in launch["arithmetic"], launch
        elif launch["sums_in"] == "none" and launch["kernel"] not in PRODUCTS:
            assert launch["arithmetic"] == ["f32"], launch


@pytest.mark.parametrize("arch", [80, 90], ids=["sm_80", "sm_90"])
def test_sixteen_bit_inputs_are_summed_in_float32(arch):
    launches = compile_variants(arch, NARROW)
    assert [launch["sums_in"] for launch in launches].count("f32") == 2  # the matrix products
    assert_summed_in_float32(launches)


SASS = """
        /*0010*/                   MOV R1, R2 ;   /* 0x1 */
        /*0020*/                   HMMA.1688.F32.TF32 R4, R8, R10, R4 ;
        /*0030*/              @!P0 LDGSTS.E [R5], desc[UR4][R2.64] ;
        /*0040*/               @P1 BRA 0x20 ;
        /*0050*/                   HGMMA.64x64x8.F32.TF32 R24, R64, gdesc[UR16], R24 ;
        /*0060*/               @P1 BRA 0x50 ;
        /*0070*/                   EXIT ;
"""


def test_instructions_of_a_loop_are_counted():
    """Two beside one product of 16 x 8 x 8, of which four warps need 32 each; and one of 64."""
    program = "import sys; from tools import compile_triton as c; print(c.loop_instructions(%r))"
    found = [
        subprocess.run(
            [sys.executable, "-c", program % sass], capture_output=True, text=True, check=True,
            cwd=ROOT,
        ).stdout.strip()
        for sass in (SASS, "/*0010*/ EXIT ;")
    ]  # fmt: skip
    assert found == [str(2 * 32.0), "None"]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_the_record_has_every_kernel_and_no_spill(arch):
    """What ``python -m tools.compile_triton`` wrote when it was last run."""
    record = json.loads((ROOT / "benchmarks/results/triton-compile.json").read_text())
    assert record["sources"] == digest(ROOT / "metasparse_ext/triton", "*.py"), "compile again"
    launches = [launch for launch in record["launches"] if launch["arch"] == arch]
    sources = "".join(p.read_text() for p in (ROOT / "metasparse_ext/triton").rglob("*.py"))
    kernels = set(re.findall(r"^def (\w+_kernel)\(", sources, re.MULTILINE))
    assert {launch["kernel"] for launch in launches} == kernels
    # A stack of a few values, outside of loops; the tiles were chosen so that none spill more.
    assert [launch for launch in launches if launch["spilled_bytes"] > 48] == []
    narrow = [launch for launch in launches if "float16" in launch["variant"]]
    assert len({launch["kernel"] for launch in narrow}) == 17
    loops = {
        launch["variant"]: launch["loop_instructions"]
        for launch in launches
        if launch["kernel"] == "convolve_kernel"
    }
    for op in ("forward", "input grad"):
        assert loops[f"{op}, tf32"] <= 120
    assert_summed_in_float32(narrow)
