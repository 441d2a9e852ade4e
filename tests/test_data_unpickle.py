"""Pickles are read as data: none of what they name is run."""

import io
import os
import pickle
import subprocess

import numpy as np
import pytest

from metasparse_ext.data import DataError
from metasparse_ext.data.unpickle import read_pickle

HELD = {
    "bytes": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
    "big endian": np.arange(3, dtype=">i4"),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "texts": np.array(["ab", "c"]),
    "byte texts": np.array([b"ab", b"c"]),
    "empty": np.zeros((0, 3)),
    "flags": np.array([True, False]),
    "number": np.float32(2.5),
    "list": [1, -2.5, "text", b"bytes", None, True, (np.int64(3), [np.zeros(2)])],
    "set": {1, 2},
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "held.pkl"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_is_what_pickle_reads(path, protocol):
    path.write_bytes(pickle.dumps(HELD, protocol))
    read = read_pickle(path, "set")
    assert list(read) == list(HELD)
    for name, value in HELD.items():
        if isinstance(value, np.ndarray):
            assert read[name].dtype == value.dtype
        np.testing.assert_equal(read[name], value)


def test_a_pickle_of_python_2(path):
    """Its texts are bytes, among them the pixels of arrays and the letters that name types."""
    path.write_bytes(
        b"(dp0\nS'data'\np1\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I2\ntcnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x01\\xff'"
        b"\ntbs."
    )
    read = read_pickle(path, "set")
    assert read[b"data"].dtype == np.uint8
    assert read[b"data"].tolist() == [1, 255]


class Calls:
    """Pickled as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "call",
    [
        Calls(os.system, "touch ran"),
        Calls(subprocess.check_output, "touch ran"),
        Calls(eval, "open('ran', 'w')"),
        Calls(getattr, "", "join"),
        Calls(np.load, "file"),
        Calls(np.lib.format.open_memmap, "ran", "w+", "u1", (1,)),
        Calls(io.open, "ran", "w"),
        Calls(__import__, "os"),
    ],
    ids=lambda call: call.call[0].__name__,
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_functions_are_not_called(path, call, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path.write_bytes(pickle.dumps({"data": [call]}, protocol))
    with pytest.raises(DataError, match=r"set: cannot read .*held.pkl: it asks for \w+\.\w+.*only"):
        read_pickle(path, "set")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([{}, []], object), "expected an array of numbers"),
        (np.zeros(2, "i4,f8"), "expected an array of numbers"),
        (np.zeros(2, "V8"), "expected an array of numbers"),
        (np.ma.masked_array([1]), "it asks for numpy"),
        (np.dtype("i4"), None),
    ],
)
def test_arrays_of_other_than_numbers_and_texts(path, value, message):
    path.write_bytes(pickle.dumps(value))
    if message is None:
        read_pickle(path, "set")
        return
    with pytest.raises(DataError, match=message):
        read_pickle(path, "set")


def test_an_array_longer_than_its_bytes(path):
    held = pickle.dumps(np.zeros(3, np.uint8), 2).replace(b"K\x03\x85", b"K\x7f\x85")
    path.write_bytes(held)
    with pytest.raises(DataError, match="cannot read"):
        read_pickle(path, "set")


def test_a_list_in_itself(path):
    endless = []
    endless.append(endless)
    path.write_bytes(pickle.dumps(endless))
    with pytest.raises(DataError, match="recursion"):
        read_pickle(path, "set")


@pytest.mark.parametrize("cut", [0, 1, 10, -1])
def test_cut_short(path, cut):
    path.write_bytes(pickle.dumps(HELD)[:cut])
    with pytest.raises(DataError, match=r"set: cannot read .*held.pkl"):
        read_pickle(path, "set")


def test_the_state_of_a_known_function_cannot_be_set(path):
    path.write_bytes(b"cnumpy.core.multiarray\n_reconstruct\n}(X\x01\x00\x00\x00aK\x01ub.")
    with pytest.raises(DataError, match="the state of a function"):
        read_pickle(path, "set")
