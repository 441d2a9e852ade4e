import os

import pytest
import torch
from support.host import FakeGraph
from support.training_helpers import write_tiny_sets

from metasparse_ext import _capture
from metasparse_ext.data import pixel_cache

# cuBLAS reads it when it starts: with it, a product of matrices is the same every time.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)

if not torch.cuda.is_available():
    # Triton reads it when it is imported: kernels then run on the CPU, line by line in NumPy.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _decoded_images(tmp_path_factory):
    """What tests decode is kept in a folder of their own, not in that of the user."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("decoded")
        patch.setattr(pixel_cache, "cache_folder", lambda: folder)
        yield


@pytest.fixture
def deterministic_cudnn(monkeypatch):
    """cuDNN sums in the same order every time, and float32 in full float32."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(params=["cpu", CUDA] if torch.cuda.is_available() else ["cpu"])
def device(request, deterministic_cudnn):
    """Every device there is, as the default one: what a test creates lies there.

    Tests marked ``host`` are of the CPU's kernels, or of errors that only it can raise without
    waiting for the device.
    """
    if request.param == "cpu":
        yield "cpu"
    elif "host" in request.keywords:
        pytest.skip("of the CPU alone")
    else:
        with torch.device(request.param):
            yield request.param


@pytest.fixture
def poisoned_memory():
    """Fresh tensors hold NaN, so that an element an op forgets to write is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def fake_graph(monkeypatch):
    """Lets capture go all its way on the CPU, with graphs that are none."""
    monkeypatch.setattr(_capture, "_CudaGraph", FakeGraph)
    monkeypatch.setattr(_capture, "_obstacle", lambda device: None)


@pytest.fixture(scope="module")
def one_thread():
    """Networks as small as those of the training tests only lose time to a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    """A folder with data sets of the names omniglot and cifar-fs that are quick to learn from."""
    return write_tiny_sets(tmp_path_factory.mktemp("tiny-sets"))
