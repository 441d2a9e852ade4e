"""Every op of the library in one call: forward, backward and second derivatives."""

import torch
from torch import Tensor

import metasparse_ext as ms
from metasparse_ext.implicit import cg, softmax_head


def results(seed: int, side: int = 12) -> list[Tensor]:
    """Depends on the seed alone: operands and masks are drawn anew."""
    drawn = torch.Generator().manual_seed(seed)
    return [
        *_convolution(drawn, side, stride=1),
        *_convolution(drawn, side, stride=2),
        *_depthwise(drawn, side),
        *_block(drawn, side),
        ms.topk_mask(torch.randn(3, 5000, generator=drawn), 0.2),
        *_between(drawn),
        *_solve(drawn),
        *_head(drawn),
    ]


def _leaf(drawn: torch.Generator, *size: int) -> Tensor:
    return torch.randn(size, generator=drawn).requires_grad_()


def _derivatives(y: Tensor, *leaves: Tensor) -> list[Tensor]:
    """y, its gradients, and the gradients of their squares."""
    first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    return [t.detach() for t in (y, *first, *second)]


def _between(drawn: torch.Generator) -> list[Tensor]:
    """What lies between the convolutions: gates, the head's product and the loss."""
    ops = torch.ops.metasparse
    scores, features = _leaf(drawn, 3, 700), _leaf(drawn, 3, 20, 300)
    weight, bias = _leaf(drawn, 3, 5, 300), _leaf(drawn, 3, 5)
    labels = torch.randint(5, (3, 20), generator=drawn)
    losses = ops.task_cross_entropy(ops.task_linear(features, weight, bias), labels)
    return [
        ops.binary_mask(scores.detach(), 0.1),
        *_derivatives(ops.score_gate(scores), scores),
        *_derivatives(losses, features, weight, bias),
    ]


def _convolution(drawn: torch.Generator, side: int, stride: int) -> list[Tensor]:
    x, weight = _leaf(drawn, 3, 4, 16, side, side), _leaf(drawn, 3, 24, 16, 3, 3)
    mask = (torch.rand(3, 24, 16, generator=drawn) < 0.5).float().requires_grad_()
    y = ms.masked_conv2d(x, weight, mask, stride=stride, padding=1)
    return _derivatives(y, x, weight, mask)


def _depthwise(drawn: torch.Generator, side: int) -> list[Tensor]:
    x, weight = _leaf(drawn, 3, 4, 16, side, side), _leaf(drawn, 3, 16, 1, 3, 3)
    return _derivatives(
        ms.masked_conv2d(x, weight, None, stride=2, padding=1, groups=16), x, weight
    )


def _block(drawn: torch.Generator, side: int) -> list[Tensor]:
    x, weight, bias = _leaf(drawn, 3, 4, 16, side, side), _leaf(drawn, 16), _leaf(drawn, 16)
    return _derivatives(ms.norm_act_pool(x, weight, bias, pool=True), x, weight, bias)


def _solve(drawn: torch.Generator) -> list[Tensor]:
    scale = 1 + torch.rand(3, 5000, generator=drawn)
    b = torch.randn(3, 5000, generator=drawn)
    return [cg(lambda v: scale * v, b, iterations=5).solution]


def _head(drawn: torch.Generator) -> list[Tensor]:
    features, weight = _leaf(drawn, 3, 10, 32), _leaf(drawn, 5, 32)
    labels = torch.randint(5, (3, 10), generator=drawn)
    return _derivatives(softmax_head(features, labels, weight, lam=0.5).weight, features, weight)
