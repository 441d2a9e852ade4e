"""What we are measured against computes what we compute."""

from dataclasses import replace

import pytest
import torch

from benchmarks import growth, peers

CASE = replace(growth.BASE, tasks=2, width=4, steps=2, density=0.5)


@pytest.mark.parametrize("name", ["learn2learn", "higher", "TorchOpt", "torch.autograd"])
def test_every_implementation_of_maml_gives_one_meta_gradient(name):
    if name not in peers.installed_maml():
        pytest.skip(f"{name} is not installed")
    steps = growth.sides(CASE, torch.float64)
    found, expected = steps[name](), steps[growth.OURS]()
    again = steps[name]()
    for ours, theirs, second in zip(expected, found, again, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-10, atol=1e-12)
        assert torch.equal(theirs, second)  # nothing is left in the network


def test_conjugate_gradients_solve():
    torch.manual_seed(0)
    root = torch.randn(6, 6).double()
    matrix, right = root @ root.T + torch.eye(6), torch.randn(6).double()
    found = peers.conjugate_gradients(lambda v: matrix @ v, right, 6)
    torch.testing.assert_close(matrix @ found, right, rtol=1e-8, atol=1e-8)
