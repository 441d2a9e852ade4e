import pytest
import torch
from training_helpers import write_tiny_omniglot


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def poisoned_memory():
    """Fresh tensors hold NaN, so that an element an op forgets to write is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def one_thread():
    """Networks as small as those of the training tests only lose time to a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    """A folder with a data set of the name omniglot that is quick to learn from."""
    return write_tiny_omniglot(tmp_path_factory.mktemp("tiny-omniglot"))
