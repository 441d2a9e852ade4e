"""torch's FlopCounterMode counts a masked convolution as it counts conv2d."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from support.op_calls import conv_calls
from torch.utils.flop_counter import FlopCounterMode

import metasparse_ext as ms
from metasparse_ext.nn import Conv4
from metasparse_ext.ops.flops import FORMULAS


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def convolve(function, wanted, stride, padding):
    """Sums the outputs of 3 -> 8 channels, and their gradients in what is wanted."""
    x, weight = torch.randn(4, 3, 17, 14), torch.randn(8, 3, 3, 2)
    bias, mask = torch.randn(8), (torch.rand(8, 3) < 0.5).float()
    named = {"x": x, "weight": weight, "bias": bias}
    for name in wanted:
        named[name].requires_grad_()
    if function is F.conv2d:
        y = F.conv2d(x, weight, bias, stride, padding)
    else:
        y = ms.masked_conv2d(x, weight, mask, bias, stride, padding)
    if wanted:
        y.sum().backward()


@pytest.mark.parametrize("wanted", [(), ("x",), ("weight",), ("bias",), ("x", "weight", "bias")])
@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1), ((2, 1), (0, 2))])
def test_counts_what_torch_counts_of_a_convolution(wanted, stride, padding):
    counts = [
        counted(lambda f=f: convolve(f, wanted, stride, padding))
        for f in (F.conv2d, ms.masked_conv2d)
    ]
    assert counts[0] == counts[1] > 0


def test_tasks_add_up():
    x, weight = torch.randn(5, 2, 3, 8, 8), torch.randn(6, 3, 3, 3)
    one = counted(lambda: ms.masked_conv2d(x[0], weight, None, padding=1))
    assert one == 2 * (2 * 6 * 8 * 8) * (3 * 3 * 3)
    assert counted(lambda: ms.masked_conv2d(x, weight, None, padding=1)) == 5 * one


def test_every_op_of_the_family_has_a_count():
    calls = conv_calls()
    grad, weight = calls["masked_conv_input_grad"][:2]
    x, mask = calls["masked_conv"][0], calls["masked_conv"][2]
    window = calls["masked_conv"][-2:]
    calls["masked_conv_backward"] = (grad, x, weight, mask, True, True, True, *window)
    assert calls.keys() == {name for name in FORMULAS if name.startswith("masked")}
    counts = {
        name: counted(lambda name=name: getattr(torch.ops.metasparse, name)(*calls[name]))
        for name in calls
    }
    one = counts["masked_conv"]
    twice = {name for name in calls if name.endswith(("pair", "backward"))}
    assert counts == {name: 2 * one if name in twice else one for name in calls}


def test_a_depthwise_convolution_counts_as_torch_has_it():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    weight = torch.randn(3, 1, 3, 3, requires_grad=True)
    runs = (
        lambda: ms.masked_conv2d(x, weight, None, stride=2, padding=1, groups=3),
        lambda: torch.nn.functional.conv2d(x, weight, None, 2, 1, groups=3),
    )
    assert counted(runs[0]) == counted(runs[1])
    assert counted(lambda: runs[0]().sum().backward()) == 3 * counted(runs[0])


def test_a_linear_layer_of_tasks_counts_its_products():
    layer, x = ms.nn.Linear(7, 5), torch.randn(2, 3, 7)
    held = {name: p.detach().expand(2, *p.shape).clone() for name, p in layer.named_parameters()}
    weight = held["weight"].requires_grad_()
    run = torch.func.functional_call
    forward = counted(lambda: run(layer, held, x))
    assert forward == 2 * 2 * 3 * 7 * 5
    x.requires_grad_()
    assert counted(lambda: run(layer, held, x).sum().backward()) == 3 * forward
    pair = (x, weight, x, weight, None)
    assert counted(lambda: torch.ops.metasparse.task_linear_pair(*pair)) == 2 * forward


def test_a_second_derivative_counts_its_products():
    x, weight = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3, requires_grad=True)

    def hessian_product():
        y = ms.masked_conv2d(x, weight, None)
        (gradient,) = torch.autograd.grad(y.square().sum(), weight, create_graph=True)
        torch.autograd.grad(gradient.sum(), weight)

    forward = counted(lambda: ms.masked_conv2d(x, weight, None))
    assert counted(hessian_product) == 4 * forward  # each of the two passes has two products


def test_gradients_of_a_networks_own_parameters_are_counted():
    net, x = Conv4(1, 8, 4, 3, blocks=2), torch.randn(5, 1, 8, 8)

    def gradients():
        torch.autograd.grad(net(x).sum(), list(net.parameters()))

    assert counted(gradients) > 2 * counted(lambda: net(x)) > 0


@pytest.mark.parametrize("first", ["metasparse_ext", "torch.utils.flop_counter"])
def test_counts_in_either_order_of_imports_and_imports_no_triton(first):
    program = f"""
import sys, {first}, metasparse_ext, torch
assert {first!r} != "metasparse_ext" or "triton" not in sys.modules
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    metasparse_ext.masked_conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3), None)
assert counter.get_total_flops() == 18
"""
    subprocess.run([sys.executable, "-c", program], check=True)
