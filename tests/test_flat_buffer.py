"""The ops behind Layout: slices of one buffer, without and with torch's dispatcher."""

import pytest
import torch
from torch import Tensor

from metasparse_ext import _library
from metasparse_ext.implicit import Layout

pytestmark = pytest.mark.skipif(_library.problem is not None, reason="no compiled library")

SHAPES = {"weight": (3, 2, 2), "bias": (3,), "scalar": (), "empty": (0, 4), "head": (5, 2)}
BATCHES = pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3)], ids=str)


def layout() -> Layout:
    return Layout.of({name: torch.empty(shape) for name, shape in SHAPES.items()})


def composed_unflatten(flat: Tensor) -> dict[str, Tensor]:
    """What unflatten means."""
    parts = flat.split(layout().sizes, dim=-1)
    batch = flat.shape[:-1]
    return {n: p.reshape(batch + s) for (n, s), p in zip(SHAPES.items(), parts, strict=True)}


def drawn(batch: tuple[int, ...]) -> Tensor:
    return torch.randn(*batch, layout().numel, dtype=torch.float64)


def weighted(parts: dict[str, Tensor]) -> Tensor:
    """A function of all slices but one, not linear, whose gradients come in several layouts."""
    head = parts["head"].mT.contiguous().mT  # its gradient is transposed in memory
    return (
        (parts["weight"] ** 3).sum() + (head.sin() ** 2).sum() + (parts["bias"].sum() * head).sum()
    )


@BATCHES
def test_slices_share_the_memory_of_the_buffer(batch):
    flat = drawn(batch)
    parts = layout().unflatten(flat)
    for name, part in composed_unflatten(flat).items():
        assert torch.equal(parts[name], part)
        assert parts[name].shape == part.shape
        assert parts[name].data_ptr() == part.data_ptr()


@BATCHES
def test_flatten_undoes_unflatten(batch):
    flat = drawn(batch)
    back = layout().flatten(layout().unflatten(flat))
    assert torch.equal(back, flat)
    assert back.is_contiguous()
    assert back.data_ptr() != flat.data_ptr()


@BATCHES
def test_derivatives_to_the_third_order(batch):
    flat = drawn(batch).requires_grad_()

    def derivatives(unflatten):
        results = [weighted(unflatten(flat))]
        for order in range(3):
            (grad,) = torch.autograd.grad(results[-1].sum(), flat, create_graph=order < 2)
            results.append(grad)
        return results

    torch.testing.assert_close(
        derivatives(layout().unflatten), derivatives(composed_unflatten), rtol=1e-12, atol=1e-12
    )


def test_gradient_of_flatten():
    parts = {
        n: torch.randn(4, *s, dtype=torch.float64, requires_grad=True) for n, s in SHAPES.items()
    }
    assert torch.autograd.gradcheck(
        lambda *p: layout().flatten(dict(zip(SHAPES, p, strict=True))), tuple(parts.values())
    )
    assert torch.autograd.gradgradcheck(
        lambda *p: layout().flatten(dict(zip(SHAPES, p, strict=True))) ** 3, tuple(parts.values())
    )


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("used", SHAPES)
def test_a_slice_that_is_not_used_has_gradient_zero(used):
    flat = drawn((3,)).requires_grad_()
    (grad,) = torch.autograd.grad(layout().unflatten(flat)[used].sum(), flat)
    expected = torch.zeros(3, layout().numel, dtype=torch.float64)
    expected[:, layout().slices[used]] = 1
    assert torch.equal(grad, expected)


def test_parts_of_any_layout_in_memory():
    """Transposed, expanded, sliced, shared by the tasks, of other batches of size 1."""
    parts = {
        "weight": torch.randn(2, 2, 3, 4).permute(3, 2, 1, 0),
        "bias": torch.randn(3),
        "scalar": torch.randn(8)[::2],
        "empty": torch.empty(4, 0, 4),
        "head": torch.randn(1, 5, 1).expand(1, 5, 2),
    }
    expected = [
        p.expand(4, *s).reshape(4, -1) for p, s in zip(parts.values(), SHAPES.values(), strict=True)
    ]
    assert torch.equal(layout().flatten(parts), torch.cat(expected, -1))


def test_a_buffer_that_is_expanded_or_not_dense():
    for flat in (drawn(()).expand(3, -1), drawn((3,)).mT.contiguous().mT, drawn((3, 2))[:, 0]):
        for name, part in composed_unflatten(flat).items():
            assert torch.equal(layout().unflatten(flat)[name], part)


def around(f, axis: int):
    """The gradient of what a vmap makes."""
    return torch.func.grad(lambda stack: torch.func.vmap(f, axis)(stack).square().sum())


def test_func_transforms():
    flat, dot = drawn((3,)), drawn((3,))

    def loss(unflatten):
        return lambda flat: weighted(unflatten(flat))

    ours, theirs = loss(layout().unflatten), loss(composed_unflatten)
    for transform in (torch.func.grad, torch.func.hessian):
        torch.testing.assert_close(transform(ours)(flat), transform(theirs)(flat))
    torch.testing.assert_close(
        torch.func.jvp(ours, (flat,), (dot,)), torch.func.jvp(theirs, (flat,), (dot,))
    )
    for axis in (0, 1):
        stack = drawn((3, 4)).movedim(0, axis)
        for inner in (lambda f: f, torch.func.grad):
            mapped = torch.func.vmap(inner(ours), in_dims=axis)(stack)
            torch.testing.assert_close(mapped, torch.func.vmap(inner(theirs), in_dims=axis)(stack))
        torch.testing.assert_close(around(ours, axis)(stack), around(theirs, axis)(stack))


def test_parts_are_flattened_inside_of_a_vmap():
    parts = composed_unflatten(drawn((3,)))
    shared, *mapped = parts

    def flat(given):
        return layout().flatten({shared: parts[shared][0], **given})

    given = {name: parts[name] for name in mapped}
    each = [flat({name: part[i] for name, part in given.items()}) for i in range(3)]
    assert torch.equal(torch.func.vmap(flat)(given), torch.stack(each))


def test_writing_to_the_buffer_is_seen_by_a_backward_pass():
    flat = drawn((2,)).requires_grad_()
    buffer = flat * 1
    loss = (layout().unflatten(buffer)["weight"] ** 2).sum()
    with torch.no_grad():
        buffer.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_opcheck():
    sizes, ranks = layout()._packed_shapes
    flat = drawn((2,)).requires_grad_()
    parts = [p.detach().clone().requires_grad_() for p in layout().unflatten(flat).values()]
    # the schema says that slices alias the buffer, which torch's own check of views does not take
    tests = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(
        torch.ops.metasparse.flatten_tasks.default, (parts, sizes, ranks), test_utils=tests
    )
    traced = torch.compile(lambda f: weighted(layout().unflatten(f)), backend="aot_eager")
    (grad,) = torch.autograd.grad(traced(flat), flat)
    torch.testing.assert_close(
        grad, torch.autograd.grad(weighted(composed_unflatten(flat)), flat)[0]
    )


def test_refusals():
    flat = drawn((2,))
    op = torch.ops.metasparse
    with pytest.raises(ValueError, match=r"unflatten_tasks: expected flat of shape \(\*, 6\)"):
        op.unflatten_tasks(flat, [2, 3], [2])
    with pytest.raises(ValueError, match="expected ranks that add up"):
        op.unflatten_tasks(flat, [2, 3], [1])
    with pytest.raises(ValueError, match=r"expected tensors\[1\] of shape"):
        op.flatten_tasks([torch.ones(2, 3), torch.ones(3, 3)], [3, 3], [1, 1])
    with pytest.raises(ValueError, match="expected 1 tensors, at least one, got 2"):
        op.flatten_tasks([flat, flat], [3], [1])
