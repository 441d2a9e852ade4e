"""Batched conjugate gradients against SciPy's and against torch.linalg.solve."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from support.host import HostLooked, NothingOnTheHost
from torch.autograd import forward_ad

from metasparse_ext import _library
from metasparse_ext.implicit import CGStatus, cg
from metasparse_ext.reference import cg as reference

pytestmark = pytest.mark.usefixtures("device")

TASKS, SIZE = 4, 23

BACKENDS = [
    pytest.param(
        "compiled",
        marks=pytest.mark.skipif(_library.problem is not None, reason="no compiled library"),
    ),
    "reference",
]


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    if request.param == "reference":
        monkeypatch.setattr(_library, "loaded", lambda: False)
    return request.param


def generator(seed):
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def spd(tasks=TASKS, size=SIZE, dtype=torch.float64, seed=0):
    root = torch.randn(tasks, size, size, generator=generator(seed), dtype=dtype)
    return root @ root.mT / size + torch.eye(size, dtype=dtype)


def rhs(tasks=TASKS, size=SIZE, dtype=torch.float64, seed=1):
    return torch.randn(tasks, size, generator=generator(seed), dtype=dtype)


def times(matrix):
    return lambda v: (matrix @ v[..., None])[..., 0]


def statuses(result):
    return [CGStatus(s) for s in result.status.tolist()]


@pytest.mark.parametrize("iterations", [1, 3, 7])
@pytest.mark.parametrize("preconditioned", [False, True], ids=["plain", "jacobi"])
@pytest.mark.parametrize("warm", [False, True], ids=["zero", "warm"])
def test_iterates_are_scipys(backend, iterations, preconditioned, warm):
    a, b = spd(), rhs()
    x0 = rhs(seed=2) if warm else None
    inverse_diagonal = 1 / a.diagonal(dim1=-2, dim2=-1) if preconditioned else None
    result = cg(times(a), b, iterations=iterations, x0=x0, preconditioner=inverse_diagonal)
    for t in range(TASKS):
        expected, _ = scipy.sparse.linalg.cg(
            a[t].numpy(force=True),
            b[t].numpy(force=True),
            x0=x0[t].numpy(force=True) if warm else None,
            rtol=0.0,
            maxiter=iterations,
            M=np.diag(inverse_diagonal[t].numpy(force=True)) if preconditioned else None,
        )
        solution = result.solution[t].numpy(force=True)
        np.testing.assert_allclose(solution, expected, rtol=1e-9, atol=1e-12)
    assert result.iterations.tolist() == [iterations] * TASKS
    assert statuses(result) == [CGStatus.ITERATIONS] * TASKS
    torch.testing.assert_close(
        result.residuals, (b - times(a)(result.solution)).norm(dim=-1), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
def test_tolerance_is_met(backend, dtype, tolerance):
    a, b = spd(dtype=dtype), rhs(dtype=dtype)
    result = cg(times(a), b, iterations=200, tolerance=tolerance)
    assert statuses(result) == [CGStatus.CONVERGED] * TASKS
    assert (result.residuals <= tolerance * b.norm(dim=-1)).all()
    assert result.solution.dtype == dtype
    torch.testing.assert_close(
        result.solution, torch.linalg.solve(a, b), rtol=50 * tolerance, atol=50 * tolerance
    )


def test_more_iterations_than_needed_change_nothing(backend):
    a, b = spd(), rhs()
    result = cg(times(a), b, iterations=10 * SIZE)
    assert statuses(result) == [CGStatus.CONVERGED] * TASKS
    assert (result.iterations < 3 * SIZE).all()
    torch.testing.assert_close(result.solution, torch.linalg.solve(a, b), rtol=1e-11, atol=1e-11)


def test_task_that_converges_early_stands_still(backend):
    a, b = spd(), rhs()
    a[1] = 2 * torch.eye(SIZE, dtype=a.dtype)
    result = cg(times(a), b, iterations=200, tolerance=1e-10)
    assert result.iterations[1] == 1
    assert (result.iterations[[0, 2, 3]] > 5).all()
    torch.testing.assert_close(result.solution[1], b[1] / 2)
    torch.testing.assert_close(result.solution, torch.linalg.solve(a, b), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("warm", [False, True], ids=["zero", "warm"])
def test_zero_right_hand_side(backend, warm):
    a, b = spd(), rhs()
    b[2] = 0
    result = cg(times(a), b, iterations=100, x0=rhs(seed=5) if warm else None)
    assert (result.solution[2] == 0).all()
    assert result.iterations[2] == 0
    assert statuses(result)[2] is CGStatus.CONVERGED
    torch.testing.assert_close(result.solution, torch.linalg.solve(a, b), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("where", ["matrix", "right-hand side"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_a_bad_task_leaves_the_others_right(backend, where, value):
    a, b = spd(), rhs()
    (a[1] if where == "matrix" else b)[1, 3] = value
    result = cg(times(a), b, iterations=100)
    good = [0, 2, 3]
    assert statuses(result)[1] is CGStatus.NOT_FINITE
    assert result.solution.isfinite().all()
    assert [statuses(result)[t] for t in good] == [CGStatus.CONVERGED] * 3
    torch.testing.assert_close(
        result.solution[good], torch.linalg.solve(a[good], b[good]), rtol=1e-10, atol=1e-10
    )


def test_indefinite_matrix_is_reported_and_keeps_the_last_iterate(backend):
    a, b = spd(), rhs()
    a[0] = torch.diag(torch.linspace(-1, 2, SIZE, dtype=a.dtype))
    a[3] = -a[3]
    result = cg(times(a), b, iterations=100)
    assert statuses(result)[0] is CGStatus.NOT_POSITIVE
    assert statuses(result)[3] is CGStatus.NOT_POSITIVE
    assert result.iterations[3] == 0
    assert (result.solution[3] == 0).all()
    kept = cg(times(a), b, iterations=int(result.iterations[0]))
    torch.testing.assert_close(result.solution[0], kept.solution[0], rtol=0, atol=0)
    torch.testing.assert_close(
        result.solution[1:3], torch.linalg.solve(a[1:3], b[1:3]), rtol=1e-10, atol=1e-10
    )


def test_singular_matrix(backend):
    """A consistent system is solved; an inconsistent one does not pass for solved or blow up."""
    eigenvalues = torch.linspace(0, 2, SIZE, dtype=torch.float64)
    basis = torch.linalg.qr(rhs(SIZE, SIZE)).Q
    a = (basis * eigenvalues @ basis.T).repeat(3, 1, 1)
    a[2] = torch.diag(eigenvalues)
    b = rhs(3)
    b[0] -= basis[:, 0] * (basis[:, 0] @ b[0])
    b[2] = torch.eye(SIZE)[0]
    result = cg(times(a), b, iterations=200)
    assert statuses(result)[0] is CGStatus.CONVERGED
    assert statuses(result)[1] is not CGStatus.CONVERGED
    assert statuses(result)[2] is CGStatus.NOT_POSITIVE
    assert result.iterations[2] == 0
    torch.testing.assert_close(times(a)(result.solution)[0], b[0], rtol=1e-9, atol=1e-9)
    assert result.solution.isfinite().all()


@pytest.mark.parametrize("size", [1, 2, 17, 300])
def test_sizes_strides_and_expanded_inputs(backend, size):
    a = spd(3, size)
    wide = rhs(3, 2 * size)
    preconditioner = torch.ones(size, dtype=torch.float64)
    result = cg(times(a), wide[:, ::2], iterations=1, preconditioner=preconditioner)
    plain = cg(times(a), wide[:, ::2].clone(), iterations=1)
    torch.testing.assert_close(result.solution, plain.solution, rtol=1e-14, atol=0)
    turned = cg(times(a), wide.mT.contiguous().mT[:, ::2], iterations=1)
    torch.testing.assert_close(turned.solution, plain.solution, rtol=1e-14, atol=0)
    shared = cg(times(a), wide[0, :size].expand(3, -1), iterations=2)
    copied = cg(times(a), wide[0, :size].repeat(3, 1), iterations=2)
    torch.testing.assert_close(shared.solution, copied.solution, rtol=0, atol=0)


@pytest.mark.skipif(_library.problem is not None, reason="no compiled library")
def test_opcheck():
    x, r, p, q = rhs(4 * 2, 5).view(4, 2, 5)
    dots = reference.dots(r, r)
    status = torch.full((2,), CGStatus.ITERATIONS)
    state = (x, r, p, q, None, dots, dots.clone(), torch.zeros(2).double(), status, status.clone())
    torch.library.opcheck(torch.ops.metasparse.cg_step, state)


@pytest.mark.parametrize("size", [1, 16, 1001, 40_000], ids=str)
@pytest.mark.parametrize("preconditioned", [False, True], ids=["plain", "jacobi"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.skipif(_library.problem is not None, reason="no compiled library")
def test_step_is_its_reference(size, preconditioned, dtype):
    """Five tasks: two that run, one that converges, one with a bad direction, one with NaN."""
    x, r, p, m = torch.randn(4, 5, size, generator=generator(0), dtype=dtype)
    m = m.abs() if preconditioned else None
    q = 2 * p
    q[3] = -p[3]
    q[4, size // 2] = float("nan")
    z = r if m is None else m * r
    rz, rr = reference.dots(r, z), reference.dots(r, r)
    limit = torch.tensor([0, 0, 1e9, 0, 0]).double()
    status = torch.full((5,), CGStatus.ITERATIONS)
    status[1] = CGStatus.CONVERGED
    state = (x, r, p, q, m, rz, rr, limit, status, torch.zeros_like(status))
    mine = [None if t is None else t.clone() for t in state]
    torch.ops.metasparse.cg_step(*mine)
    reference.cg_step(*state)
    assert status.tolist() == [
        CGStatus.ITERATIONS,
        CGStatus.CONVERGED,
        CGStatus.CONVERGED,
        CGStatus.NOT_POSITIVE,
        CGStatus.NOT_FINITE,
    ]
    bound = 1e-12 if dtype == torch.float64 else 1e-5
    for actual, expected in zip(mine, state, strict=True):
        if expected is not None:
            torch.testing.assert_close(
                actual, expected, rtol=bound, atol=bound * float(x.abs().max()), equal_nan=True
            )


def test_right_hand_side_is_not_written(backend):
    a, b = spd(), rhs()
    before = b.clone()
    cg(times(a), b, iterations=3, x0=b)
    assert torch.equal(b, before)


def test_fixed_iterations_read_nothing_on_the_host(backend, device):
    if backend == "compiled" and device == "cpu":
        pytest.skip("the CPU op is the host")

    a, b = spd(), rhs()
    with NothingOnTheHost(device):
        cg(times(a), b, iterations=3)
        with pytest.raises(HostLooked):
            cg(times(a), b, iterations=3, tolerance=1e-3)


def test_gradients_reach_matrix_and_right_hand_side():
    root = rhs(2 * 5, 5).view(2, 5, 5).requires_grad_()
    b = rhs(2, 5).requires_grad_()

    def solve(root, b):
        a = root @ root.mT + torch.eye(5, dtype=root.dtype)
        return cg(times(a), b, iterations=50, differentiable=True).solution

    assert torch.autograd.gradcheck(solve, (root, b))
    a = (root @ root.mT + torch.eye(5, dtype=root.dtype)).detach()
    alone = lambda b: cg(times(a), b, iterations=50).solution  # noqa: E731
    assert torch.autograd.gradcheck(alone, b)


def dependent(root):
    """A matrix that depends on all of ``root``, not linearly."""
    return root @ root.mT + torch.eye(root.shape[-1], dtype=root.dtype)


def solved(root, b):
    return cg(times(dependent(root)), b, iterations=20, differentiable=True).solution


def inverted(root, b):
    return torch.linalg.solve(dependent(root), b)


def twice(solve, root, b):
    """The second derivatives of a function of the solution, contracted."""
    root, b = root.clone().requires_grad_(), b.clone().requires_grad_()
    first = torch.autograd.grad(solve(root, b).sin().sum(), (root, b), create_graph=True)
    return torch.autograd.grad(sum(g.sin().sum() for g in first), (root, b))


def test_second_derivatives():
    root, b = rhs(2 * 4, 4).view(2, 4, 4), rhs(2, 4)
    torch.testing.assert_close(twice(solved, root, b), twice(inverted, root, b))
    number = torch.tensor([[1.3]], dtype=torch.float64, requires_grad=True)
    x = cg(lambda v: number * v, torch.ones_like(number), iterations=2, differentiable=True)
    (first,) = torch.autograd.grad(x.solution.sum(), number, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), number)
    torch.testing.assert_close(second, 2 / number.detach() ** 3)


def test_transforms_of_torch_func():
    func, root, b = torch.func, rhs(2 * 3, 3).view(2, 3, 3), rhs(2, 3)

    def results(solve):
        def loss(root, b):
            return solve(root, b).sin().sum()

        roots, bs = torch.stack([root, 2 * root]), torch.stack([b, b + 1])
        return (
            func.grad(loss, (0, 1))(root, b),
            func.jvp(solve, (root, b), (b[..., None] * root, b + 1)),
            func.vmap(solve)(roots, bs),
            func.vmap(solve, (None, 0))(root, bs),
            func.vmap(func.grad(loss))(roots, bs),
            func.grad(lambda r: func.vmap(solve)(r, bs).sin().sum())(roots),
            func.jacrev(func.jacrev(loss))(root, b),
        )

    torch.testing.assert_close(results(solved), results(inverted))


def test_what_is_not_differentiable_is_refused():
    root, b = rhs(2 * 3, 3).view(2, 3, 3), rhs(2, 3)
    x = root.clone().requires_grad_()
    gradient = solved(x, b).sum()
    for _ in range(2):
        (gradient,) = torch.autograd.grad(gradient.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="at most twice, got a third derivative"):
        torch.autograd.grad(gradient.sum(), x)
    with pytest.raises(NotImplementedError, match="forward mode combined"):
        torch.func.hessian(lambda r: solved(r, b).sum())(root)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(solved(forward_ad.make_dual(x, root), b)).tangent
        with pytest.raises(NotImplementedError, match="backward pass through one of forward mode"):
            torch.autograd.grad(tangent.sum(), x)
    solution, directions = solved(x, b), torch.ones(2, *b.shape, dtype=b.dtype)
    with pytest.raises(NotImplementedError, match="is_grads_batched=True"):
        torch.autograd.grad(solution, x, directions, is_grads_batched=True)
    _, pullback = torch.func.vjp(
        torch.func.vmap(solved), torch.stack([root, root]), rhs(4, 3).view(2, 2, 3)
    )
    with pytest.raises(NotImplementedError, match="inside the vmap whose tensors operator"):
        pullback(directions)
    solution = torch.func.vmap(solved)(torch.stack([x, x]), torch.stack([b, b]))

    def backward(direction):
        return torch.autograd.grad(solution, x, direction, retain_graph=True)[0]

    with pytest.raises(NotImplementedError, match="inside the vmap whose tensors operator"):
        torch.func.vmap(backward)(torch.ones(2, *solution.shape, dtype=b.dtype))
    with pytest.raises(NotImplementedError, match="inside the vmap whose tensors operator"):
        torch.func.jacrev(lambda r: torch.func.vmap(solved)(torch.stack([r, r]), solution))(root)


def test_a_pullback_may_be_mapped_and_one_of_a_map_may_run_after_it():
    root, b = rhs(2 * 3, 3).view(2, 3, 3), rhs(2, 3)
    bs, directions = torch.stack([b, b + 1]), torch.stack([b - 1, b + 2])

    def results(solve):
        _, pullback = torch.func.vjp(lambda b: solve(root, b), b)
        _, of_map = torch.func.vjp(torch.func.vmap(lambda b: solve(root, b)), bs)
        of_each = torch.func.vmap(torch.func.jacrev(solve), (0, None))(torch.stack([root] * 2), b)
        return torch.func.vmap(pullback)(directions)[0], of_map(directions)[0], of_each

    torch.testing.assert_close(results(solved), results(inverted))


EXTREMES = {
    torch.float64: (-1000, -660, -400, 400, 660, 1000),
    torch.float32: (-100, -80, -50, 50, 80, 110),
}


@pytest.mark.parametrize("dtype", EXTREMES, ids=["f64", "f32"])
@pytest.mark.parametrize("started", [False, True], ids=["from zero", "from x0"])
def test_a_right_hand_side_of_any_size_is_solved_to_the_same_digits(dtype, started, backend):
    """A solve is linear in b and x0: a power of two passes through it and changes no digit."""
    a, b = spd(dtype=dtype), rhs().to(dtype)
    x0 = torch.linalg.solve(a, b) * 1.5 if started else None
    expected = cg(times(a), b, iterations=9, x0=x0)
    for exponent in EXTREMES[dtype]:
        scale = torch.tensor(2.0, dtype=torch.float64).pow(exponent).to(dtype)
        start = None if x0 is None else x0 * scale
        result = cg(times(a), b * scale, iterations=9, x0=start)
        assert torch.equal(result.solution, expected.solution * scale), exponent
        assert torch.equal(result.residuals, expected.residuals * scale.double()), exponent
        assert torch.equal(result.status, expected.status)


def test_rows_of_all_sizes_are_solved_side_by_side(backend):
    """Against a solve in long double, row by row, with the gradient."""
    a = spd()
    sizes = torch.tensor([1e-300, 1e-200, 1.0, 1e200], dtype=torch.float64)[:, None]
    b = (rhs() * sizes).requires_grad_()
    result = cg(times(a), b, iterations=4 * SIZE, tolerance=1e-13)
    assert result.status.tolist() == [CGStatus.CONVERGED] * 4
    wide = np.longdouble
    for row, matrix, side, size in zip(result.solution, a, b, sizes[:, 0], strict=True):
        found, exact = row.detach().cpu().numpy().astype(wide), side.detach().cpu().numpy()
        left = exact.astype(wide) - matrix.cpu().numpy().astype(wide) @ found
        assert float(np.abs(left).max() / wide(size.item())) < 1e-10
    weights = torch.ones_like(b)
    (gradient,) = torch.autograd.grad(result.solution, b, weights)
    torch.testing.assert_close(gradient, torch.linalg.solve(a, weights), rtol=1e-9, atol=1e-9)


def test_rows_that_are_zero_or_not_finite_stay_as_they_are(backend):
    b = rhs()
    b[0], b[1, 0], b[2, 0] = 0, torch.inf, torch.nan
    result = cg(times(spd()), b, iterations=SIZE)
    expected = [CGStatus.CONVERGED, CGStatus.NOT_FINITE, CGStatus.NOT_FINITE]
    assert result.status.tolist()[:3] == expected
    assert (result.solution[:3] == 0).all()


def test_a_gradient_of_a_map_is_not_continued_in_another_one(backend):
    """The second one has the level of the first, and would take its tensors for its own."""
    root, b = rhs(3, 3).requires_grad_(), rhs(1, 3)
    shifts = torch.stack([b, b + 1])

    def slope(shift):
        matrix = root @ root.mT + torch.eye(3, dtype=b.dtype) + shift.square().diag_embed()
        solve = lambda b: cg(times(matrix), b, iterations=3).solution  # noqa: E731
        return torch.func.grad(lambda b: solve(b).square().sum())(b)

    slopes = torch.func.vmap(slope)(shifts)

    def continued(direction):
        return torch.autograd.grad(slopes, root, direction, retain_graph=True)[0]

    with pytest.raises(NotImplementedError, match="inside the vmap whose tensors operator"):
        torch.func.vmap(continued)(torch.ones(2, *slopes.shape, dtype=b.dtype))


def test_autocast_computes_in_the_dtype_of_b(backend):
    a, b = spd(dtype=torch.float32), rhs().float()
    with torch.autocast(b.device.type, torch.bfloat16):
        solution = cg(times(a), b, iterations=SIZE).solution
    assert solution.dtype == torch.float32
    torch.testing.assert_close(solution, torch.linalg.solve(a, b), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"b": rhs()[0]}, ValueError, r"b to be of shape \(T, P\), got \(23,\)"),
        ({"b": rhs().half()}, TypeError, "b to be of float32 or float64, got float16"),
        ({"iterations": -1}, ValueError, "iterations to be at least 0, got -1"),
        ({"tolerance": 0.0}, ValueError, "tolerance to be above 0.0, got 0.0"),
        ({"x0": rhs(3)}, ValueError, r"x0 to be of shape \(4, 23\)"),
        ({"preconditioner": torch.ones(5).double()}, ValueError, "preconditioner to be of shape"),
        ({"preconditioner": torch.ones(23)}, TypeError, "preconditioner to be of float64 like b"),
    ],
    ids=["shape", "dtype", "iterations", "tolerance", "x0", "preconditioner", "another dtype"],
)
def test_bad_input(change, error, message):
    arguments = {"b": rhs(), "iterations": 3} | change
    with pytest.raises(error, match=message):
        cg(times(spd()), **arguments)
