"""Every argument of every public function and constructor is refused in words where it is wrong."""

import enum
import inspect
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from support.bad_values import Call, complaint, wrong_calls, wrong_values
from torch import nn
from torch.nn import functional as F

import metasparse_ext as ms
from metasparse_ext import _library, implicit
from metasparse_ext import nn as msnn
from metasparse_ext._arguments import typed

PACKAGES = {"ops": ms.ops, "implicit": implicit, "nn": msnn}

# Parts of a package that have no arguments of a caller to look at.
NO_ARGUMENTS = {
    "decompositions": "has no parameters",
    "CGResult": "is a result",
    "Cost": "is a result",
    "HeadReport": "is a result",
    "HeadSolution": "is a result; its call is in the registry",
    "HessianFree": "is a result",
    "ImplicitGradient": "is a result",
    "LayerCost": "is a result",
    "Linearization": "is a result; its products are in the registry",
    "HeadProblem.curvature": "is called by solvers with their iterates",
    "HeadProblem.gradient": "is called by solvers with their iterates",
    "HeadProblem.residual": "is called by solvers with their iterates",
    "HeadProblem.value": "is called by solvers with their iterates",
    "FixedMask.forward": "is called by the layer with its own weight",
    "ScoreMask.forward": "is called by the layer with its own weight",
    "TopKMask.forward": "is called by the layer with its own weight",
    "LearnedTopKMask.forward": "is called by the layer with its own weight",
}

DEVICE = ("none",)
FLAG = ("flag",)
COUNT = ()
FACTOR = (
    *("fraction", "negative", "huge"),
    *("number tensor", "half tensor", "empty tensor", "meta tensor"),
)
TENSOR_OF_TASKS = (
    *("complex tensor", "integer tensor", "half tensor", "meta tensor", "its stack"),
    *("its complex", "its integers", "its half", "its double", "its meta"),
)
TARGETS = tuple(value for value in TENSOR_OF_TASKS if value not in ("meta tensor", "its meta"))
# A class or a function may do what is asked of a function: what it raises is its own affair.
CALLABLE = ("class", "function")
KINDS_OF_FLOAT = ("its half", "its double")


def images() -> torch.Tensor:
    return torch.randn(2, 3, 6, 6)


def use_backend(name, device):
    with ms.backend(name, device):
        pass


def conv_arguments() -> dict:
    return {
        "x": images(),
        "weight": torch.randn(4, 3, 3, 3),
        "mask": torch.ones(4, 3),
        "bias": torch.zeros(4),
        "stride": 1,
        "padding": 0,
    }


def without(arguments: dict, *names: str) -> dict:
    return {name: value for name, value in arguments.items() if name not in names}


def head_arguments() -> dict:
    return {
        "features": torch.randn(2, 4, 3),
        "labels": torch.zeros(2, 4, dtype=torch.int64),
        "weight": torch.zeros(2, 2, 3),
        "bias": torch.zeros(2, 2),
        "lam": torch.ones(2),
        "solver": "exact",
        "tolerance": 1e-6,
        "max_iterations": 3,
    }


def squares(p: torch.Tensor) -> torch.Tensor:
    return p.square().sum(-1)


SOLVE = {
    "iterations": COUNT,
    "tolerance": ("none", "fraction", "huge"),
    "x0": ("none",),
    "preconditioner": ("none",),
}


def solve_arguments() -> dict:
    return {
        "iterations": 2,
        "tolerance": None,
        "x0": torch.zeros(2, 3),
        "preconditioner": torch.ones(2, 3),
    }


def head_problem() -> dict:
    return {
        "features": torch.randn(2, 4, 3),
        "labels": torch.zeros(2, 4, dtype=torch.int64),
        "center": torch.zeros(2, 2, 3),
        "lam": torch.ones(2),
    }


PLACE = {"device": DEVICE, "dtype": DEVICE}
LAYOUT = implicit.Layout(("a", "b"), (torch.Size([3]), torch.Size([])))
BLOCK = msnn.ConvBlock(3, 4, strided=False, order="norm_act_pool", bias=True)
RES_BLOCK = msnn.ResBlock(3, 4, activation="relu")
NETWORK = nn.Linear(3, 2)
SMALL = msnn.Conv4(3, 6, 2, blocks=2)
CONV = ("MaskedConv2d", "masked_conv2d", "masked_conv")
PAIR = {"kernel_size": COUNT, "stride": COUNT, "padding": COUNT, "dilation": COUNT}
OPERATOR = implicit.damped(lambda v: v, lam=1.0)
HEAD = implicit.softmax_head(**head_arguments())


def weight() -> torch.Tensor:
    return torch.randn(4, 3, 3, 3)


def task_arguments() -> dict:
    return {
        "module": NETWORK,
        "layout": implicit.Layout.of(NETWORK),
        "inputs": torch.randn(2, 4, 3),
        "targets": torch.zeros(2, 4, dtype=torch.int64),
        "criterion": F.cross_entropy,
        "task_aware": False,
    }


CALLS: dict[str, Call] = {
    # ops
    "masked_conv2d": Call(
        CONV,
        ms.masked_conv2d,
        conv_arguments,
        {"mask": ("none",), "bias": ("none",)},
    ),
    "norm_act_pool": Call(
        "norm_act_pool",
        ms.norm_act_pool,
        lambda: {
            "x": images(),
            "weight": torch.ones(3),
            "bias": torch.zeros(3),
            "eps": 1e-5,
            "activation": "relu",
            "pool": 2,
            "order": "norm_act_pool",
        },
        {
            "weight": ("none",),
            "bias": ("none",),
            "eps": ("fraction", "huge"),
            "pool": FLAG,
        },
    ),
    "score_gate": Call(
        "score_gate",
        ms.ops.score_gate,
        lambda: {"scores": torch.randn(3, 4)},
        {
            "scores": (
                *("number tensor", "half tensor", "empty tensor", "meta tensor"),
                *("its half", "its double", "its meta", "its stack"),
            )
        },
    ),
    "binary_mask": Call(
        "binary_mask",
        ms.binary_mask,
        lambda: {"scores": torch.randn(3, 4)},
        {
            "scores": (
                *("number tensor", "half tensor", "empty tensor", "meta tensor"),
                *("its half", "its double", "its meta", "its stack"),
            ),
            "threshold": ("fraction", "negative", "huge"),
        },
    ),
    "topk_mask": Call(
        "topk_mask",
        ms.topk_mask,
        lambda: {
            "scores": torch.randn(2, 4, 3),
            "density": torch.tensor([0.5, 0.5]),
            "granularity": "kernel",
            "scope": "layer",
            "tasks": True,
        },
        {
            "scores": ("empty list", "its half", "its double", "its meta", "its stack"),
            "density": ("flag", "its half", "its double"),
            "tasks": ("none", "flag"),
        },
    ),
    "get_backend": Call("get_backend", ms.get_backend, lambda: {"device": "cpu"}),
    "set_backend": Call(
        "set_backend", ms.set_backend, lambda: {"name": "automatic", "device": "cpu"}
    ),
    "backend": Call(
        ("set_backend", "get_backend"),
        use_backend,
        lambda: {"name": "automatic", "device": "cuda"},
    ),
    "explain": Call(
        ("explain", *CONV),
        ms.explain,
        lambda: without(conv_arguments(), "bias"),
        {"mask": ("none",)},
    ),
    "capture": Call(
        "capture", ms.capture, lambda: {"meta_step": len, "warmup": 3}, {"meta_step": CALLABLE}
    ),
    # implicit
    "cg": Call(
        "cg",
        implicit.cg,
        lambda: {
            "operator": lambda v: 2 * v,
            "b": torch.ones(2, 3),
            **solve_arguments(),
            "differentiable": False,
        },
        {**SOLVE, "operator": ("class",), "differentiable": ("none", "flag"), "b": ()},
    ),
    "hessian_free": Call(
        ("hessian_free", "linearize", "damped", "cg"),
        implicit.hessian_free,
        lambda: {
            "loss": squares,
            "params": torch.ones(2, 3),
            "lam": 1.0,
            "steps": 1,
            "iterations": 2,
            "model": None,
            "curvature": "hessian",
        },
        {
            "loss": CALLABLE,
            "params": ("its double", "its meta", "meta tensor"),
            "model": ("none", *CALLABLE),
            "lam": ("fraction", "huge", "number tensor"),
        },
    ),
    "implicit_gradient": Call(
        ("implicit_gradient", "linearize", "damped", "cg"),
        implicit.implicit_gradient,
        lambda: {
            "support_loss": squares,
            "query_loss": squares,
            "params": torch.ones(2, 3),
            "lam": 1.0,
            "kind": "paper",
            "damping": None,
            "curvature": "hessian",
            "model": None,
            **solve_arguments(),
            "x0": None,
            "preconditioner": None,
        },
        {
            **SOLVE,
            "support_loss": CALLABLE,
            "query_loss": CALLABLE,
            "params": ("its double", "its meta", "meta tensor"),
            "model": ("none", *CALLABLE),
            "lam": ("fraction", "huge", "number tensor"),
            "damping": ("none", "fraction", "huge"),
        },
    ),
    "implicit_solve": Call(
        ("implicit_solve", "cg"),
        lambda operator, gradient: implicit.implicit_solve(operator, gradient, iterations=2),
        lambda: {"operator": OPERATOR, "gradient": torch.ones(2, 3)},
        {"gradient": ("its double", "its meta", "meta tensor")},
    ),
    "linearize": Call(
        "linearize",
        implicit.linearize,
        lambda: {
            "loss": squares,
            "params": torch.ones(2, 3),
            "model": lambda p: 2 * p,
            "curvature": "ggn",
        },
        {
            "loss": CALLABLE,
            "params": ("half tensor", "meta tensor", *KINDS_OF_FLOAT, "its meta"),
            "model": CALLABLE,
        },
    ),
    "Linearization.hvp": Call(
        "hvp",
        lambda direction: implicit.linearize(squares, torch.ones(2, 3)).hvp(direction),
        lambda: {"direction": torch.ones(2, 3)},
    ),
    "damped": Call(
        "damped",
        implicit.damped,
        lambda: {"hvp": lambda v: v, "kind": "paper", "lam": 1.0, "damping": 0.0},
        {
            "hvp": CALLABLE,
            "lam": (
                *("fraction", "huge"),
                *("number tensor", "half tensor", "empty tensor", "meta tensor"),
            ),
            "damping": ("none", "fraction", "huge"),
        },
    ),
    "DampedOperator": Call(
        "DampedOperator",
        implicit.DampedOperator,
        lambda: {"hvp": lambda v: v, "shift": 1.0, "scale": 1.0, "gain": 1.0},
        {"hvp": CALLABLE, "shift": FACTOR, "scale": FACTOR, "gain": FACTOR},
    ),
    "softmax_head": Call(
        "softmax_head",
        implicit.softmax_head,
        head_arguments,
        {
            "bias": ("none",),
            "lam": ("fraction", "huge", "number tensor", "its half", "its double"),
            "tolerance": ("none", "fraction", "huge"),
            "max_iterations": ("none",),
        },
    ),
    "ridge_head": Call(
        "ridge_head",
        implicit.ridge_head,
        lambda: {
            **{name: head_arguments()[name] for name in ("features", "labels")},
            **{"classes": 4, "lam": 1.0, "bias": True},
        },
        {
            "features": ("its double",),
            "classes": COUNT,
            "lam": ("fraction", "huge", "number tensor"),
            "bias": ("flag",),
        },
    ),
    "HeadSolution": Call("HeadSolution", HEAD.__call__, lambda: {"features": torch.randn(2, 5, 3)}),
    "HeadProblem": Call("HeadProblem", implicit.HeadProblem, head_problem),
    "Layout": Call(
        "Layout",
        implicit.Layout,
        lambda: {"names": ("a",), "shapes": (torch.Size([2]),)},
    ),
    "Layout.of": Call("Layout.of", implicit.Layout.of, lambda: {"source": NETWORK}),
    "Layout.flatten": Call(
        "Layout.flatten",
        LAYOUT.flatten,
        lambda: {"tensors": {"a": torch.ones(2, 3), "b": torch.ones(2)}},
    ),
    "Layout.unflatten": Call(
        "Layout.unflatten",
        LAYOUT.unflatten,
        lambda: {"flat": torch.ones(2, 4)},
        {"flat": TENSOR_OF_TASKS, "zero": ("none", "number tensor")},
    ),
    "task_outputs": Call(
        "task_outputs",
        implicit.task_outputs,
        lambda: without(task_arguments(), "targets", "criterion"),
        {"task_aware": FLAG, "inputs": TENSOR_OF_TASKS},
    ),
    "task_losses": Call(
        "task_losses",
        implicit.task_losses,
        task_arguments,
        {"task_aware": FLAG, "inputs": TARGETS, "targets": TARGETS, "criterion": CALLABLE},
    ),
    # nn
    "BatchNorm2d": Call(
        "BatchNorm2d",
        msnn.BatchNorm2d,
        lambda: {"num_features": 3, "eps": 1e-5, "affine": True, "device": None, "dtype": None},
        {"affine": FLAG, "eps": ("fraction", "huge"), **PLACE},
    ),
    "BatchNorm2d.forward": Call(
        "norm_act_pool", msnn.BatchNorm2d(3).forward, lambda: {"x": images()}
    ),
    "NormActPool": Call(
        "NormActPool",
        msnn.NormActPool,
        lambda: {
            "num_features": 3,
            "eps": 1e-5,
            "affine": True,
            "activation": "relu",
            "pool": 2,
            "order": "norm_act_pool",
            "device": None,
            "dtype": None,
        },
        {"affine": FLAG, "eps": ("fraction", "huge"), "pool": FLAG, **PLACE},
    ),
    "NormActPool.forward": Call(
        "norm_act_pool", msnn.NormActPool(3).forward, lambda: {"x": images()}
    ),
    "Linear.forward": Call(
        "Linear",
        msnn.Linear(3, 2).forward,
        lambda: {"input": torch.randn(4, 3)},
        {"input": ("its stack",)},
    ),
    "Linear": Call(
        "Linear",
        msnn.Linear,
        lambda: {"in_features": 3, "out_features": 2, "bias": True, "device": None, "dtype": None},
        {"bias": FLAG, **PLACE},
    ),
    "FiLM": Call(
        "FiLM",
        msnn.FiLM,
        lambda: {"channels": 3, "context": 4, "device": None, "dtype": None},
        PLACE,
    ),
    "FiLM.forward": Call("FiLM", msnn.FiLM(3, 4).forward, lambda: {"x": images()}),
    "MaskedConv2d": Call(
        ("MaskedConv2d", "FixedMask"),
        msnn.MaskedConv2d,
        lambda: {
            "in_channels": 3,
            "out_channels": 4,
            "kernel_size": 3,
            "stride": 1,
            "padding": 0,
            "dilation": 1,
            "groups": 1,
            "bias": True,
            "padding_mode": "zeros",
            "device": None,
            "dtype": None,
            "mask": torch.ones(4, 3),
        },
        {
            "bias": FLAG,
            "mask": ("none", "its integers", "its half", "its double", "its meta"),
            **PLACE,
        },
    ),
    "MaskedConv2d.forward": Call(
        CONV, msnn.MaskedConv2d(3, 4, 3).forward, lambda: {"input": images()}
    ),
    "FixedMask": Call(
        "FixedMask",
        msnn.FixedMask,
        lambda: {"mask": torch.ones(4, 3), "device": None},
        {
            "mask": (
                *("integer tensor", "half tensor", "meta tensor"),
                *("its integers", "its half", "its double", "its meta"),
            ),
            "device": DEVICE,
        },
    ),
    "ScoreMask": Call(
        "ScoreMask",
        msnn.ScoreMask,
        lambda: {
            "out_channels": 4,
            "in_channels": 3,
            "low": 0.0,
            "high": 0.01,
            "device": None,
            "dtype": None,
        },
        {"low": ("negative",), "high": ("fraction", "huge"), **PLACE},
    ),
    "ScoreMask.like": Call(
        ("ScoreMask.like", "ScoreMask"),
        msnn.ScoreMask.like,
        lambda: {"weight": weight(), "low": 0.0, "high": 0.01},
        {
            "weight": (*KINDS_OF_FLOAT, "its meta"),
            "low": ("negative",),
            "high": ("fraction", "huge"),
        },
    ),
    "TopKMask": Call(
        "TopKMask",
        msnn.TopKMask,
        lambda: {"density": 0.5, "granularity": "kernel", "signed": True},
        {"signed": FLAG},
    ),
    "LearnedTopKMask": Call(
        "LearnedTopKMask",
        msnn.LearnedTopKMask,
        lambda: {
            "density": 0.5,
            "granularity": "kernel",
            "signed": False,
            "gradient": "mean",
            "edge_popup": False,
            "floor": 0.05,
            "device": None,
            "dtype": None,
        },
        {"signed": FLAG, "edge_popup": FLAG, **PLACE},
    ),
    "ConvBlock": Call(
        "ConvBlock",
        msnn.ConvBlock,
        lambda: {
            "in_channels": 3,
            "out_channels": 4,
            "strided": True,
            "order": "norm_act_pool",
            "bias": True,
            "device": None,
            "dtype": None,
        },
        {"strided": FLAG, "bias": FLAG, **PLACE},
    ),
    "ConvBlock.modulate": Call("ConvBlock", BLOCK.modulate, lambda: {"context": 4}),
    "ConvBlock.forward": Call(CONV, BLOCK.forward, lambda: {"x": images()}),
    "Conv4": Call(
        "Conv4",
        msnn.Conv4,
        lambda: {
            "in_channels": 1,
            "image_size": 8,
            "width": 2,
            "ways": 2,
            "blocks": 2,
            "strided": True,
            "order": "norm_act_pool",
            "bias": True,
            "head": "flatten",
            "device": None,
            "dtype": None,
        },
        {"strided": FLAG, "bias": FLAG, **PLACE},
    ),
    "ResBlock": Call(
        "ResBlock",
        msnn.ResBlock,
        lambda: {
            "in_channels": 3,
            "out_channels": 4,
            "activation": "relu",
            "device": None,
            "dtype": None,
        },
        PLACE,
    ),
    "ResBlock.modulate": Call("ResBlock", RES_BLOCK.modulate, lambda: {"context": 4}),
    "ResBlock.forward": Call(CONV, RES_BLOCK.forward, lambda: {"x": images()}),
    "ResNet12": Call(
        "ResNet12",
        msnn.ResNet12,
        lambda: {
            "in_channels": 1,
            "image_size": 16,
            "width": 2,
            "ways": 2,
            "activation": "relu",
            "head": "flatten",
            "device": None,
            "dtype": None,
        },
        PLACE,
    ),
    "Conv4.forward": Call(("Conv4", *CONV), SMALL.forward, lambda: {"x": images()}),
    "Conv4.features": Call(("Conv4", *CONV), SMALL.features, lambda: {"x": images()}),
    "ResNet12.forward": Call(
        ("ResNet12", *CONV),
        msnn.ResNet12(3, 16, 2).forward,
        lambda: {"x": torch.randn(2, 3, 16, 16)},
    ),
    "MLP": Call(
        "MLP",
        msnn.MLP,
        lambda: {"shape": (1,), "outputs": 1},
        {**PLACE, "shape": ("list",), "hidden": ("list", "empty list")},
    ),
    "MLP.forward": Call(("MLP", "Linear"), msnn.MLP(3, 2).forward, lambda: {"x": torch.ones(4, 3)}),
    "cost": Call(
        "cost",
        msnn.cost,
        lambda: {
            "model": nn.Linear(3, 2),
            "input_shape": (3, 4, 3),
            "masks": {},
        },
        {"masks": ("none",), "input_shape": ("list",), "dtype": ("none",)},
    ),
    "initialize": Call(
        "initialize", msnn.initialize, lambda: {"model": nn.Linear(3, 2), "name": "xavier"}
    ),
    "is_task_aware": Call("is_task_aware", msnn.is_task_aware, lambda: {"module": NETWORK}),
    "sparsify": Call(
        "sparsify",
        msnn.sparsify,
        lambda: {
            "model": nn.Conv2d(3, 4, 3),
            "masker": msnn.ScoreMask.like,
            "inplace": False,
            "keep_unsupported": False,
        },
        {"masker": ("none", "class"), "inplace": FLAG, "keep_unsupported": FLAG},
    ),
}


@pytest.mark.parametrize(("name", "argument"), list(wrong_calls(CALLS)))
def test_each_wrong_value_is_refused_in_words(name, argument):
    if name in ("set_backend", "explain") and _library.problem is not None:
        pytest.skip("no compiled library")
    call = CALLS[name]
    found = {value: complaint(call, argument, value) for value in wrong_values(call, argument)}
    assert found
    assert {value: words for value, words in found.items() if words is not None} == {}


@pytest.mark.parametrize("name", CALLS)
def test_the_calls_of_the_registry_are_right(name):
    if name in ("set_backend", "explain") and _library.problem is not None:
        pytest.skip("no compiled library")
    call = CALLS[name]
    call.function(**call.arguments())


def public_names(package: ModuleType) -> Iterator[str]:
    """Functions and classes of a package, and the methods of its classes that take arguments."""
    for name in package.__all__:
        part = getattr(package, name)
        if isinstance(part, enum.EnumMeta) or not callable(part) or not hasattr(part, "__module__"):
            continue
        if not inspect.isfunction(part) and not inspect.isclass(part):
            continue  # a type alias
        yield name
        for method in vars(part) if inspect.isclass(part) else ():
            function = getattr(part, method)
            if method.startswith("_") or not inspect.isroutine(function):
                continue
            if set(inspect.signature(function).parameters) - {"self"}:
                yield f"{name}.{method}"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_registry(package):
    missing = set(public_names(PACKAGES[package])) - CALLS.keys() - NO_ARGUMENTS.keys()
    assert not missing, f"add a valid call to CALLS, or a reason to NO_ARGUMENTS: {missing}"


def test_containers_of_tensors_are_shown_in_one_line():
    pair = {"image": torch.ones(2, 3), "words": [torch.zeros(4, 5, dtype=torch.int64), 1]}
    expected = "dict {'image': a tensor of float32 and shape (2, 3), 'words': [a tensor of int64 "
    assert typed(pair) == expected + "and shape (4, 5), 1]}"
    assert "\n" not in typed(nn.Sequential(nn.ReLU()))
