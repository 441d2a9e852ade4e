"""Runs of networks that take several inputs: a tuple of arguments, or a dict of keywords."""

import pytest
import torch
from PIL import Image
from support import own_parts
from support.training_helpers import one_line
from test_own_parts import MINE, config, invoke, small_flags
from test_own_training import resumed_exactly
from torch.utils.data import DataLoader

from metasparse_ext.algorithms import MAML, MetaTicket
from metasparse_ext.data import Samples, TaskBatch
from metasparse_ext.nn import cost
from metasparse_ext.training import Run, Trainer, evaluate_run, load, metrics, predict

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = {"two_inputs": ((1, 8, 8), ()), "named_inputs": {"image": (1, 8, 8), "word": ()}}


@pytest.mark.parametrize(
    ("data", "manner"), [("two_inputs", "--transductive"), ("named_inputs", "--no-transductive")]
)
def test_from_the_command_line(tmp_path, data, manner):
    folder = tmp_path / "run"
    parts = {"data": f"{MINE}:{data}", "model": f"{MINE}:pair", "memory": "100GiB"}
    for length, resume in ((3, []), (6, ["--resume"])):
        flags = [*small_flags(**parts, iterations=length), manner]
        trained = invoke("train", "maml", *flags, "--out", folder, *resume)
        assert trained.exit_code == 0, trained.output
    assert Run(folder).image_shape() == SHAPES[data]
    assert metrics.read(Run(folder).metrics_path)[-1]["iteration"] == 6
    evaluated = invoke("evaluate", folder, "--tasks", 5)
    assert evaluated.exit_code == 0, evaluated.output
    support = tmp_path / "support"
    for name in "ab":
        (support / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(support / name / "x.png")
    for command in (
        ["predict", folder, support / "a" / "x.png"],
        ["export", folder, "--out", tmp_path / "x.pt2"],
    ):
        refused = invoke(*command, "--support", support)
        one_line(refused)
        assert "classes of images apart" in refused.stderr


@pytest.mark.parametrize("data", SHAPES)
def test_resume_is_exact(tmp_path, data):
    asked = config(data=f"{MINE}:{data}", model=f"{MINE}:pair")
    assert resumed_exactly(tmp_path, asked)[-1]["kind"] == "validation"


def test_loaders_and_objects(tmp_path):
    """What torch's loader makes of a tuple of inputs is a list."""
    data = dict.fromkeys(("train", "val", "test"), DataLoader(own_parts.TwoInputs(), batch_size=2))
    run, net = Run(tmp_path / "run"), own_parts.Pair()
    asked = config(data="glyphs", model="conv4")
    Trainer(asked, run, data=data, model=net).fit()
    found = evaluate_run(run, data=data, model=net)
    assert found.numbers["dense_macs"] == 3 * 68
    with pytest.raises(ValueError, match=r"expected run to be one that tells classes of images"):
        load(run, model=net)


@pytest.mark.parametrize("transductive", [True, False])
def test_several_outputs(tmp_path, transductive):
    parts = {"model": "Named", "loss": "named_loss", "metric": "named_accuracy"}
    named = {part: f"{MINE}:{name}" for part, name in parts.items()}
    asked = config(data=f"{MINE}:two_inputs", transductive=transductive, **named)
    assert resumed_exactly(tmp_path, asked)[-1]["measure"] == "named_accuracy"
    found = evaluate_run(Run(tmp_path / "whole"))
    assert found.numbers["transductive"] == transductive
    one, other = (evaluate_run(Run(tmp_path / "whole"), transductive=way) for way in (True, False))
    assert one.score == pytest.approx(other.score)  # nothing looks at a batch


@pytest.mark.parametrize("data", SHAPES)
def test_tickets_count_what_they_pass_forward(data):
    support, query = (
        Samples(*part) for part in next(getattr(own_parts, data)(split="val", seed=3, tasks=2))
    )
    learner = MetaTicket(own_parts.Pair(), inner_steps=2, density=0.5, rounds=1, skip=["bias"])
    learner.meta_backward(TaskBatch(support, query))
    learner.stepped(1, 0.0)
    passed = 2 * support.labels.shape[1] + query.labels.shape[1]
    assert learner.macs == (passed * 3 * 68, 0)


def test_each_query_beside_the_support_set():
    """With nothing that looks at a batch the two manners agree."""
    learner = MAML(own_parts.Pair().double(), inner_lr=0.1, inner_steps=1)
    for data in (own_parts.two_inputs, own_parts.named_inputs):
        support, query = (Samples(*part) for part in next(data(split="val", seed=3, tasks=2)))
        double = own_parts.double
        adapted = learner.adapt(double(support))
        images = double(query).images
        alone = predict(adapted, double(support), images, transductive=False)
        torch.testing.assert_close(alone, adapted(images).detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ((), "expected support.images to be at least one tensor"),
        ((torch.rand(2, 3, 4), torch.rand(2, 5)), r"to be \(T, N, ...\) = \(2, 5\)"),
        ({"a": [1]}, r"expected support.images\['a'\] to be a tensor"),
    ],
)
def test_inputs_that_do_not_fit_are_named(tmp_path, inputs, sentence):
    pair = (inputs, torch.zeros(2, 3, dtype=torch.int64))
    data = {split: [(pair, pair)] for split in ("train", "val")}
    with pytest.raises((ValueError, TypeError), match=sentence):
        Trainer(config(model=f"{MINE}:pair"), Run(tmp_path / "run"), data=data)


def test_networks_by_our_names_take_one_input(tmp_path):
    flags = small_flags(data=f"{MINE}:two_inputs", model=None)
    refused = invoke("train", "maml", *flags, "--out", tmp_path / "run")
    one_line(refused)
    assert "expected model to be a network of one's own" in refused.stderr


def test_cost_of_several_inputs():
    net = own_parts.Pair()
    shapes = (1, 8, 8), ()
    assert cost(net, shapes, dtype=(None, torch.int64)).macs == 3 * 68
    by_name = dict(zip(("image", "word"), shapes, strict=True))
    assert cost(net, by_name, dtype={"word": torch.int64}).macs == 3 * 68
    with pytest.raises(ValueError, match="expected dtype to be 2 dtypes"):
        cost(net, shapes, dtype=(None,))
