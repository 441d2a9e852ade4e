"""Several data sets at once: how tasks are drawn from them, and what is reported of each."""

import json
import shutil
from itertools import islice

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.data_sets import coded_classes, decode
from support.training_helpers import timeless, tiny_config

from metasparse_ext import cli
from metasparse_ext.algorithms.records import Metrics
from metasparse_ext.data import (
    DataError,
    DataNotFoundError,
    EpisodeSampler,
    ImageClasses,
    Mixture,
    MixtureSampler,
    episodes,
    load,
)
from metasparse_ext.training import (
    Run,
    Trainer,
    checkpoint,
    evaluate_run,
    evaluation,
    metrics,
)
from metasparse_ext.training.distributed import Workers

pytestmark = pytest.mark.usefixtures("one_thread")

TASK = {"ways": 3, "shots": 1, "queries": 2}


def named(name, classes, split="train", side=3):
    data = coded_classes([8] * classes, split, side)
    return ImageClasses(data.images, data.offsets, data.class_names, name, split)


@pytest.fixture
def mixture():
    return Mixture.of([named("a", 6), named("b", 7), named("c", 9)])


@pytest.fixture(scope="session")
def two_sets(tiny_root, tmp_path_factory):
    """A folder with two data sets of two shapes: omniglot, grey 16x16, and cifar-fs, RGB 8x8."""
    folder = tmp_path_factory.mktemp("two-sets")
    with np.load(tiny_root / "omniglot-tiny.npz") as arrays:
        tiny = dict(arrays)
    np.savez(folder / "omniglot-tiny.npz", **tiny)
    grey = 255 - tiny["images"][:, ::2, ::2, np.newaxis]
    colour = grey // np.array([1, 2, 3], np.uint8)
    np.savez(folder / "cifar_fs_tiny.npz", **{**tiny, "images": colour})
    return folder


def test_every_batch_has_tasks_of_all_data_sets(mixture):
    batch = MixtureSampler(mixture, tasks=6, **TASK)[0]
    assert batch.distribution.tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(batch.support.distribution, batch.query.distribution)
    assert batch.distribution.dtype == torch.int64
    assert batch.support.images.shape == (6, 3, 1, 3, 3)
    assert batch.query.labels.shape == (6, 6)


def test_a_task_is_the_one_that_its_data_set_draws(mixture):
    batch = MixtureSampler(mixture, tasks=4, seed=5, **TASK)[3]
    assert batch.distribution.tolist() == [0, 1, 2, 0]
    for t, number in enumerate(range(12, 16)):
        part = mixture.parts[number % 3]
        alone = EpisodeSampler(part, tasks=1, seed=5, **TASK)[number]
        assert torch.equal(batch.support.images[t], alone.support.images[0])
        assert torch.equal(batch.query.images[t], alone.query.images[0])
        assert torch.equal(batch.query.labels[t], alone.query.labels[0])


@pytest.mark.parametrize("workers", [0, 3])
def test_workers_start_and_batches_change_nothing(mixture, workers):
    whole = MixtureSampler(mixture, tasks=10, **TASK)[0]
    drawn = list(islice(episodes(mixture, tasks=2, start=1, workers=workers, **TASK), 4))
    for name in ("images", "labels", "distribution"):
        parts = torch.cat([getattr(batch.query, name) for batch in drawn])
        assert torch.equal(parts, getattr(whole.query, name)[2:])


def test_classes_of_all_data_sets_come_up(mixture):
    batch = MixtureSampler(mixture, tasks=60, **TASK)[0]
    classes, _ = decode(batch.query.images)
    for number, part in enumerate(mixture.parts):
        assert set(classes[batch.distribution == number].flatten()) == set(range(len(part)))


def test_images_are_brought_to_one_shape(two_sets):
    data = load("omniglot+cifar-fs", two_sets)
    assert data.shape == (3, 16, 16)
    assert data.names == ("omniglot", "cifar-fs")
    assert str(data) == "omniglot+cifar-fs/train"
    assert load("omniglot+cifar-fs", two_sets, image_size=10, channels=1).shape == (1, 10, 10)
    batch = next(episodes("cifar-fs+omniglot", two_sets, split="val", tasks=2, **TASK))
    assert batch.support.images.shape == (2, 3, 3, 16, 16)


def test_equal_shapes_stay_as_they_are():
    data = Mixture.of([named("a", 5, side=5), named("b", 5, side=5)])
    assert data.shape == (1, 5, 5)
    assert data.parts[0].images is not None


def test_glyphs_are_a_third(two_sets):
    data = load("omniglot+cifar-fs+glyphs", two_sets, split="val")
    assert len({part.shape for part in data.parts}) == 1
    assert next(episodes(data, tasks=3, **TASK)).distribution.tolist() == [0, 1, 2]


def test_folders_bring_their_own_root(tmp_path, two_sets):
    from PIL import Image

    for name in ("birds", "planes"):
        for label in "xyz":
            place = tmp_path / name / "train" / label
            place.mkdir(parents=True)
            for image in range(3):
                Image.new("RGB", (8, 8), (image, 0, 0)).save(place / f"{image}.png")
    names = f"folder:{tmp_path / 'birds'}+folder:{tmp_path / 'planes'}+omniglot"
    assert load(names, two_sets).names == ("birds", "planes", "omniglot")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("omniglot+cifar", DataError, "unknown data set 'cifar'.*joined by"),
        ("omniglot+", DataError, "unknown data set ''"),
        ("omniglot+omniglot", DataError, "different data sets, got omniglot, omniglot"),
        ("omniglot+folder:no/such", DataNotFoundError, "no folder no/such/train"),
    ],
)
def test_what_is_missing_is_named(two_sets, name, error, message):
    with pytest.raises(error, match=message):
        load(name, two_sets)


def test_a_missing_set_is_named(two_sets, tmp_path):
    shutil.copy(two_sets / "omniglot-tiny.npz", tmp_path)
    with pytest.raises(
        DataNotFoundError, match=r"cifar-fs: nothing of .* looked for cifar_fs\*\.npz"
    ):
        load("omniglot+cifar-fs", tmp_path)


def test_parts_must_fit():
    with pytest.raises(DataError, match="two data sets or more, got 1"):
        Mixture((named("a", 5),))
    with pytest.raises(
        DataError, match=r"b/train: .*shape \(1, 4, 4\), and \(1, 3, 3\) of a/train"
    ):
        Mixture((named("a", 5), named("b", 5, side=4)))
    with pytest.raises(DataError, match="one split"):
        Mixture((named("a", 5), named("b", 5, split="val")))
    data = Mixture((named("a", 8), named("b", 3)))
    with pytest.raises(DataError, match="b/train: 8-way tasks need 8 classes, there are 3"):
        MixtureSampler(data, tasks=2, ways=8, shots=1, queries=1)


def test_totals_of_shares_give_the_means_of_the_whole():
    accuracy, distribution = torch.rand(6), torch.tensor([0, 1, 2, 0, 1, 0])
    found = [
        Metrics(
            **dict.fromkeys(("loss", "active", "support_loss"), accuracy[s]), accuracy=accuracy[s]
        )
        for s in (slice(0, 2), slice(2, 6), slice(0, 6))
    ]
    names = ("a", "b", "c")
    shares = [
        metrics.totals(part, distribution[s], names)
        for part, s in zip(found, (slice(0, 2), slice(2, 6), slice(0, 6)), strict=True)
    ]
    summed = {name: (shares[0][name] + shares[1][name]) / 2 for name in shares[0]}
    whole = metrics.means(shares[2])
    assert metrics.means(summed) == pytest.approx(whole)
    assert whole["accuracy/b"] == pytest.approx(float(accuracy[[1, 4]].mean()))
    assert "accuracy/c" not in metrics.means(shares[0])


def mixed_config(root, **changes):
    fields = {"data": "omniglot+cifar-fs", "image_size": 16, "tasks": 4, "validation_tasks": 5}
    return tiny_config(root, **{**fields, **changes})


def test_training_and_evaluation_report_each_distribution(tmp_path, two_sets):
    run = Run(tmp_path)
    Trainer(mixed_config(two_sets), run).fit()
    for record in metrics.read(run.metrics_path):
        if record["kind"] == "train":
            parts = record["accuracy/omniglot"], record["accuracy/cifar-fs"]
            assert sum(parts) / 2 == pytest.approx(record["accuracy"])
        else:
            parts = record["distributions"]
            assert [part["tasks"] for part in parts.values()] == [3, 2]
            total = sum(part["accuracy"] * part["tasks"] for part in parts.values())
            assert total / 5 == pytest.approx(record["accuracy"])
    found = evaluate_run(run, tasks=6)
    assert found.setting == "3-way 1-shot, omniglot+cifar-fs test classes"
    assert list(found.numbers["distributions"]) == ["omniglot", "cifar-fs"]
    assert evaluation.kept(run, "test-6tasks").numbers == json.loads(json.dumps(found.numbers))


def test_resume_is_exact(tmp_path, two_sets):
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    Trainer(mixed_config(two_sets, workers=2), whole).fit()
    Trainer(mixed_config(two_sets, iterations=4), parts).fit()
    Trainer(mixed_config(two_sets), parts).fit()
    one, two = (checkpoint.load(run.last_path).learner for run in (whole, parts))
    assert all(torch.equal(one[name], two[name]) for name in one)
    first, second = timeless(whole), timeless(parts)
    assert first == [r for r in second if r["iteration"] != 4 or r["kind"] != "validation"]


def test_the_command_line_takes_and_shows_a_mixture(tmp_path, two_sets):
    def invoke(*arguments):
        return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])

    run = Run(tmp_path / "run")
    tiny = mixed_config(two_sets).to_dict()
    flags = [
        part
        for name in ("ways", "queries", "tasks", "width", "iterations", "validation_tasks")
        for part in (f"--{name.replace('_', '-')}", tiny[name])
    ]
    place = ("--root", two_sets, "--out", run)
    trained = invoke("train", "maml", "--data", "omniglot+cifar-fs", *place, *flags)
    assert trained.exit_code == 0, trained.output
    assert ", omniglot " in trained.stdout
    shown = invoke("evaluate", run, "--tasks", 6)
    assert shown.exit_code == 0, shown.output
    assert "; on cifar-fs " in shown.stdout
    wrong = invoke("train", "maml", "--data", "omniglot+birds", "--out", tmp_path / "other")
    assert wrong.exit_code == 2
    assert "birds" in wrong.stderr or "omniglot" in wrong.stderr


def test_gradients_of_a_lone_process_are_left_alone():
    layer = torch.nn.Linear(2, 2)
    layer(torch.ones(1, 2)).sum().backward()
    layer.bias.grad = None
    Workers().average_gradients(layer, tasks=1)
    assert layer.bias.grad is None
