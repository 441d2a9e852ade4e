"""Run configurations: the JSON they become, and what they refuse."""

import pytest

from metasparse_ext.training import CheckpointError, Run, RunConfig, build


def test_json_round_trip():
    config = RunConfig(learner="metadock", options={"budget": 0.5, "mode": "paper"}, mask_lr=0.01)
    assert RunConfig.from_json(config.to_json()) == config


def test_a_file_holds_the_same_options():
    config = RunConfig(learner="multi-maml", options={"inner_lr": (0.4, 0.01)})
    assert RunConfig.from_json(config.to_json()).differences(config) == []


def test_configurations_are_frozen():
    with pytest.raises(AttributeError):
        RunConfig(learner="maml").ways = 3


def test_differences_are_named():
    config = RunConfig(learner="maml")
    other = config.replace(ways=20, options={"inner_lr": 0.1})
    assert sorted(config.differences(other)) == ["options", "ways"]
    assert config.differences(config.replace()) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ways", 1),
        ("shots", 0),
        ("tasks", 2.5),
        ("iterations", True),
        ("meta_lr", 0.0),
        ("mask_lr", -1.0),
        ("clip_norm", float("nan")),
        ("optimizer", "adamw"),
        ("schedule", "step"),
        ("seed", -1),
        ("workers", -1),
        ("seed", 10**24),
        ("seed", "3"),
        ("adam_eps", float("nan")),
        ("adam_eps", -1e-8),
        ("adam_eps", float("inf")),
        ("meta_lr", "fast"),
        ("rotations", 1),
        ("root", 3),
        ("data", None),
        ("options", [1]),
        ("device", 0),
        ("evaluation_queries", 0),
        ("block_order", "pool_norm_act"),
        ("head", "max"),
        ("initialization", "orthogonal"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises((TypeError, ValueError), match=f"RunConfig: expected {field} to be"):
        RunConfig(learner="maml", **{field: value})


def test_both_kinds_of_clipping_are_refused():
    with pytest.raises(
        ValueError, match="RunConfig: expected clip_norm and clip_value to be one of them at most"
    ):
        RunConfig(learner="maml", clip_norm=1.0, clip_value=1.0)


def test_unknown_fields_are_refused():
    with pytest.raises(
        ValueError, match=r"RunConfig: expected values to be of known fields, got \['depth'\]"
    ):
        RunConfig.from_dict({"learner": "maml", "depth": 4})


def test_a_learner_is_required():
    with pytest.raises(ValueError, match="RunConfig: expected learner to be among the values"):
        RunConfig.from_dict({"ways": 5})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"learner": 3}', "RunConfig: expected learner to be text, got int 3"),
        ("null", "expected values to be a mapping"),
    ],
)
def test_a_file_of_wrong_types_is_named(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        Run(tmp_path).config()


@pytest.mark.parametrize("device", ["meta", "mps", "cpu:99", "abacus"])
def test_devices_that_cannot_be_trained_on(device):
    with pytest.raises(ValueError, match=rf"^RunConfig: expected device to be .*{device}"):
        build.learner(RunConfig(learner="maml", device=device), (1, 28, 28))
