"""From a configuration to the objects of a run: data, network, learner, optimizer."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from metasparse_ext import data
from metasparse_ext._arguments import refuse, shown
from metasparse_ext.algorithms import find
from metasparse_ext.algorithms.base import MetaLearner
from metasparse_ext.data import DataError, ImageClasses, Mixture, TaskBatch
from metasparse_ext.nn import Conv4, ResNet12
from metasparse_ext.training.checkpoint import CheckpointError
from metasparse_ext.training.config import RunConfig
from metasparse_ext.training.run import Run


def resolved(config: RunConfig) -> RunConfig:
    """Tells a learner that wants to know how long the training is, and of how many data sets."""
    known = {
        "total_iterations": config.iterations,
        "distributions": config.data.count("+") + 1,
    }
    wanted = inspect.signature(find(config.learner)).parameters
    told = {name: value for name, value in known.items() if name in wanted}
    return config.replace(options={**told, **config.options})


def knows_distributions(config: RunConfig) -> bool:
    """Whether the learner has a part for each data set of a mixture."""
    return "distributions" in inspect.signature(find(config.learner)).parameters


def images(config: RunConfig, split: str) -> ImageClasses | Mixture:
    """Loads one split of the run's data set, or of its several."""
    return data.load(config.data, config.root, split=split, image_size=config.image_size)


def require_one_shape(train: ImageClasses | Mixture, held_out: ImageClasses | Mixture) -> None:
    """Refuses splits that one network cannot take.

    Raises:
        DataError: If their images differ in size or channels.
    """
    if train.shape == held_out.shape:
        return
    (channels, *size), (other_channels, *other_size) = train.shape, held_out.shape
    advice = []
    if size != other_size:
        advice.append("image_size brings sizes to one")
    if channels != other_channels:
        advice.append("one RGB image makes all of its split RGB")
    raise DataError(
        f"{train} and {held_out}: expected images of one shape (C, H, W), "
        f"got {train.shape} and {held_out.shape}; {'; '.join(advice)}"
    )


def require_test_shape(config: RunConfig, train: ImageClasses | Mixture) -> None:
    """Refuses a test split that the network could not be evaluated on; there may be none.

    Raises:
        DataError: If its images differ from those of training in size or channels.
    """
    try:
        held_out = images(config, "test")
    except DataError:
        return  # what training needs is there; the evaluation will say what is missing
    require_one_shape(train, held_out)


def distributions(classes: ImageClasses | Mixture) -> tuple[str, ...]:
    """The names of the data sets of a mixture; none where there is one."""
    return classes.names if isinstance(classes, Mixture) else ()


def episodes(
    config: RunConfig, classes: ImageClasses | Mixture, *, seed: int, tasks: int, start: int = 0
) -> Iterator[TaskBatch]:
    """Draws meta-batches; batch ``i`` depends on the seed, the split and ``i`` alone."""
    return data.episodes(
        classes,
        ways=config.ways,
        shots=config.shots,
        queries=config.queries,
        tasks=tasks,
        seed=seed,
        start=start,
        workers=config.workers,
        rotations=config.rotations and classes.split == "train",
    )


def held_out_episodes(
    config: RunConfig, classes: ImageClasses | Mixture, *, seed: int
) -> Iterator[TaskBatch]:
    """Draws the meta-batches of a validation or an evaluation."""
    config = config.replace(queries=config.evaluation_queries or config.queries)
    return episodes(config, classes, seed=seed, tasks=config.tasks)


def network(config: RunConfig, image_shape: tuple[int, int, int]) -> Conv4 | ResNet12:
    """Builds the backbone and, with ``init_from``, gives it that run's best weights.

    Raises:
        ValueError: If the images are not square, or the other run's network has other shapes.
    """
    channels, height, width = image_shape
    if height != width:
        refuse("Trainer", "images", "square", f"{height}x{width}")
    torch.manual_seed(config.seed)
    if config.backbone == "resnet12":
        net = ResNet12(channels, height, config.width, config.ways)
    else:
        net = Conv4(channels, height, config.width, config.ways, strided=config.strided)
    if config.init_from is not None:
        _copy_weights(net, config.init_from)
    return net


def learner(config: RunConfig, image_shape: tuple[int, int, int]) -> MetaLearner:
    """Builds the learner that the configuration names, on its device.

    Raises:
        ValueError: If the device cannot be used, or an option is refused.
    """
    _require_device(config.device)
    kind, options = find(config.learner), resolved(config).options
    return kind(network(config, image_shape), **options).to(config.device)


def trained(run: Run, config: RunConfig, image_shape: tuple[int, int, int]) -> MetaLearner:
    """Builds a run's learner in its best trained state."""
    made = learner(config.replace(init_from=None), image_shape)
    load_state(made, run.best().learner, str(run))
    return made


def load_state(made: MetaLearner, state: Mapping[str, Any], where: str) -> None:
    """Gives a learner the state of a checkpoint.

    Raises:
        CheckpointError: naming ``where``, if the state is that of another learner or network.
    """
    try:
        made.load_state_dict(state)
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{where}: not the state of this learner: {reason}") from error


def on_gpu(config: RunConfig) -> bool:
    """Whether the run trains on a CUDA device."""
    return torch.device(config.device).type == "cuda"


def optimizer(config: RunConfig, parameters_of: MetaLearner) -> torch.optim.Optimizer:
    """Builds the outer optimizer; mask scores may have a rate of their own.

    On a GPU it can be part of a CUDA graph: its rates and counters lie on the device, and it stands
    still while ``found_inf`` is not zero.

    Raises:
        ValueError: If there is a rate for mask scores, and no scores.
    """
    scores, weights = [], []
    for name, parameter in parameters_of.named_parameters():
        (scores if name.endswith("scores") else weights).append(parameter)
    if config.mask_lr is not None and not scores:
        wanted = f"None, {config.learner} has no mask scores to learn"
        refuse("RunConfig", "mask_lr", wanted, shown(config.mask_lr))
    groups = [{"params": weights, "lr": config.meta_lr}]
    if scores:
        groups.append({"params": scores, "lr": config.mask_lr or config.meta_lr})
    if not on_gpu(config):
        if config.optimizer == "sgd":
            return torch.optim.SGD(groups)
        return torch.optim.Adam(groups, eps=config.adam_eps)
    for group in groups:
        group["lr"] = torch.tensor(group["lr"], device=group["params"][0].device)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, fused=True)
    return torch.optim.Adam(groups, eps=config.adam_eps, capturable=True, fused=True)


def scheduled(schedule: str, done: float) -> float:
    """Factor on the learning rates once a fraction of the training is done."""
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if schedule == "linear":
        return 1 - done
    if schedule == "staircase":
        return 0.9 ** int(12 * done)
    return 1.0


def _require_device(device: str) -> None:
    """Whether a tensor can be there: torch says why not in more than one kind of error."""
    try:
        chosen = torch.device(device)
        if chosen.type not in ("cpu", "cuda") or (chosen.type == "cpu" and chosen.index):
            refuse("RunConfig", "device", "cpu, cuda or cuda:INDEX", repr(device))
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        expected = "RunConfig: expected device to be one that can be used"
        raise ValueError(f"{expected}, got {device!r}: {reason}") from error


def _copy_weights(net: nn.Module, folder: str) -> None:
    """Copies another run's weights into a network; its masks stay behind."""
    state = Run(folder).best().learner
    if "initializations" in state:
        raise ValueError(
            f"{folder}: cannot start from this run: it has an initialization for each of "
            f"{len(state['initializations'])} distributions, not one"
        )
    prefix = "model."
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            source = state.get(prefix + name)
            if source is None or source.shape != parameter.shape:
                found = "nothing" if source is None else tuple(source.shape)
                raise ValueError(
                    f"{folder}: cannot start from this run: {name} is {found} there "
                    f"and {tuple(parameter.shape)} here"
                )
            parameter.copy_(source)
