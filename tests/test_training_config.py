"""Run configurations: the JSON they become, and what they refuse."""

import pytest

from metasparse_ext.training import RunConfig


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
        ("evaluation_queries", 0),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        RunConfig(learner="maml", **{field: value})


def test_both_kinds_of_clipping_are_refused():
    with pytest.raises(ValueError, match="clip_norm and clip_value"):
        RunConfig(learner="maml", clip_norm=1.0, clip_value=1.0)


def test_unknown_fields_are_refused():
    with pytest.raises(ValueError, match="unknown field depth"):
        RunConfig.from_dict({"learner": "maml", "depth": 4})


def test_a_learner_is_required():
    with pytest.raises(ValueError, match="no learner"):
        RunConfig.from_dict({"ways": 5})
