"""What was trained, for images of one's own: a run's best checkpoint as a few-shot classifier."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metasparse_ext._arguments import (
    LARGEST,
    refuse,
    require,
    require_choice,
    require_count,
    require_flag,
    require_mapping,
    require_text,
    require_type,
)
from metasparse_ext.algorithms.base import MetaLearner
from metasparse_ext.algorithms.task_networks import AdaptedTasks
from metasparse_ext.algorithms.tasks import TaskFunction
from metasparse_ext.data import Samples
from metasparse_ext.data.batch import is_image
from metasparse_ext.data.given import ImageReader, reader_of
from metasparse_ext.training import build
from metasparse_ext.training.config import RunConfig
from metasparse_ext.training.parts import Learner, Model, Parts
from metasparse_ext.training.run import Run
from metasparse_ext.training.scores import predict


@dataclass(frozen=True)
class Prediction:
    """What one image was found to be.

    Attributes:
        image: Its path, or its place among the images, ``images[0]`` and so on.
        label: The most probable class.
        probability: Of that class.
        probabilities: Of every class, by name, in the order of the support set; their sum is 1.
    """

    image: str
    label: str
    probability: float
    probabilities: dict[str, float]


class AdaptedTask:
    """The network of one task, adapted to named classes.

    Attributes:
        classes: Their names, in the order of the network's outputs.
        networks: The adapted network, as :class:`~metasparse_ext.algorithms.AdaptedTasks` of one.
        support: The images that it was adapted to, (1, N, C, H, W), and their labels.
        reader: Brings images to what the network takes.
        origin: Where the network is from, by name, for the files that it leaves in.
    """

    def __init__(
        self,
        classes: tuple[str, ...],
        networks: AdaptedTasks,
        support: Samples,
        reader: ImageReader,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        self.classes, self.networks = classes, networks
        self.support, self.reader = support, reader
        self.origin = dict(origin or {})

    def classify(self, images: Any, *, transductive: bool = False) -> list[Prediction]:
        """Classifies images, as :meth:`Trained.classify` does.

        Raises:
            DataError, FloatingPointError, TypeError, ValueError: As there.
        """
        require_flag("classify", "transductive", transductive)
        names, pixels = self.reader.read("classify", "images", images)
        return predictions(names, self.classes, self.logits(pixels, transductive=transductive))

    @torch.no_grad()
    def logits(self, images: Tensor, *, transductive: bool = False) -> Tensor:
        """(N, classes) on the CPU, of images (N, C, H, W) float32 in [0, 1].

        Raises:
            FloatingPointError: If one is not finite.
            TypeError, ValueError: As :func:`~metasparse_ext.training.predict`.
        """
        query = images.unsqueeze(0).to(self.support.labels.device)
        found = predict(self.networks, self.support, query, transductive=transductive)
        logits = found[0, :, : len(self.classes)].cpu()
        if not bool(logits.isfinite().all()):
            raise FloatingPointError(
                "classify: the adapted network gives numbers that are not finite; fewer "
                "adapt_steps or a smaller inner_lr usually helps"
            )
        return logits

    def network(self, *, transductive: bool = False) -> nn.Module:
        """The network in PyTorch's own layers: from images (N, C, H, W) to logits (N, classes).

        Pruned weights are zeros; channels that do nothing are taken out. It is a module of its own,
        on the CPU, in evaluation mode, and needs this package no longer.

        Args:
            transductive: Batch norm takes the statistics of the images given together, as
                ``classify`` does with this flag; where a channel has one number an image, PyTorch
                takes 2 images or more. Otherwise those of the support set, fixed: the same for an
                image whatever comes with it. (``classify`` has each image beside the support set
                take part in them; logits differ a little.)

        Raises:
            FloatingPointError: If the network gives numbers that are not finite.
            ValueError: If PyTorch's own layers do not compute the same, or, without
                ``transductive``, logits of an image depend on what comes with it.
        """
        from metasparse_ext.export.network import task_network

        require_flag("network", "transductive", transductive)
        return task_network(self, transductive)

    def export(
        self, path: str | Path, to: str | None = None, *, transductive: bool = False
    ) -> None:
        """Writes :meth:`network` to a file; what was there is replaced once it is whole.

        Args:
            path: The file; its ending says what it is to be.
            to: "torch" (``.pt2``, for ``torch.export.load``), "onnx" (``.onnx``), "safetensors"
                (``.safetensors``, its tensors) or "metasparse" (``.metasparse``, what is not
                pruned, for :func:`metasparse_ext.load_sparse`); by default as ``path`` ends.
            transductive: As in :meth:`network`.

        Raises:
            FloatingPointError: As :meth:`network`.
            ImportError: If packages that the format needs are not installed.
            OSError: If the file cannot be written.
            TypeError, ValueError: If an argument is wrong, or the network is not one for the
                format.
        """
        from metasparse_ext.export.files import write

        require_flag("export", "transductive", transductive)
        write(self, path, to, transductive)


def predictions(names: Sequence[str], classes: Sequence[str], logits: Tensor) -> list[Prediction]:
    """What images, by name, are by their logits (N, classes)."""
    rows = logits.softmax(-1).double().tolist()
    return [_prediction(name, classes, row) for name, row in zip(names, rows, strict=True)]


def _prediction(image: str, classes: Sequence[str], row: list[float]) -> Prediction:
    best = max(range(len(row)), key=row.__getitem__)
    return Prediction(image, classes[best], row[best], dict(zip(classes, row, strict=True)))


class Trained:
    """A run's learner in its best state; :func:`load` makes it.

    Attributes:
        run: The run.
        learner: The learner, in evaluation mode.
        ways: The most classes that a task can have: the outputs of the network.
        reader: Brings images to the shape and range that the network was trained on.
        distribution: Which of several data sets a task is like, by its number, if that was said.
    """

    def __init__(
        self,
        run: Run,
        learner: MetaLearner,
        ways: int,
        reader: ImageReader,
        distribution: int | None = None,
    ) -> None:
        self.run, self.learner, self.ways = run, learner, ways
        self.reader, self.distribution = reader, distribution

    def classify(
        self, support: Mapping[str, Any], images: Any, *, transductive: bool = False
    ) -> list[Prediction]:
        """Adapts to the support set and classifies images.

        Args:
            support: Images by the name of their class, 2 to ``ways`` classes. Images are paths,
                Pillow images, arrays (H, W) or (H, W, C), or tensors (C, H, W) or, of all of a
                class, (N, C, H, W); uint8, or floating point in [0, 1].
            images: Those to classify, in any of these forms.
            transductive: Take batch statistics over all ``images`` together, as training does over
                its queries. Otherwise each image is classified in a batch of the support images and
                itself alone, so that it is found the same whatever comes with it.

        Returns:
            A :class:`Prediction` for each image.

        Raises:
            DataError: If an image cannot be read, or has another shape or range.
            FloatingPointError: If the adapted network gives numbers that are not finite.
            TypeError: If an argument has another type.
            ValueError: If there are fewer than 2 classes or more than ``ways``, or a class has no
                images.
        """
        require_flag("classify", "transductive", transductive)
        return self._adapt("classify", support).classify(images, transductive=transductive)

    def adapt(self, support: Mapping[str, Any]) -> AdaptedTask:
        """Adapts to a support set once, for many calls of :meth:`AdaptedTask.classify`.

        Raises:
            DataError, TypeError, ValueError: As :meth:`classify`.
        """
        return self._adapt("adapt", support)

    def export(
        self,
        support: Mapping[str, Any],
        path: str | Path,
        to: str | None = None,
        *,
        transductive: bool = False,
    ) -> None:
        """Adapts to the support set and writes the network, as :meth:`AdaptedTask.export` does.

        Raises:
            DataError: If an image cannot be read, or has another shape or range.
            FloatingPointError, ImportError, OSError, TypeError, ValueError: As there.
        """
        from metasparse_ext.export.files import ready

        require_flag("export", "transductive", transductive)
        ready(path, to)
        self._adapt("export", support).export(path, to, transductive=transductive)

    def _adapt(self, owner: str, support: Mapping[str, Any]) -> AdaptedTask:
        require_mapping(owner, "support", support)
        expected = f"of 2 to {self.ways} classes, the outputs of the network"
        require(2 <= len(support) <= self.ways, owner, "support", expected, sorted(support))
        read = [self.reader.read(owner, f"support[{n!r}]", each)[1] for n, each in support.items()]
        device = next(self.learner.parameters()).device
        labels = torch.arange(len(read)).repeat_interleave(
            torch.tensor([len(each) for each in read])
        )
        number = None if self.distribution is None else torch.tensor([self.distribution])
        samples = Samples(torch.cat(read)[None], labels[None], number).to(device)
        networks = self.learner.adapt(samples)
        return AdaptedTask(tuple(support), networks, samples, self.reader, self._origin())

    def _origin(self) -> dict[str, Any]:
        config = self.run.config()
        return {
            "learner": config.learner,
            "data": config.data,
            "iteration": int(self.learner.iteration),
            "adapt_steps": self.learner.adapt_steps,
        }


@torch.inference_mode(False)  # of what is built inside of it, nothing can be adapted
def load(
    run: str | Path | Run,
    *,
    root: str | None = None,
    device: str | None = None,
    adapt_steps: int | None = None,
    distribution: str | None = None,
    invert: bool | None = None,
    model: Model | None = None,
    learner: Learner | None = None,
    loss: TaskFunction | None = None,
    metric: TaskFunction | None = None,
) -> Trained:
    """Reads a run folder's best checkpoint (its last one, where none met the budget).

    The random state of torch is left as it is.

    Args:
        run: The run folder.
        root: Where the files of the data set are now. They are needed only for runs of earlier
            versions, which do not say what shape their images have, unless they have an image_size.
        device: The torch device, if not the run's.
        adapt_steps: Gradient steps of adaptation, if not the run's.
        distribution: Of a run on several data sets, which one the tasks are like: its name as in
            the run's ``data``. Learners with a part for each need it.
        invert: Whether to make dark bright in files and Pillow images. By default that is done for
            runs on ``omniglot``, whose drawings are read so; never to arrays and tensors.
        model, learner, loss, metric: What the run was trained with, where that has no name to be
            imported by; it is left as it is.

    Returns:
        The learner with :meth:`~Trained.classify` and :meth:`~Trained.adapt`.

    Raises:
        CheckpointError: If the folder holds no run.
        DataError: If the data set is needed and cannot be had.
        TypeError, ValueError: If an argument is wrong.

    Example:
        >>> trained = metasparse_ext.load("runs/half")
        >>> support = {"cat": ["cat1.png", "cat2.png"], "dog": ["dog1.png", "dog2.png"]}
        >>> trained.classify(support, "pet.png")[0].label
        'cat'
    """
    run = run if isinstance(run, Run) else _run(run)
    for name, value in (("root", root), ("device", device), ("distribution", distribution)):
        if value is not None:
            require_text("load", name, value, empty=False)
    if adapt_steps is not None:
        require_count("load", "adapt_steps", adapt_steps, most=LARGEST)
    if invert is not None:
        require_flag("load", "invert", invert)
    given = Parts(model=model, learner=learner, loss=loss, metric=metric)
    given.check("load")
    config = run.config()
    config = config.replace(root=root or config.root, device=device or config.device)
    sets = config.data.strip("<>").split("+")
    if distribution is not None:
        require_choice("load", "distribution", distribution, sets)
    made, shape = _best(run, given.require_for("load", config, data=False), given)
    if adapt_steps is not None:
        made.adapt_steps = adapt_steps
    reader = _reader(sets if distribution is None else [distribution], shape, invert)
    number = sets.index(distribution) if distribution is not None and len(sets) > 1 else None
    return Trained(run, made, config.ways, reader, number)


def _run(folder: object) -> Run:
    require_type("load", "run", folder, (str, Path), "a run folder")
    require_text("load", "run", str(folder), empty=False)
    return Run(str(folder))


def _best(run: Run, config: RunConfig, given: Parts) -> tuple[MetaLearner, tuple[int, int, int]]:
    """The learner, in evaluation mode, and the shape of its images."""
    shape, outputs = build.input_of(run, config)
    if outputs is not None or not is_image(shape):
        wanted = "one that tells classes of images apart; evaluate_run takes any other"
        refuse("load", "run", wanted, f"{run}, whose inputs are of shape {shape}")
    # Its first weights are drawn and then replaced.
    with torch.random.fork_rng():
        return build.trained(run, config, shape, given=given).eval(), shape


def _reader(sets: Iterable[str], shape: tuple[int, int, int], invert: bool | None) -> ImageReader:
    """The reader of the data sets, which read alike."""
    readers = {reader_of(each, shape, invert=invert) for each in sets}
    if len(readers) > 1:
        expected = f"one of {', '.join(map(repr, sets))}, whose images are read differently"
        refuse("load", "distribution", expected, "None")
    return readers.pop()
