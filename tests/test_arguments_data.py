"""Every public function of the data package refuses what an argument cannot be, and names it."""

import numpy as np
import pytest
import torch
from support.bad_values import VALUES, Call, complaint, wrong_calls, wrong_values
from support.data_sets import coded_classes

from metasparse_ext import data
from metasparse_ext.data import ImageClasses, Mixture, Samples, TaskBatch

TASK = {"ways": 2, "shots": 1, "queries": 1, "tasks": 1, "seed": 0, "rotations": False}
TEXTS = ("text", "empty text")
PATHS = ("text", "none")
COUNTS = {"seed": ("huge",)}
ANY_TEXT = {"name": TEXTS, "split": TEXTS}


def classes(name="a"):
    return ImageClasses.from_labels(
        np.zeros((8, 4, 4), np.uint8), np.arange(8) % 2, ["x", "y"], name=name, split="train"
    )


def mixture():
    return Mixture((classes("a"), classes("b")))


def batch():
    samples = Samples(torch.zeros(1, 2, 1, 4, 4), torch.zeros(1, 2, dtype=torch.int64))
    return TaskBatch(samples, samples)


class Taskset:
    def sample(self):
        return torch.zeros(4, 1, 2, 2), torch.tensor([0, 0, 1, 1])


class Pairs:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return np.zeros((4, 4), np.uint8), index % 2


CALLS = {
    "load": Call(
        "load",
        data.load,
        lambda: {"name": "glyphs"},
        {
            **ANY_TEXT,
            "root": tuple(VALUES),  # Glyphs have none; a folder's is tested below.
            "image_size": ("none",),
            "channels": ("none",),
            "splits": ("none", "text"),
            "bounding_boxes": ("none", "flag"),
            "skip_unreadable": ("flag",),
            "allow_overlap": ("flag",),
            "rotated_classes": ("flag",),
            "cache": ("flag",),
        },
    ),
    "episodes": Call(
        "episodes",
        data.episodes,
        lambda: {"data": classes(), **TASK},
        {
            **COUNTS,
            "data": TEXTS,
            "root": (*PATHS, "empty text"),
            "split": ("none",),
            "rotations": ("flag",),
            "every_set": ("flag",),
        },
    ),
    "EpisodeSampler": Call(
        "EpisodeSampler",
        data.EpisodeSampler,
        lambda: {"data": classes(), **TASK},
        {**COUNTS, "length": ("none",), "rotations": ("flag",), "every_set": ("flag",)},
    ),
    "Sinusoids": Call(
        "Sinusoids",
        data.Sinusoids,
        lambda: {"shots": 1, "queries": 1, "tasks": 1},
        {**COUNTS, "split": TEXTS},
    ),
    "MixtureSampler": Call(
        "MixtureSampler",
        data.MixtureSampler,
        lambda: {"data": mixture(), **TASK},
        {"length": ("none",), "task": tuple(VALUES)},
    ),
    "Mixture": Call("Mixture", Mixture, lambda: {"parts": mixture().parts}),
    "Mixture.of": Call(
        "Mixture.of",
        Mixture.of,
        lambda: {"parts": mixture().parts},
        {"image_size": ("none",), "channels": ("none",)},
    ),
    "ImageClasses": Call(
        "ImageClasses",
        ImageClasses,
        lambda: {
            name: getattr(classes(), name)
            for name in ("images", "offsets", "class_names", "name", "split", "notes")
        },
        {**ANY_TEXT, "notes": ("empty list",)},
    ),
    "ImageClasses.from_labels": Call(
        "ImageClasses.from_labels",
        ImageClasses.from_labels,
        lambda: {
            "images": np.zeros((4, 2, 2), np.uint8),
            "labels": np.array([0, 0, 1, 1]),
            "class_names": ["a", "b"],
            "name": "x",
            "split": "train",
        },
        ANY_TEXT,
    ),
    "resized": Call(
        "ImageClasses.resized",
        lambda image_size, fit: classes().resized(image_size, fit),
        lambda: {"image_size": 4, "fit": "crop"},
    ),
    "with_channels": Call(
        "ImageClasses.with_channels",
        lambda channels: classes().with_channels(channels),
        lambda: {"channels": 3},
    ),
    "with_at_least": Call(
        "ImageClasses.with_at_least",
        lambda min_images: classes().with_at_least(min_images),
        lambda: {"min_images": 3},
    ),
    "from_arrays": Call(
        "from_arrays",
        data.from_arrays,
        lambda: {"images": np.zeros((4, 2, 2), np.uint8), "labels": [0, 0, 1, 1]},
        {**ANY_TEXT, "class_names": ("none",), "layout": ("none",)},
    ),
    "from_dataset": Call(
        "from_dataset",
        data.from_dataset,
        lambda: {"dataset": Pairs()},
        {**ANY_TEXT, "image_size": ("none",)},
    ),
    "from_learn2learn": Call(
        "from_learn2learn",
        data.from_learn2learn,
        lambda: {"taskset": Taskset(), "shots": 1, "tasks": 1},
    ),
    "on_device": Call(
        "on_device",
        data.on_device,
        lambda: {"batches": [], "device": "cpu"},
        {
            "batches": tuple(n for n, v in VALUES.items() if hasattr(v, "__iter__")),
        },
    ),
    "Augment": Call(
        "Augment",
        data.Augment,
        dict,
        {
            "flip": ("flag",),
            "rotate": ("flag",),
            "query": ("flag",),
        },
    ),
    "Augment of a batch": Call(
        "Augment",
        lambda batch, generator: data.Augment()(batch, generator),
        lambda: {"batch": batch(), "generator": None},
        {"generator": ("none",)},
    ),
    "Normalize": Call(
        "Normalize",
        data.Normalize,
        lambda: {"mean": [0.5], "std": [0.5]},
        {"mean": ("list",), "std": ("list",)},
    ),
    "Normalize of a batch": Call(
        "Normalize",
        lambda batch: data.Normalize([0.5], [0.5])(batch),
        lambda: {"batch": batch()},
    ),
    "augmented": Call(
        "augmented",
        data.augmented,
        lambda: {"batches": [], "augment": data.Augment()},
        {
            **COUNTS,
            "batches": tuple(n for n, v in VALUES.items() if hasattr(v, "__iter__")),
        },
    ),
    "published": Call("published", data.published, lambda: {"dataset": "cub"}, {"dataset": TEXTS}),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_call_itself_is_right(name):
    CALLS[name].function(**CALLS[name].arguments())


@pytest.mark.parametrize("name", CALLS)
def test_wrong_arguments_are_named(name):
    call = CALLS[name]
    found = {
        f"{argument}={value}": said
        for _, argument in wrong_calls({name: call})
        for value in wrong_values(call, argument)
        if (said := complaint(call, argument, value)) is not None
    }
    assert not found


def test_every_public_name_is_called():
    known = {call.owner for call in CALLS.values()} | {"Samples", "TaskBatch"}
    functions = {n for n in data.__all__ if callable(getattr(data, n)) and not n.endswith("Error")}
    assert functions <= known


@pytest.mark.parametrize(
    "root", [value for name, value in VALUES.items() if name not in (*PATHS, "empty text")]
)
def test_the_root_of_a_folder(root):
    with pytest.raises((TypeError, ValueError), match=r"load: expected root to be a path, got"):
        data.load("folder", root)


def test_the_data_of_a_sampler_may_be_coded():
    data.EpisodeSampler(coded_classes([4, 4]), **TASK)
