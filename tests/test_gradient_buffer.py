"""Gradients of slices that are computed where they lie in the buffer's gradient."""

import pytest
import torch
from torch import Tensor

import metasparse_ext as ms
from metasparse_ext import _library
from metasparse_ext.implicit import Layout

pytestmark = pytest.mark.skipif(_library.problem is not None, reason="no compiled library")

TASKS, CHANNELS = 3, 16
LAYOUT = Layout.of(
    {
        "first": torch.empty(CHANNELS, CHANNELS, 3, 3),
        "scale": torch.empty(CHANNELS),
        "scores": torch.empty(CHANNELS, CHANNELS),
        "second": torch.empty(CHANNELS, CHANNELS, 3, 3),
        "unused": torch.empty(5),
    }
)


def composed(flat: Tensor) -> dict[str, Tensor]:
    """The slices by torch's own ops: their gradients are always copied."""
    parts = flat.split(LAYOUT.sizes, dim=-1)
    shapes = zip(LAYOUT.names, parts, LAYOUT.shapes, strict=True)
    return {name: part.reshape(flat.shape[:-1] + shape) for name, part, shape in shapes}


@pytest.fixture
def flat() -> Tensor:
    return (0.1 * torch.randn(TASKS, LAYOUT.numel)).requires_grad_()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(TASKS, 5, CHANNELS, 8, 8)


MASK = (torch.rand(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(0)) < 0.5).float()


def once(parts: dict[str, Tensor], images: Tensor) -> Tensor:
    """One convolution whose mask is fixed, one whose mask learns."""
    y = ms.masked_conv2d(images, parts["first"], MASK, padding=1).tanh()
    y = y * parts["scale"][:, None, :, None, None]
    gate = ms.binary_mask(parts["scores"].sigmoid(), 0.5)
    return (
        ms.masked_conv2d(y, parts["second"], gate, padding=1, stride=2).square().sum((1, 2, 3, 4))
    )


def twice(parts: dict[str, Tensor], images: Tensor) -> Tensor:
    """The same weight in two convolutions: its gradients are added up."""
    y = ms.masked_conv2d(images, parts["first"], MASK, padding=1).tanh()
    return ms.masked_conv2d(y, parts["first"], MASK, padding=1).square().sum((1, 2, 3, 4))


def gradient(loss, cut, flat: Tensor, images: Tensor, **options) -> Tensor:
    return torch.autograd.grad(loss(cut(flat), images).sum(), flat, **options)[0]


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("loss", [once, twice])
def test_equals_copied_gradients(loss, flat, images):
    close(gradient(loss, LAYOUT.unflatten, flat, images), gradient(loss, composed, flat, images))


def test_places_are_used(flat, images):
    """The gradients of both weights lie in the memory of the buffer's."""
    parts = LAYOUT.unflatten(flat)
    places: dict[str, int] = {}
    for name in ("first", "second"):
        parts[name].register_hook(lambda g, name=name: places.update({name: g.data_ptr()}))
    (got,) = torch.autograd.grad(once(parts, images).sum(), flat)
    assert places == {n: got[0, LAYOUT.slices[n]].data_ptr() for n in ("first", "second")}


def test_a_tensor_of_tasks_that_share_a_row(images):
    """The first step of an inner loop: one row of memory, a gradient for each task."""
    row = (0.1 * torch.randn(1, LAYOUT.numel)).expand(TASKS, -1).requires_grad_()
    close(gradient(once, LAYOUT.unflatten, row, images), gradient(once, composed, row, images))


def test_passes_that_end_before_the_buffer(flat, images):
    """Gradients of slices alone are the caller's: later passes do not write to them."""
    parts = LAYOUT.unflatten(flat)
    loss = once(parts, images).sum()
    (first,) = torch.autograd.grad(loss, parts["first"], retain_graph=True)
    kept = first.clone()
    expected = gradient(once, composed, flat, images)
    close(torch.autograd.grad(loss, flat, retain_graph=True)[0], expected)
    close(torch.autograd.grad(3 * loss, flat)[0], 3 * expected)
    assert torch.equal(first, kept)


def test_a_graph_that_is_walked_again(flat, images):
    loss = once(LAYOUT.unflatten(flat), images).sum()
    passes = [torch.autograd.grad(loss * k, flat, retain_graph=True)[0] for k in (1, 2, 3)]
    for k, got in enumerate(passes, 1):
        close(got, k * gradient(once, composed, flat, images))


def test_hooks_that_change_a_gradient(flat, images):
    def cut(source):
        def hooked(flat):
            parts = source(flat)
            parts["first"].register_hook(lambda g: 2 * g)
            parts["second"].register_hook(lambda g: g.flip(1))
            return parts

        return hooked

    close(
        gradient(once, cut(LAYOUT.unflatten), flat, images),
        gradient(once, cut(composed), flat, images),
    )


def test_second_derivatives(flat, images):
    direction = torch.randn_like(flat)

    def product(cut):
        slope = gradient(once, cut, flat, images, create_graph=True)
        return torch.autograd.grad(slope, flat, direction)[0]

    close(product(LAYOUT.unflatten), product(composed))


def test_under_vmap(flat, images):
    """A network that knows nothing of tasks."""

    def losses(cut):
        def one(row, x):
            y = ms.masked_conv2d(x, row["first"], MASK, padding=1).tanh()
            return ms.masked_conv2d(y, row["second"], MASK, padding=1).square().sum()

        return lambda flat: torch.func.vmap(one)(cut(flat), images)

    ours, theirs = (
        torch.autograd.grad(losses(cut)(flat).sum(), flat)[0]
        for cut in (LAYOUT.unflatten, composed)
    )
    close(ours, theirs)


def test_two_graphs_at_one_point(flat, images):
    """Their buffers are two, though they share the memory of the point."""
    first, second = (once(LAYOUT.unflatten(flat.detach().requires_grad_()), images) for _ in "ab")
    points = [LAYOUT.unflatten(p) for p in (flat, flat)]
    losses = [once(parts, images).sum() for parts in points]
    expected = gradient(once, composed, flat, images)
    got = torch.autograd.grad(losses[0] + 2 * losses[1], flat)[0]
    close(got, 3 * expected)
    assert torch.equal(first, second)
