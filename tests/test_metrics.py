"""The file of metrics: what a crash may cut, and what is damage."""

import pytest

from metasparse_ext.training import CheckpointError, metrics


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_records_come_back_in_order(path):
    with metrics.MetricsFile(path) as file:
        for number in range(3):
            file.write({"kind": "train", "iteration": number})
            assert len(metrics.read(path)) == number + 1
    assert [record["iteration"] for record in metrics.read(path)] == [0, 1, 2]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_number_that_json_has_not_is_refused(path, loss):
    with metrics.MetricsFile(path) as file, pytest.raises(ValueError):
        file.write({"loss": loss})
    assert metrics.read(path) == []


def test_a_last_line_that_is_cut_is_left_out_by_name(path, caplog):
    path.write_text('{"kind": "train", "iteration": 1}\n{"itera')
    assert metrics.read(path) == [{"kind": "train", "iteration": 1}]
    assert "metrics.jsonl, line 2: cut short" in caplog.text
    metrics.truncate(path, 1)
    assert path.read_text() == '{"kind": "train", "iteration": 1}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"kind": "train", "iteration": 1}\n{"itera\n{"kind": "train", "iteration": 3}\n',
            r"metrics\.jsonl, line 2: not JSON",
        ),
        (
            '{"kind": "train", "iteration": 1}\n3\n{"kind": "train", "iteration": 3}\n',
            r"line 2: expected a JSON object, got b'3",
        ),
        (
            '{"kind": "train", "iteration": 1}\n' + "[" * 100_000 + "\n",
            r"line 2: not JSON \(maximum recursion depth",
        ),
        ('{"kind": "train", "iteration": 1}\n\0\0\n', r"line 2: not JSON \(Expecting value"),
        ('{"kind": "train", "iteration": 1}\n{"iter', r"expected the 2 records .* got 1"),
        ("", r"expected the 2 records .* got 0"),
    ],
)
def test_anything_worse_is_an_error(path, text, message):
    path.write_text(text)
    with pytest.raises(CheckpointError, match=message):
        metrics.truncate(path, 2)
    assert path.read_text() == text


def test_a_missing_file_is_named(path):
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: there is no such file"):
        metrics.read(path)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: there is no such file"):
        metrics.truncate(path, 1)
    metrics.truncate(path, 0)
