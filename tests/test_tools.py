"""The programs that attack the package: their tables, and what they say of what cannot be had."""

import subprocess
import sys

import pytest
import torch

from tools import check_cpu_kernels, matrix


def test_sanitizers_leave_a_table():
    outcomes = {"address": [check_cpu_kernels.Outcome("avx2", "conv", 1344, 0, 0)]}
    text = check_cpu_kernels.table(check_cpu_kernels.NATIVE, outcomes)
    assert text.startswith("Compiled by ")
    assert text.splitlines()[-1] == "| address | conv | avx2 | 1,344 | 0 |"


@pytest.mark.parametrize(
    ("script", "cases", "failures", "status"),
    [
        ("echo 'avx2 conv 12 cases, 3 failures (1 draws, seed 0)'; exit 1", 12, 3, 1),
        ("echo AddressSanitizer: heap-buffer-overflow; exit 134", 0, 1, 134),
    ],
    ids=["wrong results", "ended early"],
)
def test_a_kernel_that_fails_is_counted(tmp_path, script, cases, failures, status):
    program = tmp_path / "check_kernels"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    found = list(check_cpu_kernels.check(check_cpu_kernels.NATIVE, program, {"conv": 1}, seed=0))
    assert {one[2:] for one in found} == {(cases, failures, status)}


def test_a_python_that_is_not_here_is_a_row(tmp_path):
    found = list(matrix.rows(["python3.99"], ["2.13.0"], tmp_path))
    assert found == [matrix.Row("python3.99", "", "", "no such Python here")]
    assert matrix.table(found).splitlines()[-1] == "| python3.99 |  |  | no such Python here |"


def test_a_torch_that_is_not_here_is_a_row(tmp_path, monkeypatch):
    def no_torch(command, step, **options):
        raise matrix.StepFailed(f"{step} failed: No matching distribution found")

    monkeypatch.setattr(matrix, "torch_of", lambda python: None)
    monkeypatch.setattr(matrix, "version", lambda python: "3.11.0")
    monkeypatch.setattr(matrix, "run", no_torch)
    (row,) = matrix.rows([sys.executable], ["2.99.0"], tmp_path)
    assert row[:4] == ("3.11.0", "2.99.0", "", "no CPU build of this torch here")
    assert not row.failed


def test_a_build_that_fails_is_a_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(
        matrix.BUILDS, "as it is", ("raise OSError('no header');", lambda folder: {})
    )
    monkeypatch.setattr(matrix, "copied", lambda folder: tmp_path)
    pair = matrix.Pair(sys.executable, "3.11.0", torch.__version__)
    row = matrix.built_and_tested(pair, "as it is", tmp_path)
    assert (row.result, row.failed) == ("building failed", True)
    assert "no header" in capsys.readouterr().out


def test_the_compiler_without_openmp_stops_at_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "echo")
    compiler = matrix.without_openmp(tmp_path)["CXX"]
    assert subprocess.run([compiler, "-O2"], check=True, capture_output=True).stdout == b"-O2\n"
    assert subprocess.run([compiler, "-fopenmp"], check=False, capture_output=True).returncode == 1
