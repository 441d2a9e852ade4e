"""Files of adapted networks: what other programs read of them, and what they say of themselves."""

import json
import subprocess
import sys

import pytest
import safetensors
import torch
from safetensors.torch import load_file
from support.exported import task_images
from support.training_helpers import tiny_config
from torch import nn

import metasparse_ext as ms
from metasparse_ext.export.files import SETTINGS, program
from metasparse_ext.nn import MaskedConv2d, ResNet12
from metasparse_ext.training import Run, Trainer, build

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ["class 20", "class 21", "class 22"]

# In a process in which this package cannot be imported.
READER = """
import json, sys
sys.modules["metasparse_ext"] = None
import torch
extra = {"metasparse.json": ""}
program = torch.export.load(sys.argv[1], extra_files=extra)
network, images = program.module(), torch.load(sys.argv[2])
with torch.no_grad():
    logits = [network(images), network(images[:1])]
torch.save(logits, sys.argv[3])
print(json.dumps([extra["metasparse.json"], sorted({str(n.target) for n in program.graph.nodes})]))
"""


@pytest.fixture(scope="module")
def trained(tiny_root, tmp_path_factory, one_thread):
    run = Run(tmp_path_factory.mktemp("runs") / "metadock")
    Trainer(tiny_config(tiny_root, "metadock", iterations=2), run).fit()
    return ms.load(run)


@pytest.fixture(scope="module")
def images(trained):
    return task_images(build.images(trained.run.config(), "test"))


@pytest.fixture(scope="module")
def task(trained, images):
    return trained.adapt(images[0])


def check_settings(settings, transductive=False):
    assert json.loads(settings["classes"]) == CLASSES
    assert json.loads(settings["images"])["shape"] == [1, 16, 16]
    assert settings["input"] == "float32 (N, 1, 16, 16), pixels / 255"
    of = "of the images given" if transductive else "of the support set"
    assert settings["statistics"] == of
    assert settings["learner"] == "metadock"
    assert settings["data"] == "omniglot"
    assert json.loads(settings["iteration"]) == int(settings["iteration"]) <= 2


@pytest.mark.parametrize("transductive", [False, True])
def test_a_program_runs_without_this_package(tmp_path, task, images, transductive):
    query = images[1] / 255
    task.export(tmp_path / "task.pt2", transductive=transductive)
    torch.save(query, tmp_path / "query.pt")
    done = subprocess.run(
        [sys.executable, "-c", READER, *(tmp_path / n for n in ("task.pt2", "query.pt", "out.pt"))],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    network = task.network(transductive=transductive)
    settings, called = json.loads(done.stdout)
    check_settings(json.loads(settings), transductive)
    assert not any("metasparse" in each for each in called)
    several, one = torch.load(tmp_path / "out.pt")
    torch.testing.assert_close(several, network(query), rtol=1e-5, atol=1e-5)
    if not transductive:
        torch.testing.assert_close(one, several[:1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transductive", [False, True])
def test_onnx_computes_the_same_of_any_number_of_images(tmp_path, task, images, transductive):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path, network = tmp_path / "task.onnx", task.network(transductive=transductive)
    task.export(path, "onnx", transductive=transductive)
    onnx.checker.check_model(path, full_check=True)
    session = runtime.InferenceSession(path)
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape) == ("images", ["count", 1, 16, 16])
    assert (made.name, made.shape) == ("logits", ["count", 3])
    check_settings(session.get_modelmeta().custom_metadata_map, transductive)
    query = images[1] / 255
    for count in (9, 2, 1)[: 3 - transductive]:
        (found,) = session.run(None, {"images": query[:count].numpy()})
        wanted = network(query[:count])
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-5, atol=1e-5)


def test_onnx_of_a_residual_network():
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from metasparse_ext.export.files import _onnx
    from metasparse_ext.export.plain import plain_network
    from metasparse_ext.export.statistics import fix_statistics

    network = plain_network(ResNet12(3, 16, 4, 5), {}, {}, 5)
    images = torch.rand(6, 3, 16, 16)
    fix_statistics(network, images)
    session = runtime.InferenceSession(_onnx(network, (3, 16, 16), {}))
    (found,) = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), network(images), rtol=1e-5, atol=1e-5)


def test_tensors_are_those_of_the_network(tmp_path, task):
    path = tmp_path / "task.safetensors"
    task.export(path)
    wanted, found = task.network().state_dict(), load_file(path)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    with safetensors.safe_open(path, "pt") as file:
        check_settings(file.metadata())


def test_a_layer_of_ones_own_that_calls_our_ops_becomes_operators_of_torch():
    class Twice(MaskedConv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    exported = program(Twice(3, 4, 3).eval().requires_grad_(False), (3, 8, 8))
    assert not any("metasparse" in str(node.target) for node in exported.graph.nodes)


def test_a_network_that_no_program_can_be_made_of_is_refused_in_words():
    class Chooses(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"expected the network to be one that torch\.export can"):
        program(Chooses(), (3, 8, 8))


def test_a_run_leaves_in_one_call_and_replaces_what_was_there(tmp_path, trained, task, images):
    path = tmp_path / "task.metasparse"
    path.write_text("former")
    trained.export(images[0], str(path), "metasparse", transductive=True)
    check_settings(ms.load_sparse(path).settings, transductive=True)
    assert [each.name for each in tmp_path.iterdir()] == ["task.metasparse"]


def test_a_program_in_a_file_keeps_its_settings(tmp_path, task):
    task.export(tmp_path / "task.pt2")
    extra = {SETTINGS: ""}
    torch.export.load(tmp_path / "task.pt2", extra_files=extra)
    check_settings(json.loads(extra[SETTINGS]))


def test_what_cannot_be_written_is_refused_in_words(tmp_path, task, monkeypatch):
    ending = r"export: expected out to be a file that ends in \.pt2, \.onnx, .*got '.*task\.pth'"
    with pytest.raises(ValueError, match=ending):
        task.export(tmp_path / "task.pth")
    with pytest.raises(ValueError, match=r"expected out to be a file that ends in \.onnx, for"):
        task.export(tmp_path / "task.pt2", "onnx")
    with pytest.raises(ValueError, match=r"expected to to be one of 'torch', 'onnx'"):
        task.export(tmp_path / "task.pt2", "tensorflow")
    with pytest.raises(TypeError, match="expected transductive to be True or False"):
        task.export(tmp_path / "task.pt2", transductive="no")
    with pytest.raises(TypeError, match="export: expected out to be a path"):
        task.export(3)
    with pytest.raises(FileNotFoundError, match="absent"):
        task.export(tmp_path / "absent" / "task.pt2")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="onnx and onnxscript: pip install onnx onnxscript"):
        task.export(tmp_path / "task.onnx")
    assert not list(tmp_path.iterdir())
