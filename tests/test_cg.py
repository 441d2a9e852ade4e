"""Batched conjugate gradients against SciPy's and against torch.linalg.solve."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from metasparse_ext.implicit import CGStatus, cg

TASKS, SIZE = 4, 23


def spd(tasks=TASKS, size=SIZE, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(tasks, size, size, generator=generator, dtype=dtype)
    return root @ root.mT / size + torch.eye(size, dtype=dtype)


def rhs(tasks=TASKS, size=SIZE, dtype=torch.float64, seed=1):
    return torch.randn(tasks, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def times(matrix):
    return lambda v: (matrix @ v[..., None])[..., 0]


def statuses(result):
    return [CGStatus(s) for s in result.status.tolist()]


@pytest.mark.parametrize("iterations", [1, 3, 7])
@pytest.mark.parametrize("preconditioned", [False, True], ids=["plain", "jacobi"])
@pytest.mark.parametrize("warm", [False, True], ids=["zero", "warm"])
def test_iterates_are_scipys(iterations, preconditioned, warm):
    a, b = spd(), rhs()
    x0 = rhs(seed=2) if warm else None
    inverse_diagonal = 1 / a.diagonal(dim1=-2, dim2=-1) if preconditioned else None
    result = cg(times(a), b, iterations=iterations, x0=x0, preconditioner=inverse_diagonal)
    for t in range(TASKS):
        expected, _ = scipy.sparse.linalg.cg(
            a[t].numpy(),
            b[t].numpy(),
            x0=x0[t].numpy() if warm else None,
            rtol=0.0,
            maxiter=iterations,
            M=np.diag(inverse_diagonal[t].numpy()) if preconditioned else None,
        )
        np.testing.assert_allclose(result.solution[t].numpy(), expected, rtol=1e-9, atol=1e-12)
    assert result.iterations.tolist() == [iterations] * TASKS
    assert statuses(result) == [CGStatus.ITERATIONS] * TASKS
    torch.testing.assert_close(
        result.residuals, (b - times(a)(result.solution)).norm(dim=-1), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
def test_tolerance_is_met(dtype, tolerance):
    a, b = spd(dtype=dtype), rhs(dtype=dtype)
    result = cg(times(a), b, iterations=200, tolerance=tolerance)
    assert statuses(result) == [CGStatus.CONVERGED] * TASKS
    assert (result.residuals <= tolerance * b.norm(dim=-1)).all()
    assert result.solution.dtype == dtype
    torch.testing.assert_close(
        result.solution, torch.linalg.solve(a, b), rtol=50 * tolerance, atol=50 * tolerance
    )


def test_more_iterations_than_needed_change_nothing():
    a, b = spd(), rhs()
    result = cg(times(a), b, iterations=10 * SIZE)
    assert statuses(result) == [CGStatus.CONVERGED] * TASKS
    assert (result.iterations < 3 * SIZE).all()
    torch.testing.assert_close(result.solution, torch.linalg.solve(a, b), rtol=1e-11, atol=1e-11)


def test_task_that_converges_early_stands_still():
    a, b = spd(), rhs()
    a[1] = 2 * torch.eye(SIZE, dtype=a.dtype)
    result = cg(times(a), b, iterations=200, tolerance=1e-10)
    assert result.iterations[1] == 1
    assert (result.iterations[[0, 2, 3]] > 5).all()
    torch.testing.assert_close(result.solution[1], b[1] / 2)
    torch.testing.assert_close(result.solution, torch.linalg.solve(a, b), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("warm", [False, True], ids=["zero", "warm"])
def test_zero_right_hand_side(warm):
    a, b = spd(), rhs()
    b[2] = 0
    result = cg(times(a), b, iterations=100, x0=rhs(seed=5) if warm else None)
    assert (result.solution[2] == 0).all()
    assert result.iterations[2] == 0
    assert statuses(result)[2] is CGStatus.CONVERGED
    torch.testing.assert_close(result.solution, torch.linalg.solve(a, b), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("where", ["matrix", "right-hand side"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_a_bad_task_leaves_the_others_right(where, value):
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


def test_indefinite_matrix_is_reported_and_keeps_the_last_iterate():
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


def test_singular_matrix():
    """A consistent system is solved; an inconsistent one is reported, not blown up."""
    eigenvalues = torch.linspace(0, 2, SIZE, dtype=torch.float64)
    basis = torch.linalg.qr(rhs(SIZE, SIZE)).Q
    a = (basis * eigenvalues @ basis.T).expand(2, -1, -1)
    b = rhs(2)
    b[0] -= basis[:, 0] * (basis[:, 0] @ b[0])
    result = cg(times(a), b, iterations=200)
    assert statuses(result) == [CGStatus.CONVERGED, CGStatus.NOT_POSITIVE]
    torch.testing.assert_close(times(a)(result.solution)[0], b[0], rtol=1e-9, atol=1e-9)
    assert result.solution.isfinite().all()


@pytest.mark.parametrize("size", [1, 2, 17, 1000])
def test_sizes_strides_and_expanded_inputs(size):
    a = spd(3, size)
    wide = rhs(3, 2 * size)
    preconditioner = torch.ones(size, dtype=torch.float64)
    result = cg(times(a), wide[:, ::2], iterations=1, preconditioner=preconditioner)
    plain = cg(times(a), wide[:, ::2].clone(), iterations=1)
    torch.testing.assert_close(result.solution, plain.solution, rtol=1e-14, atol=0)
    shared = cg(times(a), wide[0, :size].expand(3, -1), iterations=2)
    copied = cg(times(a), wide[0, :size].repeat(3, 1), iterations=2)
    torch.testing.assert_close(shared.solution, copied.solution, rtol=0, atol=0)


def test_right_hand_side_is_not_written():
    a, b = spd(), rhs()
    before = b.clone()
    cg(times(a), b, iterations=3, x0=b)
    assert torch.equal(b, before)


def test_fixed_iterations_read_nothing_on_the_host():
    class NoReads(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func is not torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    a, b = spd(), rhs()
    with NoReads():
        cg(times(a), b, iterations=3)
        with pytest.raises(AssertionError):
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


def test_second_order_is_refused():
    a, b = spd(), rhs().requires_grad_()
    solution = cg(times(a), b, iterations=50).solution
    (gradient,) = torch.autograd.grad(solution.square().sum(), b, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"b": rhs()[0]}, ValueError, r"b of shape \(T, P\), got \(23,\)"),
        ({"b": rhs().half()}, TypeError, "float32 or float64 tensor, got torch.float16"),
        ({"iterations": -1}, ValueError, "iterations >= 0, got -1"),
        ({"tolerance": 0.0}, ValueError, "tolerance > 0 or None, got 0.0"),
        ({"x0": rhs(3)}, ValueError, r"x0 of shape \(4, 23\)"),
        ({"preconditioner": torch.ones(5)}, ValueError, "preconditioner of shape"),
    ],
    ids=["shape", "dtype", "iterations", "tolerance", "x0", "preconditioner"],
)
def test_bad_input(change, error, message):
    arguments = {"b": rhs(), "iterations": 3} | change
    with pytest.raises(error, match=message):
        cg(times(spd()), **arguments)
