"""The presets are the published tables, and every one of them runs."""

import inspect
from pathlib import Path

import pytest
import torch
from support.plain_tasks import Samples, TaskBatch

from metasparse_ext.algorithms import LEARNERS
from metasparse_ext.nn import Conv4
from metasparse_ext.presets import PRESETS, preset
from metasparse_ext.training.build import network, resolved
from metasparse_ext.training.config import RunConfig


@pytest.mark.parametrize(
    ("name", "inner_lr", "meta_lr", "steps"),
    [
        ("cifar-fs/5way-5shot", 5e-3, 5e-5, 16),
        ("cifar-fs/5way-1shot", 1e-2, 5e-4, 16),
        ("mini-imagenet/5way-5shot", 1e-2, 5e-5, 10),
        ("mini-imagenet/5way-1shot", 5e-3, 5e-4, 10),
    ],
)
def test_table_1_of_metadock(name, inner_lr, meta_lr, steps):
    for learner in ("imaml", "metadock"):
        found = preset(f"{learner}/{name}")
        assert found.options["inner_lr"] == inner_lr
        assert found.options["inner_steps"] == steps
        assert (found.meta_lr, found.tasks, found.adam_eps) == (meta_lr, 4, 1e-3)
        assert (found.iterations, found.queries) == (60_000, found.shots)


def test_maml_steps_are_those_of_its_summed_loss():
    assert preset("maml/omniglot/5way-1shot").options["inner_lr"] == pytest.approx(0.4 * 5)
    assert preset("maml/omniglot/20way-1shot").options["inner_lr"] == pytest.approx(0.1 * 20)
    assert preset("fomaml/mini-imagenet/5way-5shot").options["inner_lr"] == pytest.approx(0.01 * 5)


def test_reptile_trains_on_its_train_shots():
    for name, images in (("omniglot/5way-5shot", 10), ("mini-imagenet/5way-1shot", 15)):
        found = preset(f"reptile/{name}")
        assert found.shots + found.queries == images
        assert (found.optimizer, found.meta_lr, found.schedule) == ("sgd", 1.0, "linear")
    assert preset("reptile/mini-imagenet/5way-5shot").options["adapt_batch"] == 15
    assert preset("reptile/omniglot/20way-1shot").options["inner_lr"] == 5e-4


def test_gems_compares_its_learners_under_one_setting():
    settings = [
        {**preset(f"{learner}/cub+aircraft/5way-1shot").settings(), "learner": None}
        for learner in ("maml", "multi-maml", "bmp", "mmsup")
    ]
    assert all(setting == settings[0] for setting in settings)
    assert (settings[0]["meta_lr"], settings[0]["tasks"]) == (1e-4, 5)
    assert settings[0]["iterations"] == 30_000

    assert settings[0]["seed"] == 21


def test_metadock_validates_as_its_code():
    for learner in ("imaml", "metadock"):
        found = preset(f"{learner}/cifar-fs/5way-1shot")
        assert (found.seed, found.validate_every, found.validation_tasks) == (10, 1000, 600)


@pytest.mark.parametrize(
    ("name", "inputs", "order", "bound"),
    [
        # hypertorch's get_cnn_omniglot and get_cnn_miniimagenet
        ("imaml/omniglot-hypertorch/5way-1shot", 64, "act_pool_norm", None),
        ("imaml/mini-imagenet-hypertorch/5way-1shot", 32 * 5 * 5, "act_pool_norm", None),
        # make_conv_network of iMAML's code; reduce_mean of MAML's; 5x5 maps of CAVIA's
        ("imaml/omniglot/5way-1shot", 64 * 2 * 2, "norm_act_pool", 1.73 * (6 / 1152) ** 0.5),
        ("maml/omniglot/5way-1shot", 64, "norm_act_pool", (6 / 1152) ** 0.5),
        ("cavia/mini-imagenet/5way-1shot", 32 * 5 * 5, "norm_pool_act", (6 / 288) ** 0.5),
    ],
)
def test_networks_are_those_of_the_codes(name, inputs, order, bound):
    config = RunConfig(**preset(name).settings())
    channels = 1 if "omniglot" in name else 3
    net = network(config, (channels, config.image_size, config.image_size))
    block, head = net.blocks[1], net.head
    assert (head.in_features, block.norm.order) == (inputs, order)
    largest = block.conv.weight.abs().max().item()
    if bound is None:
        std = (2 / (9 * config.width)) ** 0.5
        assert block.conv.weight.std().item() == pytest.approx(std, rel=0.05)
        assert not any(each.any() for each in (head.weight, head.bias, block.conv.bias))
    else:
        assert 0.99 * bound < largest <= bound


def test_tests_on_turned_characters_are_those_of_the_codes():
    turned = {name for name, found in PRESETS.items() if "rotated_classes=true" in found.data}
    sources = {name.rpartition("/")[0] for name in turned}
    codes = {"imaml/omniglot", "imaml/omniglot-hypertorch", "maml/omniglot-learn2learn"}
    assert sources == codes
    assert not any(PRESETS[name].rotations for name in turned)


def test_multi_maml_has_a_rate_for_each_data_set():
    found = preset("multi-maml/mmaml-3-modes/20way-1shot")
    assert found.data == "omniglot+folder:mini-imagenet+folder:fc100"
    assert found.options["inner_lr"] == (0.1, 0.01, 0.01)
    assert preset("multi-maml/mmaml-2-modes/5way-5shot").options["inner_lr"] == (0.4, 0.01)


def test_every_learner_has_a_source_and_is_documented():
    for learner in LEARNERS.values():
        assert "source" in vars(learner)
        assert learner.source.paper
        assert learner.source.exact
    text = (Path(__file__).parent.parent / "docs" / "learners.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in LEARNERS)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_run(name):
    found = preset(name)
    config = RunConfig(preset=name, **found.settings())
    assert name.split("/")[0] == config.learner
    assert name.endswith(f"{config.ways}way-{config.shots}shot")
    accepted = inspect.signature(LEARNERS[config.learner]).parameters
    short = {name: 1 for name in ("inner_steps", "adapt_steps") if name in accepted}
    options = {**resolved(config).options, **short}
    net = Conv4(1, 16, 2, config.ways, strided=config.strided)
    learner = LEARNERS[config.learner](net, **options)
    samples = Samples(
        torch.rand(2, config.ways, 1, 16, 16),
        torch.arange(config.ways).expand(2, -1),
        torch.arange(2) if "+" in config.data else None,
    )
    assert learner.meta_backward(TaskBatch(samples, samples)).loss.isfinite().all()


def test_an_unknown_preset_lists_the_known():
    with pytest.raises(
        ValueError, match=r"preset: expected name to be one of 'anil/cifar-fs.*, got 'maml/mnist'"
    ):
        preset("maml/mnist")
