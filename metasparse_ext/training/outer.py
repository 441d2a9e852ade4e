"""The outer loop's optimizer, ours or one's own, and the schedule of its rates."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor

from metasparse_ext import _entries
from metasparse_ext._arguments import refuse, require, require_type, shown
from metasparse_ext.algorithms.base import MetaLearner
from metasparse_ext.training import parts
from metasparse_ext.training.config import RunConfig
from metasparse_ext.training.parts import OPTIMIZERS


def on_gpu(config: RunConfig) -> bool:
    """Whether the run trains on a CUDA device."""
    return torch.device(config.device).type == "cuda"


def optimizer(
    config: RunConfig, parameters_of: MetaLearner, given: Any = None
) -> torch.optim.Optimizer:
    """Builds the outer optimizer; mask scores may have a rate of their own.

    On a GPU Adam and descent can be part of a CUDA graph: their rates and counters lie on the
    device, and they stand still while ``found_inf`` is not zero.

    Args:
        config: Of the run.
        parameters_of: The learner.
        given: The optimizer, or a function that returns one, where the configuration names none. A
            function is called with those of params, parameters, learner, lr and meta_lr that its
            parameters name; params are groups with their rates.

    Raises:
        TypeError: If what is returned is no optimizer.
        ValueError: If there is a rate for mask scores, and no scores; or if an optimizer steps
            other parameters than the learner's.
    """
    if isinstance(given, torch.optim.Optimizer):
        return _require_own(given, parameters_of)
    scores: list[Tensor] = []
    weights: list[Tensor] = []
    for name, parameter in parameters_of.named_parameters():
        (scores if name.endswith("scores") else weights).append(parameter)
    if config.mask_lr is not None and not scores:
        wanted = f"None, {config.learner} has no mask scores to learn"
        refuse("RunConfig", "mask_lr", wanted, shown(config.mask_lr))
    groups: list[dict[str, Any]] = [{"params": weights, "lr": config.meta_lr}]
    if scores:
        groups.append({"params": scores, "lr": config.mask_lr or config.meta_lr})
    if given is not None or not capturable(config):
        made_by = parts.find(config, "optimizer") if given is None else given
        return _own_optimizer(config, parameters_of, groups, made_by)
    if not on_gpu(config):
        if config.optimizer == "sgd":
            return torch.optim.SGD(groups)
        return torch.optim.Adam(groups, eps=config.adam_eps)
    for group in groups:
        group["lr"] = torch.tensor(group["lr"], device=group["params"][0].device)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, fused=True)
    return torch.optim.Adam(groups, eps=config.adam_eps, capturable=True, fused=True)


def capturable(config: RunConfig) -> bool:
    """Whether the optimizer is one of ours, which can be part of a CUDA graph."""
    return config.optimizer in OPTIMIZERS


def _own_optimizer(
    config: RunConfig, learner: MetaLearner, groups: list[dict[str, Any]], function: Any
) -> torch.optim.Optimizer:
    offered = {
        **{"params": groups, "parameters": list(learner.parameters()), "learner": learner},
        **{"lr": config.meta_lr, "meta_lr": config.meta_lr},
    }
    made = _entries.called("RunConfig", function, offered)
    wanted = f"what optimizer {config.optimizer} returns"
    require_type("RunConfig", wanted, made, torch.optim.Optimizer, "an optimizer")
    return _require_own(made, learner)


def _require_own(made: torch.optim.Optimizer, learner: MetaLearner) -> torch.optim.Optimizer:
    """The optimizer, if it steps parameters of the learner alone, as the loop has it step."""
    own, name = set(learner.parameters()), type(made).__name__
    stepped = [p for group in made.param_groups for p in group["params"]]
    strange = sum(p not in own for p in stepped)
    require(
        strange == 0, "Trainer", "optimizer", "one of the learner's parameters", f"{strange} others"
    )
    if not any(p.requires_grad for p in stepped):
        refuse("Trainer", "optimizer", "one of parameters that require grad", name)
    if not all("lr" in group for group in made.param_groups):
        wanted = "one with a rate lr in each of its groups, which the schedule sets"
        refuse("Trainer", "optimizer", wanted, f"{name} without")
    needed = [p for p in inspect.signature(made.step).parameters.values() if p.default is p.empty]
    if any(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in needed):
        wanted = "one that steps by the gradients that are there, step()"
        arguments = ", ".join(map(str, needed))
        refuse("Trainer", "optimizer", wanted, f"{name}, whose step({arguments}) wants more")
    return made


def scheduled(schedule: str, done: float) -> float:
    """Factor on the learning rates once a fraction of the training is done."""
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if schedule == "linear":
        return 1 - done
    if schedule == "staircase":
        return 0.9 ** int(12 * done)
    return 1.0
