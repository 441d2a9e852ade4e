"""The samples and labels that learners accept."""

from __future__ import annotations

import re
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from metasparse_ext._arguments import refuse, require, require_tensor, require_type, shown
from metasparse_ext.data import Inputs, Samples, TaskBatch
from metasparse_ext.ops._operands import is_readable

# Labels that were found to be classes, with their version and the number of classes then.
_passed: MutableMapping[Tensor, tuple[int, int]] = WeakTensorKeyDictionary()

# What operators say, torch's and ours, of operands whose dtypes do not go together.
_OF_DTYPES = re.compile(r"dtype|scalar type|input type|to be of \w*float", re.IGNORECASE)

INTEGERS = (
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)


def checked_batch(
    owner: str, name: str, batch: TaskBatch, device: torch.device, classes: bool = True
) -> TaskBatch:
    """:func:`checked_samples` of both sets of a meta-batch; they must hold as many tasks.

    Raises:
        TypeError: as there, or if it is no meta-batch.
        ValueError: as there, or for another number of tasks.
    """
    require_type(owner, name, batch, TaskBatch, "a TaskBatch of support and query samples")
    support = checked_samples(owner, f"{name}.support", batch.support, device, classes)
    query = checked_samples(owner, f"{name}.query", batch.query, device, classes)
    tasks, got = len(support.labels), len(query.labels)
    wanted = f"of T = {tasks} tasks like the support set"
    require(got == tasks, owner, f"{name}.query", wanted, got)
    return TaskBatch(support, query)


def checked_samples(
    owner: str, name: str, samples: Samples, device: torch.device, classes: bool = True
) -> Samples:
    """The samples with labels in int64, if there is a class for every image.

    Without ``classes`` the labels are targets (T, N, ...) of any dtype, and stay as they are.

    Values are looked at where the host may (:func:`is_readable`). That none is below 0 is seen
    here, before the network has said how many classes there are; :func:`check_classes` sees the
    rest.

    Raises:
        TypeError: if a part is no tensor, or the labels or the distribution are no integers.
        ValueError: if the labels have another shape than the images, one is below 0, or a part is
            not on the device of the learner.
    """
    require_type(owner, name, samples, Samples, "Samples of images and labels")
    images, labels, distribution = samples
    inputs = named_inputs(f"{name}.images", images)
    for input_name, got in inputs:
        _check_part(owner, input_name, got, device, integers=False)
    _check_part(owner, f"{name}.labels", labels, device, integers=classes)
    if distribution is not None:
        _check_part(owner, f"{name}.distribution", distribution, device, integers=True)
    require(bool(inputs), owner, f"{name}.images", "at least one tensor", images)
    lead = tuple(inputs[0][1].shape[:2])
    for input_name, got in inputs:
        shape = tuple(got.shape[:2])
        require(len(shape) == 2 and min(shape) > 0, owner, input_name, "(T, N, ...)", shape)
        require(shape == lead, owner, input_name, f"(T, N, ...) = {lead} like the first", shape)
    wanted = f"(T, N{'' if classes else ', ...'}) = {lead} like the images"
    fits = (labels.shape if classes else labels.shape[:2]) == lead
    require(fits, owner, f"{name}.labels", wanted, tuple(labels.shape))
    if distribution is not None:
        shape, wanted = tuple(distribution.shape), f"(T,) = {lead[:1]}, one for each task"
        require(shape == lead[:1], owner, f"{name}.distribution", wanted, shape)
        distribution = distribution.long()
    if classes:
        labels = labels.long()
        _refuse_where(labels < 0, labels, owner, f"{name}.labels", "at least 0")
    return Samples(images, labels, distribution)


def named_inputs(name: str, images: Inputs) -> list[tuple[str, Any]]:
    """What a model is given, each with its name: of one tensor, or of a tuple or a dict."""
    if isinstance(images, tuple):
        return [(f"{name}[{index}]", each) for index, each in enumerate(images)]
    if isinstance(images, dict):
        return [(f"{name}[{key!r}]", each) for key, each in images.items()]
    return [(name, images)]


@contextmanager
def dtypes_explained(
    owner: str, inputs: list[tuple[str, Any]], dtype: torch.dtype
) -> Iterator[None]:
    """Says which input has another dtype than the model where an operator complains of dtypes.

    Nothing is refused before that: a model may convert what it is given, or look it up.

    Raises:
        TypeError: in place of the operator's error.
    """
    try:
        yield
    except (RuntimeError, TypeError) as error:
        unlike = [(name, got) for name, got in inputs if got.dtype != dtype]
        if not unlike or not _OF_DTYPES.search(str(error)):
            raise
        # Integers beside others are looked up.
        name, got = max(unlike, key=lambda each: each[1].is_floating_point())
        refuse(owner, name, f"of {shown(dtype)} like the model", shown(got.dtype), TypeError)


def _check_part(owner: str, name: str, got: Any, device: torch.device, *, integers: bool) -> None:
    require_tensor(owner, name, got)
    if got.device != device:
        refuse(owner, name, f"on {device} like the model", str(got.device))
    if integers and got.dtype not in INTEGERS:
        refuse(owner, name, "integers", shown(got.dtype), TypeError)


def check_classes(owner: str, labels: Tensor, ways: int) -> None:
    """Whether labels (T, N) are classes of a network with so many outputs, where the host may look.

    A tensor that has passed is not looked at again until it is written to: an inner loop asks at
    every step.

    Raises:
        ValueError: if one is outside 0 to ways - 1.
    """
    if not is_readable(labels):
        return
    state = None if labels.is_inference() else (labels._version, ways)
    if state is not None and _passed.get(labels) == state:
        return
    given, labels = labels, labels.long()
    wrong = (labels < 0) | (labels >= ways)
    _refuse_where(wrong, labels, owner, "labels", f"classes from 0 to {ways - 1}")
    if state is not None:
        _passed[given] = state


def _refuse_where(wrong: Tensor, labels: Tensor, owner: str, name: str, expected: str) -> None:
    if is_readable(wrong) and bool(wrong.any()):
        task, image = wrong.nonzero()[0].tolist()
        refuse(owner, name, expected, f"{labels[task, image].item()} in task {task}")
