"""From a configuration to the objects of a run: data, network, learner, optimizer."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from metasparse_ext import _entries, data
from metasparse_ext._arguments import refuse, require_type
from metasparse_ext.algorithms import find
from metasparse_ext.algorithms.base import MetaLearner
from metasparse_ext.data import DATASETS, DataError, ImageClasses, Mixture, TaskBatch
from metasparse_ext.data.batch import InputShape, is_image, is_one_input
from metasparse_ext.nn import initialize
from metasparse_ext.training import parts
from metasparse_ext.training.checkpoint import CheckpointError
from metasparse_ext.training.config import RunConfig
from metasparse_ext.training.own_tasks import OwnTasks, tasks_of
from metasparse_ext.training.parts import TASKS, Parts
from metasparse_ext.training.run import Run

#: Nothing is given: the configuration names every part.
NAMED = Parts()

# What is taken where the configuration names no loss.
_LOSSES = {"sinusoid": "mse"}

Tasks = ImageClasses | Mixture | OwnTasks


def resolved(
    config: RunConfig, classes: Tasks | None = None, kind: type[MetaLearner] | None = None
) -> RunConfig:
    """Names the model and the loss that suit the data, and completes the learner's options.

    A learner that wants to know is told how long the training is, and of how many data sets.

    Args:
        config: The configuration.
        classes: The data, where they are loaded already.
        kind: The class of the learner, where the configuration does not name it.
    """
    shape = getattr(classes, "shape", None if config.data in TASKS else (1, 1, 1))
    model = "conv4" if is_image(shape) else "mlp"
    suited = {"model": model, "loss": _LOSSES.get(config.data)}
    config = config.replace(**{n: v for n, v in suited.items() if getattr(config, n) is None})
    if kind is None and _entries.is_label(config.learner):
        return config
    known = {
        "total_iterations": config.iterations,
        "distributions": len(distributions(classes)) or config.data.count("+") + 1,
    }
    wanted = inspect.signature(kind or find(config.learner)).parameters
    told = {name: value for name, value in known.items() if name in wanted}
    return config.replace(options={**told, **config.options})


def is_own(name: str) -> bool:
    """Whether data of this name are made by a function, and are no data set to be read."""
    own = name in TASKS or _entries.is_import(name)
    return own and name.partition(":")[0] not in DATASETS


def images(config: RunConfig, split: str, given: Any = None) -> Tasks:
    """Loads one split of the run's data: of a data set, of several, or of one's own.

    Args:
        config: Of the run.
        split: The split.
        given: The data themselves, where the configuration does not name them.
    """
    if given is None:
        if not is_own(config.data):
            return data.load(config.data, config.root, split=split, image_size=config.image_size)
        given = parts.find(config, "data")
    if split != "train":
        config = config.replace(queries=config.evaluation_queries or config.queries)
    return tasks_of(given, config, split)


def knows_distributions(config: RunConfig) -> bool:
    """Whether the learner has a part for each data set of a mixture."""
    return "distributions" in inspect.signature(find(config.learner)).parameters


def require_one_shape(train: Tasks, held_out: Tasks) -> None:
    """Refuses splits that one network cannot take.

    Raises:
        DataError: If their images differ in size or channels.
    """
    if train.shape == held_out.shape:
        return
    advice = []
    if isinstance(train, OwnTasks) or isinstance(held_out, OwnTasks):
        raise DataError(
            f"{train} and {held_out}: expected inputs of one shape, got {train.shape} and "
            f"{held_out.shape}"
        )
    (channels, *size), (other_channels, *other_size) = train.shape, held_out.shape
    if size != other_size:
        advice.append("image_size brings sizes to one")
    if channels != other_channels:
        advice.append("one RGB image makes all of its split RGB")
    raise DataError(
        f"{train} and {held_out}: expected images of one shape (C, H, W), "
        f"got {train.shape} and {held_out.shape}; {'; '.join(advice)}"
    )


def require_test_shape(config: RunConfig, train: Tasks, given: Any = None) -> None:
    """Refuses a test split that the network could not be evaluated on; there may be none.

    Meta-batches of one's own are not asked for before they are needed.

    Raises:
        DataError: If its images differ from those of training in size or channels.
    """
    if isinstance(train, OwnTasks):
        return
    try:
        held_out = images(config, "test", given)
    except DataError:
        return  # what training needs is there; the evaluation will say what is missing
    require_one_shape(train, held_out)


def distributions(classes: Tasks | None) -> tuple[str, ...]:
    """The names of the data sets of a mixture; none where there is one."""
    return classes.names if isinstance(classes, Mixture) else ()


def outputs(classes: Tasks) -> int | None:
    """How many numbers are to be predicted, or None where there are classes."""
    return classes.outputs if isinstance(classes, OwnTasks) else None


def setting(config: RunConfig, classes: Tasks) -> str:
    """What is evaluated, in words."""
    if isinstance(classes, OwnTasks):
        kind = f"{config.ways}-way" if classes.outputs is None else "regression"
        return f"{kind} {config.shots}-shot, {config.data} {classes.split} tasks"
    return f"{config.ways}-way {config.shots}-shot, {config.data} {classes.split} classes"


def input_of(run: Run, config: RunConfig) -> tuple[InputShape, int | None]:
    """The shape of an input of a run's network, and how many numbers it predicts, if any."""
    shape = run.image_shape()
    if shape is not None:
        return shape, run.outputs()
    classes = images(config, "test")
    return classes.shape, outputs(classes)


def require_loss(config: RunConfig, classes: Tasks) -> None:
    """Refuses to predict numbers without a loss for them.

    Raises:
        ValueError: If there are targets in place of classes, and no loss.
    """
    if isinstance(classes, OwnTasks) and outputs(classes) is not None and config.loss is None:
        wanted = f"a function for the targets of {classes}, which are {classes.labels}, not classes"
        refuse("RunConfig", "loss", wanted, "None")


def episodes(
    config: RunConfig,
    classes: Tasks,
    *,
    seed: int,
    tasks: int,
    start: int = 0,
    every_set: bool = False,
) -> Iterator[TaskBatch]:
    """Draws meta-batches; batch ``i`` depends on the seed, the split and ``i`` alone."""
    if isinstance(classes, OwnTasks):
        return classes.batches(seed, start, config.workers, endless=True)
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
        every_set=every_set,
    )


def held_out_episodes(
    config: RunConfig, classes: Tasks, *, seed: int, every_set: bool = False
) -> Iterator[TaskBatch]:
    """Draws the meta-batches of a validation or an evaluation."""
    if isinstance(classes, OwnTasks):
        return classes.batches(seed, 0, config.workers, endless=False)
    config = config.replace(queries=config.evaluation_queries or config.queries)
    return episodes(config, classes, seed=seed, tasks=config.tasks, every_set=every_set)


def network(
    config: RunConfig, shape: InputShape, *, outputs: int | None = None, given: Any = None
) -> nn.Module:
    """Builds the model and, with ``init_from``, gives it that run's best weights.

    Args:
        config: Of the run.
        shape: Of one input: (C, H, W) of an image; of several, a tuple or a dict of shapes.
        outputs: How many numbers are to be predicted; by default a logit for each class.
        given: The network, or a function that returns one, where the configuration names none. A
            function is called with those of shape, in_channels, image_size, ways, outputs, width,
            strided and seed that its parameters name.

    Raises:
        TypeError: If what is returned is no network.
        ValueError: If images are not square, the network of a name of ours would have to take
            several inputs, or the other run's network has other shapes.
    """
    config = resolved(config)
    torch.manual_seed(config.seed)
    net = given
    if not isinstance(net, nn.Module):
        made_by = parts.find(config, "model") if net is None else net
        net = _entries.called("RunConfig", made_by, _offered(config, shape, outputs))
        require_type("RunConfig", f"what model {config.model} returns", net, nn.Module, "a module")
    if config.initialization is not None:
        initialize(net, config.initialization)
    if config.init_from is not None:
        _copy_weights(net, config.init_from)
    return net


def _offered(config: RunConfig, shape: InputShape, outputs: int | None) -> dict[str, Any]:
    """What a function that makes a model can ask for."""
    if not is_one_input(shape) and config.model in parts.MODELS:
        wanted = f"a network of one's own, package.module:function, for inputs of shapes {shape}"
        refuse("RunConfig", "model", wanted, repr(config.model))
    offered = {
        **{"shape": shape, "outputs": config.ways if outputs is None else outputs},
        **{name: getattr(config, name) for name in ("ways", "width", "strided", "seed")},
    }
    if config.model in parts.MODELS:  # a function of one's own may mean something else by these
        offered |= {"order": config.block_order, "head": config.head}
    if not is_image(shape):
        return offered
    channels, height, width = shape
    if config.model in ("conv4", "resnet12") and height != width:
        refuse("Trainer", "images", "square", f"{height}x{width}")
    size = height if height == width else (height, width)
    return {**offered, "in_channels": channels, "image_size": size}


def learner(
    config: RunConfig,
    shape: InputShape,
    *,
    outputs: int | None = None,
    given: Parts = NAMED,
) -> MetaLearner:
    """Builds the learner that the configuration names, on its device.

    Args:
        config, shape, outputs: As in :func:`network`.
        given: What came as an object.

    Raises:
        ValueError: If the device cannot be used, or an option is refused.
    """
    _require_device(config.device)
    if isinstance(given.learner, MetaLearner):
        torch.manual_seed(config.seed)
        if config.init_from is not None:
            _copy_weights(given.learner.model, config.init_from)
        return given.learner.to(config.device)
    config = resolved(config)
    kind = find(config.learner) if given.learner is None else given.learner
    own = {}
    for name in ("loss", "metric"):
        function = getattr(given, name)
        if function is None and getattr(config, name) is not None:
            function = parts.find(config, name)
        if function is not None:
            own[name] = function
    net = network(config, shape, outputs=outputs, given=given.model)
    return kind(net, **config.options, **own).to(config.device)


def trained(
    run: Run,
    config: RunConfig,
    shape: InputShape,
    *,
    outputs: int | None = None,
    given: Parts = NAMED,
) -> MetaLearner:
    """Builds a run's learner in its best trained state; what is given stays as it is."""
    objects = {name: copy.deepcopy(getattr(given, name)) for name in ("model", "learner")}
    given = dataclasses.replace(given, **objects)
    config = config.replace(init_from=None)
    made = learner(config, shape, outputs=outputs, given=given)
    load_state(made, run.best().learner, str(run))
    chunk = run.chunk(config.memory)
    if chunk is not None and chunk.tasks < chunk.of:
        made.task_chunk = chunk.tasks
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
