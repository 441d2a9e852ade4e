"""The grid of transforms that every differentiable op is held to, alone and composed."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

Op = Callable[..., Tensor]


def check_derivatives(op: Op, args: tuple[Tensor, ...]) -> None:
    """First and second derivatives against finite differences, in both modes, batched and not.

    ``args`` are float64 tensors; every one is differentiated.
    """
    args = tuple(arg.detach().clone().requires_grad_() for arg in args)
    assert gradcheck(
        op,
        args,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert gradgradcheck(op, args, check_fwd_over_rev=True, check_batched_grad=True)


def check_third_derivative(op: Op, args: tuple[Tensor, ...]) -> None:
    """The gradient of a Hessian-vector product against finite differences."""
    args = tuple(arg.detach().clone().requires_grad_() for arg in args)
    directions = [torch.randn_like(arg) for arg in args]

    def hvp(*inputs: Tensor) -> tuple[Tensor, ...]:
        loss = op(*inputs).tanh().pow(2).sum()
        grads = torch.autograd.grad(loss, inputs, create_graph=True)
        inner = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
        return torch.autograd.grad(inner, inputs, create_graph=True, allow_unused=True)

    assert gradcheck(lambda *inputs: tuple(h for h in hvp(*inputs) if h is not None), args)


def check_func_transforms(op: Op, reference: Op, args: tuple[Tensor, ...]) -> None:
    """torch.func's transforms and their compositions against the same ones of the reference."""

    def scalar(f: Op) -> Op:
        return lambda *inputs: f(*inputs).tanh().sum()

    argnums = tuple(range(len(args)))
    tangents = tuple(torch.randn_like(arg) for arg in args)
    stacked = tuple(torch.stack([arg, arg.flip(0), arg * 0.5]) for arg in args)
    mixed = (None, *[0] * (len(args) - 1)) if len(args) > 1 else (0,)
    mixed_args = (args[0], *stacked[1:]) if len(args) > 1 else stacked
    func = torch.func

    transforms = {
        "vmap": lambda f: func.vmap(f)(*stacked),
        "vmap of mixed axes": lambda f: func.vmap(f, in_dims=mixed)(*mixed_args),
        "nested vmap": lambda f: func.vmap(func.vmap(f))(
            *(torch.stack([arg, arg]) for arg in stacked)
        ),
        "grad": lambda f: func.grad(scalar(f), argnums)(*args),
        "vmap(grad)": lambda f: func.vmap(func.grad(scalar(f), argnums))(*stacked),
        "grad(vmap)": lambda f: func.grad(scalar(func.vmap(f)), argnums)(*stacked),
        "grad(grad)": lambda f: func.grad(
            lambda *inputs: sum(g.pow(2).sum() for g in func.grad(scalar(f), argnums)(*inputs)),
            argnums,
        )(*args),
        "jvp": lambda f: func.jvp(f, args, tangents)[1],
        "jvp(grad)": lambda f: func.jvp(func.grad(scalar(f), argnums), args, tangents)[1],
        "vmap(jvp)": lambda f: func.vmap(lambda *inputs: func.jvp(f, inputs, tangents)[1])(
            *stacked
        ),
        "jvp(jvp)": lambda f: func.jvp(
            lambda *inputs: func.jvp(f, inputs, tangents)[1], args, tangents
        )[1],
    }
    for name, transform in transforms.items():
        torch.testing.assert_close(
            transform(op), transform(reference), msg=lambda text, name=name: f"{name}: {text}"
        )


def check_compile(op: Op, args: tuple[Tensor, ...]) -> None:
    """A compiled forward and backward, of symbols too, and a compiled func.grad, equal eager."""

    def loss(*inputs: Tensor) -> Tensor:
        return op(*inputs).tanh().sum()

    def gradients(f: Op) -> list[Tensor]:
        leaves = [arg.detach().clone().requires_grad_() for arg in args]
        return list(torch.autograd.grad(f(*leaves), leaves))

    torch._dynamo.reset()
    for dynamic in (False, True):
        compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        torch.testing.assert_close(gradients(compiled), gradients(loss))
    functional = torch.func.grad(loss, tuple(range(len(args))))
    compiled = torch.compile(functional, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), functional(*args))
