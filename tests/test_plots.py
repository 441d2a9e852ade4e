"""Figures: written, of a size that can be read, and saying what they should."""

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from metasparse_ext import plots


@pytest.fixture
def drawn(monkeypatch):
    """Collects the figures that are written."""
    figures = []
    original = Figure.savefig

    def collected(self, *args, **kwargs):
        figures.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", collected)
    return figures


def texts(figure):
    return [text.get_text() for text in figure.findobj(match=lambda a: hasattr(a, "get_text"))]


def training(iterations, active=1.0):
    return [
        {"iteration": i, "kind": "train", "accuracy": 0.5, "active": active}
        for i in range(1, iterations + 1)
    ]


VALIDATION = {"iteration": 4, "kind": "validation", "accuracy": 0.6, "interval": 0.01}


def test_kernel_usage_shows_three_states_per_layer(tmp_path, drawn):
    layer = np.array([[1.0, 0.0], [0.5, 1.0], [0.0, 1.0]])
    plots.kernel_usage({"one": layer, "two": layer.T}, tmp_path / "k.png", title="Kernels")
    (figure,) = drawn
    first, second = (axes for axes in figure.axes)
    assert first.images[0].get_array().tolist() == [[2, 0], [1, 2], [0, 2]]
    assert second.images[0].get_array().tolist() == [[2, 1, 0], [0, 2, 2]]
    assert first.get_title() == "one\n58 % active"
    assert first.get_ylabel() == "output channel"
    assert {"used by every task", "used by some tasks", "never used (pruned)"} <= set(texts(figure))


def test_accuracy_against_macs_has_intervals_units_and_labels(tmp_path, drawn):
    points = [plots.Point("dense", 3e6, 0.95, 0.01), plots.Point("pruned", 1.5e6, 0.94, 0.02)]
    plots.accuracy_against_macs(points, tmp_path / "a.png")
    axes = drawn[0].axes[0]
    assert axes.get_xlabel() == "multiply-accumulates per image (millions)"
    assert "95 % interval" in axes.get_ylabel()
    assert {"dense\n95.0 %", "pruned\n94.0 %"} <= set(texts(drawn[0]))
    low, high = axes.get_ylim()
    assert low < 0.92
    assert high > 0.96


def test_learning_curves_show_pruning_only_where_there_is_some(tmp_path, drawn):
    dense, pruned = training(4), training(4, active=0.5)
    plots.learning_curves({"dense": [*dense, VALIDATION]}, tmp_path / "one.png")
    plots.learning_curves({"dense": dense, "pruned": [*pruned, VALIDATION]}, tmp_path / "two.png")
    assert [len(figure.axes) for figure in drawn] == [1, 2]
    assert drawn[1].axes[1].get_ylabel() == "active kernels"


def test_learning_curves_against_seconds(tmp_path, drawn):
    records = [{**record, "elapsed": 2.0 * record["iteration"]} for record in training(4)]
    plots.learning_curves({"run": records}, tmp_path / "s.png", against="elapsed")
    axes = drawn[0].axes[0]
    assert axes.get_xlabel() == "processor seconds"
    assert axes.lines[0].get_xdata().tolist() == [2, 4, 6, 8]
    with pytest.raises(ValueError, match="learning_curves: expected against to be one of"):
        plots.learning_curves({"run": records}, tmp_path / "s.png", against="epochs")


@pytest.mark.parametrize("name", ["k.png", "folder/k.png", "k.pdf", "k.svg"])
def test_pictures_are_written_in_the_format_of_their_name(tmp_path, name):
    plots.kernel_usage({"one": np.ones((2, 2))}, tmp_path / name)
    assert (tmp_path / name).stat().st_size > 1000


def test_pictures_are_large_enough_to_print(tmp_path):
    plots.kernel_usage({f"{i}": np.ones((8, 8)) for i in range(4)}, tmp_path / "k.png")
    height, width = matplotlib.image.imread(tmp_path / "k.png").shape[:2]
    assert width >= 1500
    assert height >= 600


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda path: plots.kernel_usage({}, path),
            "kernel_usage: expected usage to be of at least one layer",
        ),
        (
            lambda path: plots.kernel_usage({"one": np.ones(3)}, path),
            r"usage\['one'\] to be a matrix .* got \(3,\)",
        ),
        (lambda path: plots.kernel_usage({"one": np.full((2, 2), 1.5)}, path), r"in \[0, 1\]"),
        (lambda path: plots.accuracy_against_macs([], path), "at least one point"),
        (lambda path: plots.learning_curves({"run": []}, path), "at least one record"),
    ],
)
def test_nothing_to_draw_is_an_error(tmp_path, draw, message):
    with pytest.raises(ValueError, match=message):
        draw(tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_the_style_of_other_figures_is_left_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    plots.kernel_usage({"one": np.ones((2, 2))}, tmp_path / "k.png")
    assert dict(matplotlib.rcParams) == before
