"""Launches of a meta-step on a GPU: the nodes of its CUDA graph, counted without one.

The bounds only ever go down. docs/gpu.md says what is left, and why.
"""

import pytest

from metasparse_ext import _library

pytest.importorskip("triton")

from tools import launches

pytestmark = pytest.mark.skipif(_library.problem is not None, reason="no compiled library")

# By learner: at most so many with the convolutions of Triton, and by the default rule, which for 64
# channels is a call of cuDNN for each task.
BOUNDS = {
    "MetaDOCK": (1300, 2472),
    "IMAML": (960, 2273),
    "MAML": (528, 1229),
    "ConvexIMAML": (110, 151),
}
#: What a meta-step is to come to with our own convolutions.
GOALS = {"MetaDOCK": 650, "IMAML": 500, "MAML": 330, "ConvexIMAML": 150}


@pytest.mark.parametrize("learner", BOUNDS)
def test_nodes_of_a_meta_step(learner):
    assert launches.CASES.keys() == BOUNDS.keys() == GOALS.keys()
    counts = [launches.nodes(learner, backend) for backend in launches.WAYS.values()]
    for most, count in zip(BOUNDS[learner], counts, strict=True):
        assert count.total() <= most, launches.table({learner: count})
        assert count["forward_kernel"] >= 8, "the blocks of the network are among them"


def test_what_counts_as_a_launch():
    """Kernels do, those inside compositions too; views and memory do not."""
    assert launches._launches_of("aten::mul") == 1
    assert launches._launches_of("aten::empty_strided") is None
    assert launches._launches_of("aten::clone") is None  # its copy_ counts
    assert launches._launches_of("aten::copy_") == 1
    assert launches._launches_of("metasparse::masked_conv") is None


def test_the_program_prints_a_table(capsys):
    launches.main(["ConvexIMAML"])
    text = capsys.readouterr().out
    assert "| kernel | Triton | default |" in text
    assert "| conv_backward_kernel | 6 | 0 |" in text


def test_a_learner_that_is_not_there():
    with pytest.raises(SystemExit):
        launches.main(["SGD"])
