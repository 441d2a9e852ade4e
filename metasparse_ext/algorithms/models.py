"""The models that learners accept."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from metasparse_ext._arguments import refuse, require, require_type, shown
from metasparse_ext.algorithms.one_task import named


def check_model(owner: str, model: nn.Module, dtypes: tuple[torch.dtype, ...]) -> None:
    """Refuses a model whose parameters one flat buffer cannot hold, or with state of all tasks.

    Args:
        owner: The learner.
        model: Its model.
        dtypes: Those that parameters that require grad may have.

    Raises:
        TypeError: if it is no module, or its parameters have another dtype.
        ValueError: if they have no shapes yet, were made in inference mode, are of several dtypes
            or devices, or a module tracks statistics in its forward: tasks would share them, and
            vmap cannot update them; or if a module would average gradients in a backward pass that
            a learner does not run.
    """
    require_type(owner, "model", model, nn.Module, "an nn.Module")
    parameters = dict(model.named_parameters())
    lazy = [name for name, parameter in parameters.items() if is_lazy(parameter)]
    if lazy:
        got = f"{', '.join(lazy)} without shapes; call the model once before it is handed over"
        refuse(owner, "model", "one whose parameters have their shapes", got)
    if stuck := [name for name, parameter in parameters.items() if parameter.is_inference()]:
        wanted = "one that was made outside of torch.inference_mode, where nothing gets gradients"
        refuse(owner, "model", wanted, f"{', '.join(stuck)} of inference mode")
    adapted = [parameter for parameter in parameters.values() if parameter.requires_grad]
    for kind in ("dtype", "device"):
        found = sorted({shown(getattr(parameter, kind)) for parameter in adapted})
        require(len(found) < 2, owner, "model", f"of one {kind}", found)
    if adapted and adapted[0].dtype not in dtypes:
        wanted = f"of {' or '.join(map(shown, dtypes))}"
        refuse(owner, "model", wanted, shown(adapted[0].dtype), TypeError)
    for name, module in model.named_modules():
        if isinstance(module, DistributedDataParallel):
            refuse(
                owner,
                "model",
                "one without DistributedDataParallel, which would not see a learner's gradients",
                f"{named(name, module)}; hand over its .module, and average .grad of all processes",
            )
        if module.training and getattr(module, "track_running_stats", False):
            raise ValueError(
                f"{owner}: {name!r} updates its running statistics in its forward, which tasks "
                "would share; use metasparse_ext.nn.BatchNorm2d, or pass the model through "
                "torch.func.replace_all_batch_norm_modules_ first"
            )
