"""A trained run as a classifier of images of one's own."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support.training_helpers import package_path, tiny_config

import metasparse_ext as ms
from metasparse_ext.algorithms import LEARNERS
from metasparse_ext.data import DataError, Samples
from metasparse_ext.data.given import ImageReader, reader_of
from metasparse_ext.training import CheckpointError, Run, Trainer, build, predict

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(tiny_root, tmp_path_factory, one_thread):
    run = Run(tmp_path_factory.mktemp("runs") / "maml")
    Trainer(tiny_config(tiny_root, iterations=2), run).fit()
    return run


@pytest.fixture(scope="module")
def classes(run):
    return build.images(run.config(), "test")


@pytest.fixture
def trained(run):
    return ms.load(run.folder)


def task(classes, shots=2, queries=3, ways=3):
    """Support images by class, and query images of every class in turn, uint8."""
    support = {
        classes.class_names[index]: torch.from_numpy(classes[index][:shots].copy())
        for index in range(ways)
    }
    query = [torch.from_numpy(classes[i][shots : shots + queries].copy()) for i in range(ways)]
    return support, torch.cat(query)


def reference(run, support, query, transductive):
    """Probabilities (N, ways), by the learner and the evaluation's own path."""
    config = run.config()
    learner = build.trained(run, config, tuple(query.shape[1:]))
    images = torch.cat(list(support.values())) / 255
    labels = torch.arange(len(support)).repeat_interleave(len(images) // len(support))
    samples = Samples(images[None], labels[None])
    adapted = learner.adapt(samples)
    with torch.no_grad():
        logits = predict(adapted, samples, query[None] / 255, transductive=transductive)
    return logits[0].softmax(-1)


def probabilities(predictions):
    return torch.tensor([list(each.probabilities.values()) for each in predictions])


@pytest.mark.parametrize("transductive", [False, True])
def test_images_are_classified_as_the_evaluation_does(run, classes, trained, transductive):
    support, query = task(classes)
    found = trained.classify(support, query, transductive=transductive)
    wanted = reference(run, support, query, transductive)
    torch.testing.assert_close(probabilities(found), wanted, rtol=1e-5, atol=1e-6)
    names = list(support)
    assert [each.label for each in found] == [names[index] for index in wanted.argmax(-1)]
    for each in found:
        assert list(each.probabilities) == names
        assert each.probability == max(each.probabilities.values())
        assert sum(each.probabilities.values()) == pytest.approx(1)
    assert [each.image for each in found[:2]] == ["images[0]", "images[1]"]


def test_an_image_is_found_the_same_whatever_comes_with_it(classes, trained):
    support, query = task(classes)
    together = probabilities(trained.classify(support, query))
    alone = torch.cat([probabilities(trained.classify(support, image)) for image in query])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    transductive = probabilities(trained.classify(support, query, transductive=True))
    assert not torch.allclose(together, transductive, atol=1e-4)


def test_what_is_loaded_in_inference_mode_classifies_there_and_outside(run, classes, trained):
    support, query = task(classes)
    with torch.inference_mode():
        loaded = ms.load(run.folder)
        inside = loaded.classify(support, query)
    assert loaded.classify(support, query) == inside == trained.classify(support, query)


def test_every_form_of_an_image_is_read_alike(tmp_path, classes, run):
    support, query = task(classes)
    paths = []
    for index, image in enumerate(query):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(image[0].numpy()).save(paths[-1])
    trained = ms.load(run, invert=False)
    wanted = trained.classify(support, query)
    forms = {
        "floats": query / 255,
        "doubles": query.double() / 255,
        "list of tensors": list(query),
        "paths": paths,
        "texts": list(map(str, paths)),
        "pictures": [Image.open(path) for path in paths],
        "colour pictures": [Image.open(path).convert("RGB") for path in paths],
        "arrays": [image[0].numpy() for image in query],
        "arrays, channels last": [image.permute(1, 2, 0).numpy() for image in query],
    }
    for name, images in forms.items():
        found = trained.classify(support, images)
        assert [e.probabilities for e in found] == [e.probabilities for e in wanted], name
    assert [each.image for each in trained.classify(support, paths)] == list(map(str, paths))
    (one,) = trained.classify(support, paths[0])
    assert one.label == wanted[0].label


def test_files_are_read_as_those_of_training():
    picture = Image.fromarray(np.arange(8 * 4, dtype=np.uint8).reshape(4, 8) * 7)
    plain, cropped = (
        reader_of(text, (1, 4, 4)).read("t", "images", picture)[1]
        for text in ("cub", "folder:birds,fit=crop")
    )
    squashed = picture.resize((4, 4), Image.Resampling.BICUBIC)
    assert torch.equal(plain[0, 0], torch.from_numpy(np.asarray(squashed) / np.float32(255)))
    middle = picture.crop((2, 0, 6, 4))
    assert torch.equal(cropped[0, 0], torch.from_numpy(np.asarray(middle) / np.float32(255)))
    # The strokes of Omniglot's drawings are made bright; tensors are what the network sees.
    bright = reader_of("omniglot", (1, 4, 4)).read("t", "images", picture)[1]
    torch.testing.assert_close(bright, 1 - plain, rtol=0, atol=1e-6)
    pixels = torch.full((1, 4, 4), 9, dtype=torch.uint8)
    assert torch.equal(
        reader_of("omniglot", (1, 4, 4)).read("t", "images", pixels)[1][0] * 255, pixels
    )
    seen_through = Image.new("LA", (4, 4), (0, 0))
    grounds = [
        reader_of(f"cub,ground={ground}", (3, 4, 4)).read("t", "images", seen_through)[1]
        for ground in ("white", "black")
    ]
    assert torch.equal(grounds[0], torch.ones(1, 3, 4, 4))
    assert torch.equal(grounds[1], torch.zeros(1, 3, 4, 4))


def test_a_float_tensor_of_the_right_shape_is_not_rounded():
    image = torch.rand(1, 4, 4)
    assert torch.equal(ImageReader((1, 4, 4)).read("t", "images", image)[1][0], image)


@pytest.mark.parametrize(
    ("images", "error", "said"),
    [
        (3, TypeError, "images to be a path, a Pillow image"),
        ([3], TypeError, r"images\[0\] to be a path"),
        ([], ValueError, "images to be at least one image"),
        (torch.zeros(0, 1, 4, 4), ValueError, "images to be at least one image"),
        (torch.full((1, 4, 4), 1.5), DataError, r"images\[0\] to be uint8, or floating .*1.5"),
        (torch.full((1, 4, 4), torch.nan), DataError, r"images\[0\] to be uint8, or floating"),
        (torch.zeros(1, 4, 4, dtype=torch.int64), DataError, r"images\[0\] to be uint8"),
        (torch.zeros(2, 4, 4), DataError, r"images\[0\] to be an image"),
        (torch.zeros(1, 1, 1, 4, 4), ValueError, "images to be"),
        ("no/such.png", DataError, "no/such.png: not a regular file"),
    ],
)
def test_what_is_no_image_is_refused(images, error, said):
    with pytest.raises(error, match=said):
        ImageReader((1, 4, 4)).read("classify", "images", images)


def test_support_sets_that_do_not_fit_are_refused(classes, trained):
    support, query = task(classes)
    one = {"a": query[:1]}
    four = {**support, "d": query[:1]}
    for wrong in (one, four, {}):
        with pytest.raises(ValueError, match="classify: expected support to be of 2 to 3 classes"):
            trained.classify(wrong, query)
    with pytest.raises(TypeError, match="adapt: expected support to be a mapping"):
        trained.adapt([query])
    with pytest.raises(TypeError, match="each key of support to be text"):
        trained.adapt({1: query, 2: query})
    with pytest.raises(ValueError, match=r"adapt: expected support\['b'\] to be at least one"):
        trained.adapt({**one, "b": []})
    with pytest.raises(TypeError, match="classify: expected transductive to be True or False"):
        trained.classify(support, query, transductive=1)


def test_classes_of_unequal_size_and_fewer_of_them(classes, trained):
    support, query = task(classes)
    names = list(support)[:2]
    uneven = {names[0]: support[names[0]], names[1]: support[names[1]][:1]}
    for each in trained.classify(uneven, query):
        assert list(each.probabilities) == names
        assert sum(each.probabilities.values()) == pytest.approx(1)


@pytest.mark.parametrize("learner", LEARNERS)
def test_every_learner_classifies(tmp_path, tiny_root, classes, learner):
    run = Run(tmp_path)
    Trainer(tiny_config(tiny_root, learner, iterations=1, width=2), run).fit()
    support, query = task(classes, queries=1)
    found = probabilities(ms.load(run).classify(support, query))
    torch.testing.assert_close(found, reference(run, support, query, False), rtol=1e-4, atol=1e-6)


def test_loading_needs_no_data_and_leaves_the_random_state(tmp_path, run):
    shutil.copytree(run.folder, tmp_path / "run")
    moved = Run(tmp_path / "run")
    moved.config_path.write_text(run.config().replace(root=str(tmp_path / "gone")).to_json())
    before = torch.get_rng_state()
    assert ms.load(moved).reader.shape == (1, 16, 16)
    assert torch.equal(torch.get_rng_state(), before)
    # A run of an earlier version does not say what shape its images have.
    moved.images_path.unlink()
    with pytest.raises(DataError, match="gone"):
        ms.load(moved)
    assert ms.load(moved, root=run.config().root).reader.shape == (1, 16, 16)
    moved.images_path.write_text('{"shape": [1, 0, 16]}')
    with pytest.raises(CheckpointError, match=r"images.json: not the shape of images"):
        ms.load(moved)


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="not a run folder"):
        ms.load(tmp_path)
    for name, reader in {
        "a.pt2": r"torch\.export",
        "a.onnx": "onnx",
        "a.metasparse": "load_sparse",
    }.items():
        (tmp_path / name).touch()
        with pytest.raises(CheckpointError, match=f"not read back as a run: .*{reader}.* reads it"):
            ms.load(tmp_path / name)


def test_steps_of_adaptation_and_the_device_may_be_others(run, classes):
    support, query = task(classes)
    few = probabilities(ms.load(run).classify(support, query))
    many = probabilities(ms.load(run, adapt_steps=9).classify(support, query))
    assert not torch.allclose(few, many)
    assert ms.load(run, device="cpu").learner.adapt_steps == 2
    with pytest.raises(ValueError, match="device to be one that can be used, got 'abacus'"):
        ms.load(run, device="abacus")


def test_a_run_on_several_data_sets_is_told_which_one(tmp_path, tiny_root, classes):
    config = tiny_config(tiny_root, "multi-maml", data="omniglot+cifar-fs", iterations=1)
    run = Run(tmp_path)
    Trainer(config, run).fit()
    support, query = task(classes)
    with pytest.raises(ValueError, match="expected distribution to be one of 'omniglot'"):
        ms.load(run)
    with pytest.raises(ValueError, match="expected distribution to be one of 'omniglot'"):
        ms.load(run, distribution="cub")
    with pytest.raises(ValueError, match="distribution of support"):
        ms.load(run, invert=False).classify(support, query)
    first, second = (
        probabilities(ms.load(run, distribution=each).classify(support, query))
        for each in ("omniglot", "cifar-fs")
    )
    assert first.shape == second.shape == (9, 3)


def test_load_is_imported_when_it_is_first_asked_for():
    script = (
        "import sys, json, metasparse_ext as ms\n"
        "before = 'metasparse_ext.training' in sys.modules\n"
        "ms.load\n"
        "print(json.dumps([before, 'metasparse_ext.training' in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=package_path(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [False, True]
