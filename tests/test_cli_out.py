"""What leaves a run by the command line: predictions and files."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
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


def test_a_text_is_no_image(run, support, tmp_path):
    (tmp_path / "a.png").write_text("mine")
    result = invoke("predict", run, tmp_path / "a.png", "--support", support)
    assert_one_line_error(result, "a.png: not of a known image format")
    assert "BufferedReader" not in result.stderr


def test_files_that_are_no_images_are_named(run, support):
    note = support / "star" / "notes.txt"
    note.write_text("mine")
    try:
        with pytest.warns(UserWarning, match=r"left out 1 file of no image format: .*notes.txt"):
            result = invoke("predict", run, queries(support)[0], "--support", support)
    finally:
        note.unlink()
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("transductive", [False, True])
@pytest.mark.parametrize("ending", ["pt2", "safetensors", "metasparse"])
def test_a_network_is_written_as_python_writes_it(tmp_path, run, support, ending, transductive):
    out, wanted = tmp_path / f"cli.{ending}", tmp_path / f"python.{ending}"
    flags = ["--transductive"] if transductive else []
    arguments = ["export", run, "--support", support, "--out", out, *flags, "--adapt-steps", 3]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    size = f"{out.stat().st_size:,} bytes"
    assert result.stdout == f"wrote {out}, {size}: circle, cross, star\n"
    trained = ms.load(run, adapt_steps=3)
    trained.export(by_class(support), wanted, transductive=transductive)
    if ending == "pt2":  # an archive, with the times of its parts
        found, wanted = (torch.export.load(each).module() for each in (out, wanted))
        images = torch.rand(4, 1, 16, 16)
        assert torch.equal(found(images), wanted(images))
    else:
        found, wanted = load_file(out), load_file(wanted)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in found)
    assert invoke(*arguments).exit_code == 0  # over the file that is there


def test_onnx_is_written(tmp_path, run, support):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = tmp_path / "task.onnx"
    result = invoke("export", run, "--support", support, "--to", "onnx", "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"wrote {out}, ")
    assert result.stderr == ""
    found = runtime.InferenceSession(out).get_modelmeta().custom_metadata_map
    assert json.loads(found["classes"]) == ["circle", "cross", "star"]
    assert json.loads(found["images"])["inverted"] is True


def test_what_cannot_be_exported_is_one_line(tmp_path, run, support, monkeypatch):
    call = ["export", run, "--support", support, "--out"]
    out = tmp_path / "task.pt2"
    assert_one_line_error(invoke(*call, tmp_path / "a.pth"), "a file that ends in .pt2, .onnx")
    assert_one_line_error(invoke(*call, out, "--to", "onnx"), "a file that ends in .onnx, for onnx")
    assert_one_line_error(invoke(*call, out, "--to", "keras"), "'keras' is not one of 'torch'")
    gone = tmp_path / "absent" / "task.pt2"
    assert_one_line_error(invoke(*call, gone), f"{gone}: No such file or directory")
    assert_one_line_error(invoke("export", run, "--out", out), "--to torch needs --support")
    masks = ["--out", tmp_path / "masks.npz"]
    assert_one_line_error(
        invoke("export", run, "--support", support, *masks), "leave out --support"
    )
    assert_one_line_error(
        invoke("export", run, "--adapt-steps", 2, *masks), "leave out --adapt-steps"
    )
    assert_one_line_error(
        invoke("export", tmp_path, "--support", support, "--out", out), "not a run folder"
    )
    assert_one_line_error(
        invoke("export", run, "--support", tmp_path / "none", "--out", out), "export: no folder"
    )
    assert_one_line_error(
        invoke("export", run, "--support", support / "star", "--out", out), "a folder of images for"
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert_one_line_error(invoke(*call, tmp_path / "task.onnx"), "pip install onnx")
    assert not list(tmp_path.iterdir())
