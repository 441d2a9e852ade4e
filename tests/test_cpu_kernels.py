"""The CPU kernels of the masked convolution: every backend, operation and instruction set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import cpu_kernels
from support.cpu_kernels import OPS, Case

import metasparse_ext as ms
from build_backend.isa import compiled_for, supported

pytestmark = pytest.mark.skipif(
    not hasattr(OPS, "set_conv_backend"), reason="the compiled library is missing"
)


@pytest.fixture
def backend():
    """Sets the backend of a test's convolutions."""
    yield OPS.set_conv_backend
    OPS.set_conv_backend("automatic")


IMPORT = "from support.cpu_kernels import OPS"


def run_with_isa(isa: str, *command: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "METASPARSE_CPU_ISA": isa, "OMP_NUM_THREADS": "1"}
    folder = Path(__file__).parent
    environment["PYTHONPATH"] = os.pathsep.join([str(folder.parent), str(folder)])
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("check", list(cpu_kernels.checks()), ids=str)
def test_algorithm_matches_the_definition(check, poisoned_memory, one_thread):
    algorithm, case, mask, dtype, limit = check
    found = cpu_kernels.errors(algorithm, case, mask, dtype)
    assert {op: error for op, error in found.items() if not error <= limit} == {}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("tasks", "threads"), [(3, 8), (1, 2), (4, 2), (2, 3)])
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("name", ["direct", "few_channels", "winograd3", "winograd4"])
def test_threads_share_the_work(name, density, tasks, threads, dtype, bound, backend):
    """Few tiles for the threads: channels are shared out too, or instead.

    Blocks are smaller then, and sum in another order: equal to rounding, of which F(4) has more.
    """
    backend(name)
    bound = 1.2 * bound if name == "winograd4" else bound
    x = torch.randn(tasks, 2, 16, 9, 9, dtype=dtype)
    grad = torch.randn(tasks, 2, 30, 9, 9, dtype=dtype)
    weight = torch.randn(tasks, 30, 16, 3, 3, dtype=dtype)
    mask = (torch.rand(tasks, 30, 16) < density).to(dtype)
    window = ([1, 1], [1, 1])

    def results(threads: int) -> list[torch.Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            found = [
                OPS.masked_conv(x, weight, mask, None, *window),
                OPS.masked_conv_weight_grad(grad, x, mask, [3, 3], *window),
            ]
            if name != "few_channels":
                found.append(OPS.masked_conv_input_grad(grad, weight, mask, [9, 9], *window))
            return found
        finally:
            torch.set_num_threads(before)

    for one, many in zip(results(1), results(threads), strict=True):
        torch.testing.assert_close(many, one, rtol=0, atol=bound)


@pytest.mark.parametrize("isa", compiled_for())
def test_every_instruction_set(isa):
    if isa not in supported():
        pytest.skip(f"this CPU has no {isa}")
    test = f"{Path(__file__).relative_to(Path(__file__).parent.parent)}"
    only = [
        "-q",
        "-p",
        "no:cacheprovider",
        f"{test}::{test_algorithm_matches_the_definition.__name__}",
    ]
    result = run_with_isa(isa, "-m", "pytest", *only)
    assert result.returncode == 0, result.stdout + result.stderr
    assert run_with_isa(isa, "-c", f"{IMPORT}; print(OPS.cpu_isa())").stdout == f"{isa}\n"


def test_unknown_instruction_set_says_which_there_are():
    result = run_with_isa("sse9", "-c", f"{IMPORT}; OPS.cpu_isa()")
    assert "METASPARSE_CPU_ISA must be baseline, avx2 or avx512, but is sse9" in result.stderr


def test_unknown_backend_lists_the_known_ones(backend):
    with pytest.raises(ValueError, match=r"to be one of automatic, .*polyphase3, got 'fastest'"):
        backend("fastest")


def test_forced_backend_refuses_what_it_cannot_do(backend):
    backend("winograd4")
    with pytest.raises(ValueError, match="winograd4 does not support this forward pass: it takes"):
        ms.masked_conv2d(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 3, 3), torch.ones(1, 1), stride=2)


def test_forced_backend_refuses_an_op_that_it_does_not_have(backend):
    backend("few_channels")
    grad, weight = torch.ones(1, 1, 1, 8, 8), torch.ones(1, 1, 1, 3, 3)
    with pytest.raises(ValueError, match="few_channels does not support this input gradient"):
        OPS.masked_conv_input_grad(grad, weight, None, [8, 8], [1, 1], [1, 1])


@pytest.mark.parametrize("name", ["direct", "winograd3", "winograd4"])
def test_strided_and_expanded_operands(name, backend):
    """Tasks and channels that do not lie where a contiguous tensor would have them."""
    backend(name)
    x = torch.randn(3, 8, 10, 9, 5).permute(0, 1, 4, 3, 2)[:, ::2]
    weight = torch.randn(6, 5, 3, 3).expand(3, 6, 5, 3, 3)
    mask = (torch.rand(3, 5, 6) < 0.5).float().transpose(1, 2)
    expected = ms.masked_conv2d(
        x.contiguous(), weight.contiguous(), mask.contiguous(), padding=1
    ).double()
    torch.testing.assert_close(
        ms.masked_conv2d(x, weight, mask, padding=1).double(), expected, rtol=0, atol=0
    )
    backend("library")
    reference = ms.masked_conv2d(x, weight, mask, padding=1).double()
    assert cpu_kernels.relative_error(expected, reference) < 1e-5


# Strides whose phases, the input pixels that one tap reads, form another grid than the output map.
PHASES = [
    Case(4, 1, 16, 12, 9, 9, (2, 2), (2, 2), (0, 0)),
    Case(1, 4, 16, 12, 10, 10, (3, 3), (2, 2), (0, 0)),
    Case(1, 4, 16, 12, 8, 9, (2, 2), (2, 2), (1, 1)),
    Case(2, 3, 9, 12, 13, 11, (4, 4), (3, 3), (0, 1)),
    Case(2, 3, 9, 12, 14, 14, (5, 5), (3, 3), (1, 1)),
    Case(2, 3, 9, 12, 6, 12, (1, 2), (1, 2), (0, 1)),
]


@pytest.mark.parametrize("case", PHASES, ids=str)
@pytest.mark.parametrize("name", ["automatic", "direct"])
def test_input_gradient_of_strides_whose_phases_are_not_the_output_map(
    name, case, poisoned_memory, one_thread
):
    found = cpu_kernels.errors(name, case, "half", torch.float64)
    assert max(found.values()) < 1e-12


def test_input_gradient_reads_nothing_past_the_gradient():
    """2x2 at stride 2 leaves the last row and column of an odd map unused: they get zeros."""
    weight, mask = torch.randn(1, 12, 16, 2, 2), torch.zeros(1, 12, 16)
    mask[0, 11] = 1
    room = torch.full((4 * 12 * 4 * 4 + 64,), float("nan"))
    grad = room[: 4 * 12 * 4 * 4].view(1, 4, 12, 4, 4).normal_()
    found = OPS.masked_conv_input_grad(grad, weight, mask, [9, 9], [2, 2], [0, 0])
    masked = (weight * mask[..., None, None])[0].double()
    expected = torch.nn.functional.conv_transpose2d(
        grad[0].double(), masked, stride=2, output_padding=1
    )
    assert cpu_kernels.relative_error(found[0], expected) < cpu_kernels.EXACT
    assert not found[..., 8].any()
    assert not found[..., 8, :].any()


@pytest.mark.parametrize("size", [(9, 6), (6, 6), (3, 3)], ids=str)
@pytest.mark.parametrize("channels", [(4, 4), (16, 12)], ids=str)
@pytest.mark.parametrize("name", ["direct", "few_channels"])
def test_one_tap_a_phase_on_few_pixels(name, channels, size, poisoned_memory, one_thread):
    """Kernel and stride are equal: channels lie in the lanes, each pass has one tap of its own."""
    for padding in ((0, 0), (1, 1)):
        case = Case(1, 1, *channels, *size, (3, 3), (3, 3), padding)
        for mask in ("none", "half", "weighted"):
            assert max(cpu_kernels.errors(name, case, mask, torch.float64).values()) < 1e-12


@pytest.mark.parametrize("name", ["direct", "winograd4"])
def test_results_do_not_depend_on_what_else_is_in_the_batch(name, backend):
    """Tiles of other images share registers with an image's own and must not change it."""
    backend(name)
    x = torch.randn(7, 4, 11, 5)
    weight, mask = torch.randn(6, 4, 3, 3), torch.ones(6, 4)
    together = ms.masked_conv2d(x, weight, mask, padding=1)
    alone = torch.cat([ms.masked_conv2d(x[n : n + 1], weight, mask, padding=1) for n in range(7)])
    scale = together.abs().max()  # blocks differ in the order of their sums
    torch.testing.assert_close(together / scale, alone / scale, rtol=0, atol=1e-5)
    x[3] = float("nan")
    clean = [0, 1, 2, 4, 5, 6]
    polluted = ms.masked_conv2d(x, weight, mask, padding=1)
    torch.testing.assert_close(polluted[clean], together[clean], rtol=0, atol=0)


@pytest.mark.parametrize("size", [84, 85], ids=["whole registers", "odd planes"])
def test_outputs_larger_than_the_caches(size, backend):
    """A first layer writes these past the caches where its planes allow that."""
    backend("few_channels")
    x, weight, bias = torch.randn(1, 10, 3, size, size), torch.randn(1, 66, 3, 3, 3), torch.ones(66)
    found = OPS.masked_conv(x, weight, None, bias[None], [1, 1], [1, 1])
    assert found.nbytes >= 16 << 20
    expected = torch.nn.functional.conv2d(x[0].double(), weight[0].double(), bias.double(), 1, 1)
    assert cpu_kernels.relative_error(found[0], expected) < cpu_kernels.EXACT


@pytest.mark.parametrize("size", [28, 10], ids=["tiles of 4", "tiles of 5"])
@pytest.mark.parametrize("channels", [64, 256])
def test_default_error_bound_on_a_layer(channels, size):
    """1e-5 of the largest output, however many channels are summed."""
    case = Case(1, 2, channels, 16, size, size)
    found = cpu_kernels.errors("automatic", case, "none", torch.float32)
    assert max(found.values()) < cpu_kernels.BOUND
    precise = cpu_kernels.errors("precise", case, "none", torch.float32)
    assert max(precise.values()) < cpu_kernels.EXACT


def test_default_error_bound_of_many_draws():
    """Of each of 120 layers on its own, tiles of 5: a bound that few draws exceed is none."""
    x, weight = torch.randn(120, 25, 44, 5, 5), torch.randn(120, 50, 44, 3, 3)
    found = OPS.masked_conv(x, weight, None, None, [1, 1], [1, 1])
    for one, *operands in zip(found, x.double(), weight.double(), strict=True):
        expected = torch.nn.functional.conv2d(*operands, padding=1)
        assert cpu_kernels.relative_error(one, expected) < cpu_kernels.BOUND


def test_default_error_bound_on_a_pruned_layer():
    """The same for a layer of Conv-4 with half of its kernels."""
    case = Case(1, 5, 64, 64, 28, 28)
    found = cpu_kernels.errors("automatic", case, "half", torch.float32)
    assert max(found.values()) < cpu_kernels.BOUND
    precise = cpu_kernels.errors("precise", case, "half", torch.float32)
    assert max(precise.values()) < cpu_kernels.EXACT
