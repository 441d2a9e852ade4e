"""A module of a user's: data, a model, a learner, losses and an optimizer, all of their own."""

import os
import signal
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from metasparse_ext.algorithms import MAML
from metasparse_ext.data import ImageClasses, Samples, TaskBatch

SPLITS = {"train": 0, "val": 1, "test": 2}


class Mine(MAML):
    """A learner of one's own."""


class Required(MAML):
    """One that has no rate unless it is given."""

    def __init__(self, model: nn.Module, *, inner_lr: float, inner_steps: int = 1) -> None:
        super().__init__(model, inner_lr=inner_lr, inner_steps=inner_steps)


class Net(nn.Module):
    """A network that does not know of tasks."""

    def __init__(self, ways: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, ways))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def net(ways):
    return Net(ways)


def broken(ways):
    return nn.Sequential(nn.Flatten(), nn.Linear(7, ways))


def arrays(split):
    rng = np.random.default_rng(SPLITS[split])
    pattern = rng.integers(0, 180, (8, 1, 8, 8))
    drawn = pattern + rng.integers(0, 70, (8, 6, 8, 8))
    return drawn.reshape(-1, 8, 8).astype(np.uint8), np.arange(8).repeat(6)


def classes(split):
    images, labels = arrays(split)
    return ImageClasses.from_labels(
        images[..., None], labels, tuple("abcdefgh"), name="patterns", split=split
    )


def batch(number, tasks=2):
    """A batch of 3-way tasks by its number."""
    drawn = torch.Generator().manual_seed(number)
    labels = torch.arange(3).repeat(tasks, 2)
    images = torch.rand(tasks, 6, 1, 8, 8, generator=drawn) + labels[..., None, None, None] / 4
    return TaskBatch(
        *(Samples(images[:, part], labels[:, part]) for part in (slice(3), slice(3, 6)))
    )


class Sampler:
    """Batches by their number, without end."""

    def __init__(self, first=0, tasks=2):
        self.first, self.tasks = first, tasks

    def __getitem__(self, index):
        return batch(self.first + index, self.tasks)


def sampler(split, seed, tasks):
    return Sampler(1000 * SPLITS[split] + seed, tasks)


def stream(seed, tasks):
    """Batches one after the other, each two pairs of tensors; begins at the first."""
    number = seed
    while True:
        yield tuple((part.images, part.labels) for part in batch(number, tasks))
        number += 1


class Stream(torch.utils.data.IterableDataset):
    """The same, as torch has it."""

    def __iter__(self):
        return stream(0, 2)


def stream_from(seed, tasks, start):
    """The same, which begins where it is told."""
    yield from stream(seed + start, tasks)


class Words(nn.Module):
    """A bag of words: sentences of numbers, not images."""

    def __init__(self, ways):
        super().__init__()
        self.words, self.head = nn.Embedding(20, 4), nn.Linear(4, ways)

    def forward(self, x):
        return self.head(self.words(x).mean(-2))


def sentences(split, seed, tasks, ways):
    """Tasks in which a class is a word, among others."""
    drawn = torch.Generator().manual_seed(1000 * SPLITS[split] + seed)
    labels = torch.arange(ways).repeat(tasks, 2)
    while True:
        words = torch.rand(tasks, 20, generator=drawn).argsort(-1)[:, :ways]
        noise = torch.randint(20, (tasks, 2 * ways, 2), generator=drawn)
        x = torch.cat([words.repeat(1, 2)[..., None], noise], -1)
        yield (x[:, :ways], labels[:, :ways]), (x[:, ways:], labels[:, ways:])


def regression(split, seed, tasks):
    """Tasks y = a x, as two pairs of inputs and targets."""
    drawn = torch.Generator().manual_seed(1000 * SPLITS[split] + seed)
    while True:
        x = torch.rand(tasks, 6, 1, generator=drawn)
        y = x * torch.rand(tasks, 1, 1, generator=drawn)
        yield (x[:, :3], y[:, :3]), (x[:, 3:], y[:, 3:])


def deadly(split, seed, tasks):
    """The same; once, the second of several processes is killed when it asks for the fourth."""
    for number, drawn in enumerate(regression(split, seed, tasks)):
        mark = Path(os.environ["DIES_ONCE"])
        last = split == "train" and number == 3 and os.environ["RANK"] == "1"
        if last and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield drawn


def line(outputs):
    return nn.Linear(1, outputs)


def squared(outputs, targets):
    return (outputs - targets).square().mean()


def failing(split):
    raise RuntimeError(f"no {split} today")


def odd_loss(outputs, targets):
    raise ValueError("too odd")


def untyped_loss(outputs, targets):
    return outputs.mean() + "text"


def needy(split, moon):
    return classes(split)


def soft(outputs, targets):
    return F.cross_entropy(outputs, targets, label_smoothing=0.1)


def top2(outputs, targets):
    return (outputs.topk(2).indices == targets[:, None]).any(-1).float().mean()


def descent(parameters, lr):
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


NUMBER = 3


def late(outputs, targets):
    """A metric that fails once training has begun."""
    raise KeyError("of my own")


def ten(seed, tasks):
    """Tasks of ten classes, whatever the configuration says."""
    drawn = torch.Generator().manual_seed(seed)
    labels = torch.arange(10).repeat(tasks, 1)
    while True:
        centres = torch.rand(tasks, 10, 4, generator=drawn)
        yield (centres, labels), (centres + 0.1, labels)


def ten_net():
    return nn.Linear(4, 10)


class Members(nn.Module):
    """Eight answers to one question, which start far apart."""

    def __init__(self):
        super().__init__()
        self.answers = nn.Linear(1, 8)
        with torch.no_grad():
            self.answers.bias.copy_(2 * torch.arange(8.0))

    def forward(self, x):
        return self.answers(x)


def eight(split, seed, tasks):
    """Regression with eight targets."""
    for support, query in regression(split, seed, tasks):
        yield tuple((x, y.repeat(1, 1, 8)) for x, y in (support, query))


class Pair(nn.Module):
    """A network of two inputs: an image and a word."""

    def __init__(self, ways: int = 3) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 4)
        self.head = nn.Linear(64 + 4, ways)

    def forward(self, image: Tensor, word: Tensor) -> Tensor:
        return self.head(torch.cat([image.flatten(1), self.words(word)], -1))


def pair(shape, ways):
    sizes = list(shape.values()) if isinstance(shape, dict) else list(shape)
    assert sizes == [(1, 8, 8), ()]
    return Pair(ways)


def two_inputs(split, seed, tasks, *, named=False):
    """Tasks of images, each with a word that helps."""
    number = 1000 * SPLITS[split] + seed
    while True:
        parts = []
        for part in batch(number, tasks):
            inputs = (part.images, part.labels * 2)
            if named:
                inputs = dict(zip(("image", "word"), inputs, strict=True))
            parts.append((inputs, part.labels))
        yield tuple(parts)
        number += 1


def named_inputs(split, seed, tasks):
    """The same, given by keywords."""
    yield from two_inputs(split, seed, tasks, named=True)


class TwoInputs(torch.utils.data.Dataset):
    """Tasks, one by one, for a DataLoader: it makes lists of tuples."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        support, query = batch(index, 1)
        return tuple(
            ((part.images[0], part.labels[0] * 2), part.labels[0]) for part in (support, query)
        )


def double(samples):
    """Samples whose numbers are float64."""

    def turned(each):
        return each.double() if each.is_floating_point() else each

    return samples._replace(images=tree_map_only(Tensor, turned, samples.images))


class Named(Pair):
    """Two inputs, and outputs by name."""

    def forward(self, image: Tensor, word: Tensor) -> dict[str, Tensor]:
        logits = super().forward(image, word)
        return {"logits": logits, "size": logits.square().mean(-1)}


def named_loss(outputs, targets):
    return F.cross_entropy(outputs["logits"], targets) + 1e-3 * outputs["size"].mean()


def named_accuracy(outputs, targets):
    return (outputs["logits"].argmax(-1) == targets).float().mean()
