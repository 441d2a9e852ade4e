"""topk_mask against its definition."""

import os
import subprocess
import sys

import pytest
import torch
from support.grid import check_compile, check_func_transforms
from torch import Tensor

import metasparse_ext as ms
from metasparse_ext import reference

pytestmark = pytest.mark.usefixtures("device")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
DENSITIES = (0.0, 0.013, 0.5, 0.98, 1.0)


def surrogate(scores: Tensor, k: Tensor) -> Tensor:
    """The mask's value and the identity's derivative, written with stock ops."""
    return scores + (reference.topk_mask(scores, k) - scores).detach()


def counts(*k: int) -> Tensor:
    return torch.tensor(k)


def assert_defined(scores: Tensor, k: Tensor) -> None:
    """Equal to the definition, and k ones to a row."""
    mask = torch.ops.metasparse.topk_mask(scores, k)
    assert torch.equal(mask, reference.topk_mask(scores, k))
    assert torch.equal(mask.sum(1).long(), k)


def rows(name: str, n: int, dtype=torch.float32) -> Tensor:
    """Rows that are hard for a selection in one way each."""
    x = torch.randn(n, dtype=dtype)
    half = torch.rand(n) < 0.5
    return {
        "normal": x,
        "sorted": x.sort().values,
        "reversed": x.sort(descending=True).values,
        "constant": torch.full_like(x, -3.5),
        "few values": (x * 2).round(),
        "half pruned": x.abs() * half,
        "signed zeros": torch.where(half, 0.0, -0.0).to(dtype),
        "infinities": torch.where(half, x, x.sign() * torch.inf),
        "all infinite": x.sign() * torch.inf,
        "subnormal": x.sign() * torch.finfo(dtype).tiny * torch.rand(n, dtype=dtype),
        "many scales": x.sign() * torch.exp(x * 15),
        "periodic": torch.arange(n, dtype=dtype) % 64,
        "outliers": torch.where(torch.arange(n) < 5, 1e30, x),
    }[name]


ROWS = pytest.mark.parametrize(
    "name",
    [
        "normal",
        "sorted",
        "reversed",
        "constant",
        "few values",
        "half pruned",
        "signed zeros",
        "infinities",
        "all infinite",
        "subnormal",
        "many scales",
        "periodic",
        "outliers",
    ],
)


@pytest.mark.usefixtures("poisoned_memory")
@DTYPES
@ROWS
@pytest.mark.parametrize("n", [1, 2, 31, 513, 9001, 20003], ids=lambda n: f"n={n}")
def test_exactly_k_ones_at_the_largest(name, n, dtype):
    x = rows(name, n, dtype)
    for density in DENSITIES:
        assert_defined(x[None], counts(round(density * n)))


def sampled_places(n: int) -> list[int]:
    """The entries that the CPU kernel looks at first, to guess where the k-th largest lies."""
    count = min(n // 64, 16384)
    piece, state, places = n // count, 0x9E3779B97F4A7C15, []
    for i in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        places.append(i * piece + ((state >> 32) * piece >> 32))
    return places


@DTYPES
@pytest.mark.parametrize("n", [9001, 70001], ids=lambda n: f"n={n}")
def test_a_sample_that_misleads(n, dtype):
    """The guess from it misses the k-th largest, on either side."""
    x = torch.randn(n, dtype=dtype)
    shift = torch.zeros(n, dtype=dtype)
    shift[sampled_places(n)] = 100.0
    for scores in (x + shift, x - shift, torch.zeros(n) + shift, torch.zeros(n) - shift):
        for density in (0.1, 0.5, 0.9):
            assert_defined(scores[None], counts(round(density * n)))


@DTYPES
def test_every_k(dtype):
    x = (torch.randn(67, dtype=dtype) * 4).round()
    for k in range(68):
        assert_defined(x[None], counts(k))


def test_a_long_row_is_shared_by_threads():
    for name in ("normal", "few values", "half pruned"):
        x = rows(name, 300_007)
        for density in (0.05, 0.5, 1.0):
            assert_defined(x[None], counts(round(density * len(x))))


def test_many_rows_with_their_own_k():
    x = torch.stack([rows(name, 700) for name in ("normal", "few values", "constant")] * 40)
    assert_defined(x, torch.randint(0, 701, (120,)))


def test_ties_go_to_the_lowest_index():
    x = torch.tensor([1.0, 0.0, 2.0, -0.0, 0.0, -1.0])
    expected = [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1],
    ]
    for k, ones in enumerate(expected):
        assert ms.topk_mask(x, k / 6).tolist() == ones


def test_strided_sliced_and_expanded_rows():
    x = torch.randn(9, 40)
    for variant in (
        x.mT,
        x[::2, 3:30],
        x[:, ::3],
        x[:1].expand(5, 40),
        x[:, :1].expand(9, 4),
        x[:, :1],
    ):
        assert_defined(variant, torch.full((len(variant),), variant.shape[1] // 2))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)], ids=str)
def test_no_rows_or_empty_rows(shape):
    assert_defined(torch.empty(shape), torch.zeros(shape[0], dtype=torch.int64))


@pytest.mark.host
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa):
    """The same masks in a process that is held to one instruction set."""
    code = f"""
import torch, metasparse_ext as ms
from metasparse_ext import reference
assert ms.info()["cpu"] == "{isa}"
for dtype in (torch.float32, torch.float64):
    for n in (5, 300, 9001):
        x = torch.randn(3, n, dtype=dtype)
        x[1] = (x[1] * 3).round()
        x[2, ::2] *= -torch.inf
        for density in {DENSITIES}:
            k = torch.full((3,), round(density * n))
            assert torch.equal(torch.ops.metasparse.topk_mask(x, k), reference.topk_mask(x, k))
"""
    environment = {**os.environ, "METASPARSE_CPU_ISA": isa}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    if "does not have" in result.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert result.returncode == 0, result.stderr


# Granularity and scope


def test_k_rounds_halves_to_even():
    for n, density, k in [(5, 0.5, 2), (7, 0.5, 4), (10, 0.25, 2), (10, 0.35, 4), (3, 0.1, 0)]:
        assert ms.topk_mask(torch.randn(n), density).sum() == k == round(density * n)


def test_weight_granularity_per_layer_and_task():
    scores = torch.randn(3, 4, 5, 2, 2)
    mask = ms.topk_mask(scores, 0.3)
    assert mask.shape == scores.shape
    assert mask.flatten(1).sum(1).tolist() == [24.0] * 3
    for t in range(3):
        assert torch.equal(mask[t], ms.topk_mask(scores[t], 0.3))


@pytest.mark.parametrize("tasks", [(), (3,)], ids=["no tasks", "3 tasks"])
def test_kernel_granularity_ranks_the_mean_of_each_kernel(tasks):
    scores = torch.randn(*tasks, 4, 5, 3, 2)
    mask = ms.topk_mask(scores, 0.45, granularity="kernel")
    assert mask.shape == (*tasks, 4, 5)
    means, leads = scores.mean((-2, -1)), bool(tasks)
    assert torch.equal(mask, ms.topk_mask(means, 0.45, tasks=leads))
    assert torch.equal(mask, ms.topk_mask(means, 0.45, granularity="kernel", tasks=leads))
    assert (mask.sum((-2, -1)) == 9).all()


@pytest.mark.parametrize("tasks", [(), (3,)], ids=["no tasks", "3 tasks"])
def test_channel_granularity_keeps_whole_rows(tasks):
    scores = torch.randn(*tasks, 6, 5, 3, 2)
    mask = ms.topk_mask(scores, 0.5, granularity="channel")
    assert mask.shape == (*tasks, 6, 5)
    kept = mask[..., 0]
    assert (kept.sum(-1) == 3).all()
    assert torch.equal(mask, kept[..., None].expand_as(mask))
    means = scores.flatten(-3).mean(-1)
    assert (
        means.masked_fill(kept == 0, torch.inf).amin(-1)
        >= means.masked_fill(kept == 1, -torch.inf).amax(-1)
    ).all()
    same = ms.topk_mask(scores.mean((-2, -1)), 0.5, granularity="channel", tasks=bool(tasks))
    assert torch.equal(mask, same)


def layers(*tasks: int) -> dict[str, Tensor]:
    return {
        "first": torch.randn(*tasks, 4, 1, 3, 3),
        "second": torch.randn(*tasks, 6, 4, 3, 3) * 2,
        "shortcut": torch.randn(*tasks, 6, 4, 1, 1),
    }


def flat(tensors: dict[str, Tensor], dims: int) -> Tensor:
    return torch.cat([t.flatten(dims) for t in tensors.values()], dims)


def test_scopes_share_budgets():
    scores = layers(3)
    total = flat(scores, 1).shape[1]
    by_layer = ms.topk_mask(scores, 0.2)
    by_task = ms.topk_mask(scores, 0.2, scope="task")
    by_network = ms.topk_mask(scores, 0.2, scope="network")
    for name, mask in by_layer.items():
        n = scores[name][0].numel()
        assert mask.flatten(1).sum(1).tolist() == [round(0.2 * n)] * 3
    assert flat(by_task, 1).sum(1).tolist() == [round(0.2 * total)] * 3
    assert torch.equal(flat(by_task, 1), ms.topk_mask(flat(scores, 1), 0.2, tasks=True))
    everything = torch.cat([t.flatten() for t in scores.values()])
    masks = torch.cat([t.flatten() for t in by_network.values()])
    assert torch.equal(masks, ms.topk_mask(everything, 0.2))


def test_task_and_network_agree_without_tasks():
    scores = layers()
    for granularity in ("weight", "kernel", "channel"):
        by_task = ms.topk_mask(scores, 0.4, granularity=granularity, scope="task")
        by_network = ms.topk_mask(scores, 0.4, granularity=granularity, scope="network")
        for name, mask in by_task.items():
            assert torch.equal(mask, by_network[name])


def test_kernels_over_a_network():
    scores = layers(2)
    masks = ms.topk_mask(scores, 0.5, granularity="kernel", scope="task")
    assert [m.shape for m in masks.values()] == [(2, 4, 1), (2, 6, 4), (2, 6, 4)]
    assert flat(masks, 1).sum(1).tolist() == [26.0, 26.0]


def test_network_may_mix_shared_and_per_task_layers():
    scores = [torch.randn(2, 3, 4, 1, 1), torch.randn(5)]
    masks = ms.topk_mask(scores, 0.5, scope="network")
    assert sum(m.sum() for m in masks) == round(0.5 * 29)


def test_the_result_has_the_structure_of_the_scores():
    a, b = torch.randn(3, 4), torch.randn(5, 2)
    for scope in ("layer", "task", "network"):
        assert isinstance(ms.topk_mask(a, 0.5, scope=scope), Tensor)
        assert isinstance(ms.topk_mask([a, b], 0.5, scope=scope), list)
        assert isinstance(ms.topk_mask((a, b), 0.5, scope=scope), tuple)
        assert list(ms.topk_mask({"b": b, "a": a}, 0.5, scope=scope)) == ["b", "a"]


@pytest.mark.parametrize("scope", ["layer", "task", "network"])
def test_nothing_to_rank(scope):
    assert ms.topk_mask([], 0.5, scope=scope) == []
    assert ms.topk_mask({}, 0.5, scope=scope) == {}


def test_density_tensors():
    scores = torch.randn(3, 4, 5)
    expected = ms.topk_mask(scores, 0.3, tasks=True)
    assert torch.equal(ms.topk_mask(scores, torch.tensor(0.3), tasks=True), expected)
    assert torch.equal(ms.topk_mask(scores, torch.tensor([0.3]), tasks=True), expected)
    densities = torch.tensor([0.0, 0.35, 1.0], requires_grad=True)
    for scope in ("layer", "task"):
        mask = ms.topk_mask(scores, densities, scope=scope, tasks=True)
        assert mask.flatten(1).sum(1).tolist() == [0, 7, 20]
    assert not mask.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_lower_precisions(dtype):
    scores = torch.randn(6, 7, 3, 3).to(dtype)
    for granularity in ("weight", "kernel", "channel"):
        mask = ms.topk_mask(scores, 0.4, granularity=granularity)
        assert mask.dtype == dtype
        assert torch.equal(mask.float(), ms.topk_mask(scores.float(), 0.4, granularity=granularity))


def test_autocast_keeps_the_dtype():
    scores = torch.randn(6, 7)
    with torch.autocast(scores.device.type, torch.bfloat16):
        mask = ms.topk_mask(scores, 0.4)
    assert mask.dtype == torch.float32
    assert torch.equal(mask, ms.topk_mask(scores, 0.4))


WEIGHTS = {  # of every layer, and the axes that their masks of kernels have
    "Linear": ((4, 6), (4, 6)),
    "Conv1d": ((4, 6, 3), (4, 6)),
    "Conv2d": ((4, 6, 3, 2), (4, 6)),
    "Conv3d": ((4, 6, 3, 2, 2), (4, 6)),
}


@pytest.mark.parametrize("granularity", ["weight", "kernel", "channel"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_of_any_layer_alone_and_with_tasks(name, granularity):
    shape, kernels = WEIGHTS[name]
    stack = torch.randn(3, *shape)
    options = {"granularity": granularity}
    masks = ms.topk_mask(stack, 0.5, tasks=True, **options)
    assert masks.shape == (3, *(shape if granularity == "weight" else kernels))
    for scores, mask in zip(stack, masks, strict=True):
        assert torch.equal(ms.topk_mask(scores, 0.5, tasks=False, **options), mask)
        if granularity == "kernel":
            means = scores.flatten(2).mean(2) if scores.dim() > 2 else scores
            assert torch.equal(mask, ms.topk_mask(means, 0.5))


def test_three_dimensions_need_a_word():
    """A Conv1d weight (O, I, k) is not O tasks of (I, k)."""
    weight = torch.nn.Conv1d(4, 8, 3).weight.detach().abs()
    for granularity in ("weight", "kernel", "channel"):
        with pytest.raises(ValueError, match=r"tasks=True or tasks=False for scores\['c'\]"):
            ms.topk_mask({"c": weight}, 0.5, granularity=granularity)
    assert ms.topk_mask(weight, 0.5, granularity="kernel", tasks=False).shape == (8, 4)
    assert ms.topk_mask(weight, 0.5, tasks=False).sum() == 48


# Derivatives


@pytest.mark.parametrize("scope", ["layer", "task", "network"])
def test_straight_through_to_weights(scope):
    scores = [s.requires_grad_() for s in layers(2).values()]
    weights = [torch.randn_like(s) for s in scores]
    masks = ms.topk_mask(scores, 0.3, scope=scope)
    loss = sum((m * w).sum() for m, w in zip(masks, weights, strict=True))
    for grad, weight in zip(torch.autograd.grad(loss, scores), weights, strict=True):
        assert torch.equal(grad, weight)


def test_straight_through_to_kernels_and_channels():
    scores = torch.randn(2, 4, 3, 2, 2, requires_grad=True)
    weight = torch.randn(2, 4, 3)
    mask = ms.topk_mask(scores, 0.3, granularity="kernel")
    (grad,) = torch.autograd.grad((mask * weight).sum(), scores)
    torch.testing.assert_close(grad, (weight / 4)[..., None, None].expand_as(scores))
    mask = ms.topk_mask(scores, 0.3, granularity="channel")
    (grad,) = torch.autograd.grad((mask * weight).sum(), scores)
    expected = (weight.sum(-1) / 12)[..., None, None, None].expand_as(scores)
    torch.testing.assert_close(grad, expected)


def test_infinite_scores_get_the_gradient_too():
    scores = torch.tensor([torch.inf, -torch.inf, 0.0], requires_grad=True)
    for mask in (ms.topk_mask(scores, 0.5), reference.topk_mask(scores[None], counts(2))[0]):
        (grad,) = torch.autograd.grad((mask * torch.tensor([1.0, 2.0, 3.0])).sum(), scores)
        assert grad.tolist() == [1.0, 2.0, 3.0]


def test_higher_derivatives_of_a_composed_function():
    weight = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)

    def derivatives(mask):
        value = (mask(weight.abs(), counts(4, 2)).pow(2) * weight.sin()).sum()
        results = [value]
        for _ in range(3):
            (grad,) = torch.autograd.grad(results[-1].sum(), weight, create_graph=True)
            results.append(grad)
        return results

    op = torch.ops.metasparse.topk_mask
    torch.testing.assert_close(derivatives(op), derivatives(surrogate))
    torch.testing.assert_close(derivatives(reference.topk_mask), derivatives(surrogate))


def test_func_transforms():
    scores = (torch.randn(3, 8, dtype=torch.float64),)
    k = counts(4, 0, 8)
    for op in (torch.ops.metasparse.topk_mask, reference.topk_mask):
        check_func_transforms(lambda s, op=op: op(s, k), lambda s: surrogate(s, k), scores)


def test_func_transforms_of_the_public_op():
    scores = (torch.randn(3, 4, 2, 2, dtype=torch.float64),)

    def op(s):
        return ms.topk_mask(s, 0.4, granularity="kernel")

    def expected(s):
        return surrogate(s.mean((2, 3)).flatten()[None], counts(5)).view(3, 4)

    check_func_transforms(op, expected, scores)


def test_vmap_over_scores_and_densities():
    scores, densities = torch.randn(4, 5, 3), torch.tensor([0.0, 0.2, 0.9])
    mapped = torch.vmap(ms.topk_mask, in_dims=(2, 0), out_dims=2)(scores, densities)
    for i, density in enumerate(densities):
        assert torch.equal(mapped[..., i], ms.topk_mask(scores[..., i], density))
    shared = torch.vmap(ms.topk_mask, in_dims=(None, 0))(scores[..., 0], densities)
    for i, density in enumerate(densities):
        assert torch.equal(shared[i], ms.topk_mask(scores[..., 0], density))


def test_compile():
    check_compile(lambda s: ms.topk_mask(s, 0.4), (torch.randn(3, 4, dtype=torch.float64),))
    check_compile(
        lambda a, b: torch.cat([m.flatten() for m in ms.topk_mask((a, b), 0.4, scope="network")]),
        (torch.randn(3, 4), torch.randn(2, 3, 3, 3)),
    )


def test_opcheck():
    op = torch.ops.metasparse.topk_mask.default
    torch.library.opcheck(op, (torch.randn(3, 5, requires_grad=True), counts(0, 3, 5)))
    torch.library.opcheck(op, (torch.randn(5, 3, dtype=torch.float64).mT, counts(1, 2, 3)))


# Refusals


@DTYPES
@pytest.mark.parametrize("n", [3, 20_000, 400_000])
@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_nan_is_refused(n, density, dtype):
    scores = torch.randn(n, dtype=dtype)
    for position in (0, n // 2, n - 1):
        poisoned = scores.clone()
        poisoned[position] = torch.nan if position else -torch.tensor(torch.nan)
        if scores.is_cuda:
            assert ms.topk_mask(poisoned, density).isnan().all()
            continue
        with pytest.raises(ValueError, match="got NaN in row 0"):
            ms.topk_mask(poisoned, density)


def test_the_reference_marks_rows_that_hold_nan():
    mask = reference.topk_mask(torch.tensor([[1.0, torch.nan], [1.0, 2.0]]), counts(1, 1))
    assert mask[0].isnan().all()
    assert mask[1].tolist() == [0.0, 1.0]


S = torch.randn(2, 4, 3)
BAD = {
    "granularity": (ValueError, "granularity to be one of", (S, 0.5), {"granularity": "row"}),
    "tasks": (TypeError, "tasks to be one of True, False, None, got int 2", (S, 0.5), {"tasks": 2}),
    "scope": (ValueError, "scope to be one of", (S, 0.5), {"scope": "global"}),
    "density above": (ValueError, "density to be at most 1.0, got 1.5", (S, 1.5), {}),
    "density below": (ValueError, "density to be at least 0.0, got -0.1", (S, -0.1), {}),
    "density nan": (ValueError, "density to be finite, got nan", (S, float("nan")), {}),
    "density type": (TypeError, "density to be a number, got str", (S, "0.5"), {}),
    "density dtype": (TypeError, "density to be of a floating dtype", (S, torch.tensor(1)), {}),
    "density shape": (ValueError, "one for each of 2 budgets", (S, torch.rand(3)), {}),
    "density of a network": (
        ValueError,
        "each of 1 budgets",
        (S, torch.rand(2)),
        {"scope": "network"},
    ),
    "density tensor above": (
        ValueError,
        "density to be from 0 to 1, got 1.5",
        (S, torch.tensor(1.5)),
        {},
    ),
    "density tensor below": (ValueError, "density to be from 0 to 1", (S, torch.tensor(-0.5)), {}),
    "density tensor nan": (
        ValueError,
        "density to be from 0 to 1",
        (S, torch.tensor(torch.nan)),
        {},
    ),
    "scores type": (TypeError, "scores to be a tensor, or a sequence", (3.0, 0.5), {}),
    "scores string": (TypeError, "scores to be a tensor, or a sequence", ("abc", 0.5), {}),
    "scores entry": (TypeError, r"scores\[1\] to be a tensor, got float", ([S, 1.0], 0.5), {}),
    "scores value": (TypeError, r"scores\['w'\] to be a tensor", ({"w": None}, 0.5), {}),
    "scores dtype": (TypeError, "scores to be of a floating dtype", (S.long(), 0.5), {}),
    "scores scalar": (ValueError, "of 1 to 5 dim", (S[0, 0, 0], 0.5), {"tasks": None}),
    "scores scalars": (ValueError, "of 2 to 6 dimensions with its task", (S[0, 0], 0.5), {}),
    "scores rank": (ValueError, "of 2 to 6 dim", (S[None, None, None, None], 0.5), {}),
    "kernels of a vector": (
        ValueError,
        "2 to 5 dimensions",
        (S[0, 0], 0.5),
        {"granularity": "kernel", "tasks": None},
    ),
    "tasks differ": (
        ValueError,
        r"scores\[1\] to be with the task axis",
        ([S, S[:1]], 0.5),
        {"scope": "task"},
    ),
    "tasks missing": (
        ValueError,
        r"scores\[1\] to be with the task axis",
        ([S, S[0]], 0.5),
        {"scope": "task"},
    ),
}


@pytest.mark.parametrize(("error", "message", "args", "options"), BAD.values(), ids=BAD.keys())
def test_bad_arguments(error, message, args, options):
    options = {"tasks": True} | options
    with pytest.raises(error, match=message):
        ms.topk_mask(*args, **options)


BAD_ROWS = {
    "scores rank": (ValueError, r"scores of shape \(S, n\)", (S, counts(1, 1))),
    "k rank": (ValueError, r"k of shape \(S\)", (S[0], counts(1)[0])),
    "k size": (ValueError, "the number of rows", (S[0], counts(1, 1))),
    "k dtype": (TypeError, "k of dtype int64", (S[0], counts(1, 1, 1, 1).int())),
    "scores dtype": (TypeError, "float32 or float64", (S[0].half(), counts(1, 1, 1, 1))),
    "k too large": (ValueError, "k from 0 to n = 3, got 4 for row 2", (S[0], counts(1, 1, 4, 1))),
    "k negative": (ValueError, "k from 0 to n = 3, got -1 for row 0", (S[0], counts(-1, 1, 1, 1))),
}


@pytest.mark.parametrize(("error", "message", "args"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_bad_rows(error, message, args):
    with pytest.raises(error, match=message):
        torch.ops.metasparse.topk_mask(*args)
