"""Every code block of the documents, and every cell of the notebooks, runs as it is printed."""

import json
from pathlib import Path

import pytest
from support.document_inputs import GIVEN
from support.documents import (
    DOCUMENTS,
    LANGUAGES,
    NOTEBOOKS,
    ROOT,
    Block,
    Reading,
    blocks,
    run_command,
)

from metasparse_ext.training import Run, metrics

BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]
RUNNING = [block for block in BLOCKS if block.language in ("python", "sh")]


@pytest.fixture(scope="module")
def readings():
    return {}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("block", RUNNING, ids=str)
def test_block(block, readings, tmp_path_factory, monkeypatch, capsys):
    document = block.document
    if document not in readings:
        given = GIVEN.get(document, lambda folder: {})
        readings[document] = Reading(document, tmp_path_factory.mktemp("document"), given)
    reading = readings[document]
    monkeypatch.setenv("MPLBACKEND", "agg")
    reading.run(block)
    monkeypatch.chdir(reading.folder)
    for (where, words), check in CHECKS.items():
        if where == document and words in block.text:
            check(reading.names, capsys.readouterr().out)


def check_own_parts(names, printed):
    accuracies = [r["accuracy"] for r in metrics.read(Run("runs/mine").metrics_path)]
    assert accuracies[-1] > 0.5


def check_settings(names, printed):
    assert Run("runs/file").config().options == {"inner_lr": 0.2}
    assert Run("runs/again").config() == Run("runs/file").config().replace(seed=1)


def check_sweeps(names, printed):
    seeds = sorted(path.name for path in Path("runs/seeds").iterdir())
    assert seeds == ["seed-0", "seed-1", "seed-2"]
    assert len(list(Path("runs/sweep").iterdir())) == 4


def check_regression(names, printed):
    records = metrics.read(Run("runs/waves").metrics_path)
    errors = [record["mse"] for record in records if record["kind"] == "train"]
    assert sum(errors[-20:]) < sum(errors[:20])
    assert "mae" in metrics.read(Run("runs/lines").metrics_path)[-1]


def check_refusal(names, printed):
    assert "evaluate_run: expected data to be given, because the run was trained with" in printed


def check_learner(names, printed):
    assert names["logits"].shape == (4, 75, 5)


def check_tasksets(names, printed):
    assert all(p.grad is not None for p in names["net"].parameters())
    assert names["metrics"].loss.shape == (4,)


def check_pruned(names, printed):
    assert {run.folder.name for run in (names["dense"], names["half"])} == {"dense", "half"}
    assert len(names["layers"]) == 3


def check_exported(names, printed):
    assert names["prediction"].label in names["images"]
    assert Path("characters.metasparse").stat().st_size


def check_ticket(names, printed):
    sizes = sum(mask.numel() for mask in names["masks"].values())
    assert sum(float(mask.sum()) for mask in names["masks"].values()) / sizes < 0.25


def check_files(names, printed):
    assert all(Path(f"pets.{ending}").stat().st_size for ending in ("pt2", "onnx", "safetensors"))
    assert Path("masks.npz").exists()


# What holds after a block, by the words that tell it from the other blocks of its document.
CHECKS = {
    ("README.md", "adapted = learner.adapt(batch.support)"): check_learner,
    ("docs/own.md", "metasparse evaluate runs/mine"): check_own_parts,
    ("docs/own.md", "--out runs/again"): check_settings,
    ("docs/own.md", "--seeds 0,1,2"): check_sweeps,
    ("docs/own.md", "metasparse evaluate runs/waves"): check_regression,
    ("docs/own.md", "evaluate_run(run)\n"): check_refusal,
    ("docs/learn2learn.md", "in zip(from_learn2learn"): check_tasksets,
    ("docs/out.md", "--out masks.npz"): check_files,
    ("notebooks/prune_your_own_network.ipynb", "axes = plt.subplots"): check_pruned,
    ("notebooks/prune_your_own_network.ipynb", "ms.load_sparse("): check_exported,
    ("notebooks/a_winning_ticket.ipynb", "axis.bar("): check_ticket,
}


@pytest.mark.parametrize("where", CHECKS, ids=lambda where: where[0])
def test_a_check_is_of_one_block(where):
    document, words = where
    assert sum(words in block.text for block in RUNNING if block.document == document) == 1


def test_every_block_says_what_it_is():
    assert not [str(block) for block in BLOCKS if block.language not in LANGUAGES]


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_is_kept_without_outputs(notebook):
    held = json.loads((ROOT / notebook).read_text(encoding="utf-8"))
    code = [cell for cell in held["cells"] if cell["cell_type"] == "code"]
    assert len(code) > 3
    assert not [cell["id"] for cell in code if cell["outputs"] or cell["execution_count"]]


class TestTheMechanism:
    """What is wrong in a document is found, at its line."""

    def test_an_error_has_the_line_of_the_document(self, tmp_path, monkeypatch):
        monkeypatch.setattr("support.documents.blocks", lambda document: [block, after])
        block = Block("docs/x.md", 12, "python", "a = 1\nb = unknown\n")
        after = Block("docs/x.md", 20, "python", "assert a == 1\n")
        reading = Reading("docs/x.md", tmp_path, lambda folder: {})
        reading.run(after)  # that another block failed is the matter of that block's test
        with pytest.raises(NameError) as caught:
            reading.run(block)
        assert caught.traceback[-1].lineno + 1 == 14
        assert Path(caught.traceback[-1].path) == ROOT / "docs/x.md"

    @pytest.mark.parametrize(
        "line",
        [
            "metasparse train nothing --out runs/x",
            "python -m benchmarks.study --no-such-flag",
            "make no-such-target",
            "pip install 'metasparse_ext[no-such-extra]'",
            "rm -r everything",
        ],
    )
    def test_commands_that_do_not_exist_are_found(self, line):
        with pytest.raises(AssertionError):
            run_command("docs/x.md", line)
