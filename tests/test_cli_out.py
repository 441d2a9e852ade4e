"""What leaves a run by the command line: predictions and files."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from support.training_helpers import tiny_config
from test_cli import assert_one_line_error, invoke

import metasparse_ext as ms
from metasparse_ext.training import Run, Trainer, build

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(tiny_root, tmp_path_factory, one_thread):
    run = Run(tmp_path_factory.mktemp("runs") / "maml")
    Trainer(tiny_config(tiny_root, iterations=2), run).fit()
    return run


@pytest.fixture(scope="module")
def support(run, tmp_path_factory):
    """A folder of two images for each of three classes, and beside it images to classify."""
    folder = tmp_path_factory.mktemp("images")
    classes = build.images(run.config(), "test")
    for number, name in enumerate(("circle", "cross", "star")):
        (folder / "support" / name).mkdir(parents=True)
        for index in range(2):
            save(classes[number][index], folder / "support" / name / f"{index}.png")
        save(classes[number][5], folder / f"{name}.png")
    return folder / "support"


def save(image, path):
    Image.fromarray(image[0]).save(path)


def queries(support):
    return sorted(support.parent.glob("*.png"))


def by_class(support):
    return {each.name: sorted(each.iterdir()) for each in sorted(support.iterdir())}


@pytest.mark.parametrize("manner", [[], ["--transductive"], ["--no-invert", "--adapt-steps", 4]])
def test_predictions_are_printed_and_given_as_json(run, support, manner):
    arguments = ["predict", run, "--support", support, *manner, *queries(support)]
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    options = {"invert": False, "adapt_steps": 4} if "--no-invert" in manner else {}
    wanted = ms.load(run, **options).classify(
        by_class(support), queries(support), transductive="--transductive" in manner
    )
    assert found == [vars(each) for each in wanted]
    printed = invoke(*arguments)
    assert printed.exit_code == 0, printed.output
    text = "".join(printed.stdout.split())
    assert "imageclassprobability" in text
    for each in wanted:
        assert each.label in text
        assert f"{100 * each.probability:.1f}%" in text


def test_what_cannot_be_predicted_is_one_line(tmp_path, run, support):
    image = queries(support)[0]
    call = ["predict", run, image, "--support"]
    assert_one_line_error(invoke("predict", run, "--support", support), "IMAGE")
    assert_one_line_error(invoke("predict", run, image), "--support")
    assert_one_line_error(invoke("predict", tmp_path, image, "--support", support), "not a run")
    assert_one_line_error(invoke(*call, tmp_path / "none"), f"no folder {tmp_path / 'none'}")
    assert_one_line_error(invoke(*call, tmp_path), f"no images {tmp_path}/CLASS/*")
    assert_one_line_error(invoke(*call, support / "star"), "a folder of images for each class")
    assert_one_line_error(
        invoke("predict", run, tmp_path / "gone.png", "--support", support), "gone.png: not a"
    )
    assert_one_line_error(
        invoke(*call, support, "--distribution", "cub"), "load: expected distribution to be one of"
    )
    many = tmp_path / "many"
    for number in range(4):
        (many / str(number)).mkdir(parents=True)
        save(np.zeros((1, 16, 16), np.uint8), many / str(number) / "0.png")
    assert_one_line_error(invoke(*call, many), "expected support to be of 2 to 3 classes")
    shutil.rmtree(many / "3")
    (many / "0" / "0.png").write_text("no image")
    assert_one_line_error(invoke(*call, many), "0.png")


def test_files_that_are_no_images_are_named(run, support):
    note = support / "star" / "notes.txt"
    note.write_text("mine")
    try:
        with pytest.warns(UserWarning, match=r"left out 1 files that are no images: .*notes.txt"):
            result = invoke("predict", run, queries(support)[0], "--support", support)
    finally:
        note.unlink()
    assert result.exit_code == 0, result.output
