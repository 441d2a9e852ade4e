"""Matrices of active kernels are kept between calls: they follow the mask, whoever changes it."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from support.cpu_kernels import OPS
from torch import Tensor
from torch.nn.functional import conv2d

pytestmark = pytest.mark.skipif(
    not hasattr(OPS, "set_conv_backend"), reason="the compiled library is missing"
)

X = torch.randn(2, 2, 5, 6, 6, generator=torch.Generator().manual_seed(0)).double()
WEIGHT = torch.randn(2, 7, 5, 3, 3, generator=torch.Generator().manual_seed(1)).double()
WINDOW = ([1, 1], [1, 1])


def random_mask(seed: int) -> Tensor:
    return (torch.rand(2, 7, 5, generator=torch.Generator().manual_seed(seed)) < 0.5).double()


def results(mask: Tensor) -> list[Tensor]:
    y = OPS.masked_conv(X, WEIGHT, mask, None, *WINDOW)
    grads = OPS.masked_conv_input_grad(y, WEIGHT, mask, [6, 6], *WINDOW)
    return [y, grads, OPS.masked_conv_weight_grad(y, X, mask, [3, 3], *WINDOW)]


def expected(mask: Tensor) -> list[Tensor]:
    x, weight = X.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    effective = weight * mask[..., None, None]
    y = torch.stack([conv2d(*task, padding=1) for task in zip(x, effective, strict=True)])
    return [y.detach(), *torch.autograd.grad(y, (x, weight), y.detach())]


def check(mask: Tensor) -> None:
    for actual, wanted in zip(results(mask), expected(mask), strict=True):
        torch.testing.assert_close(actual, wanted)


def test_a_mask_written_past_the_version_counter_is_seen():
    mask = random_mask(2)
    check(mask)
    mask.data[0, 3, 2] = 1 - mask[0, 3, 2]
    check(mask)
    mask.numpy()[1] = random_mask(3)[1].numpy()
    check(mask)


def test_a_mask_of_other_values_multiplies_though_its_zeros_are_the_same():
    check(random_mask(4))
    check(random_mask(4) * 0.25)
    check(random_mask(4))


def test_more_masks_than_are_kept():
    """256 x 256 kernels take half a megabyte: a hundred masks overflow what is kept."""
    generator = torch.Generator().manual_seed(5)
    x, weight = (
        torch.randn(1, 1, 256, 2, 2, generator=generator),
        torch.randn(1, 256, 256, 3, 3, generator=generator),
    )
    for round_ in range(2):
        for seed in range(50):
            generator.manual_seed(seed)
            mask = (torch.rand(1, 256, 256, generator=generator) < 0.9).float()
            if seed % 10 != 9 - round_:
                OPS.masked_conv(x, weight, mask, None, *WINDOW)
                continue
            y = OPS.masked_conv(x, weight, mask, None, *WINDOW)
            wanted = conv2d(x[0].double(), (weight * mask[..., None, None])[0].double(), padding=1)
            assert (y[0] - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_threads_share_what_is_kept():
    def work(seed: int) -> None:
        for round_ in range(20):
            check(random_mask(100 + (seed + round_) % 30))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))


RESIDENT_MEGABYTES = """
import resource, sys, torch
import metasparse_ext

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
for call in range(121):
    x = torch.randn(2, 8, 64, 21, 21, generator=generator)
    weight = torch.randn(2, 64, 64, 3, 3, generator=generator)
    mask = (torch.rand(2, 64, 64, generator=generator) < 0.5).float()
    y = torch.ops.metasparse.masked_conv(x, weight, mask, None, [1, 1], [1, 1])
    grad = torch.ops.metasparse.masked_conv_weight_grad(y, x, mask, [3, 3], [1, 1], [1, 1])
    rest = y.relu().sum() + grad.sum()
    if call == 20:
        before = resident()
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc/self/statm")
def test_new_masks_do_not_pin_freed_activations():
    """A hundred masks: their matrices take some 10 MB, the activations 3.6 MB a call."""
    run = subprocess.run(
        [sys.executable, "-c", RESIDENT_MEGABYTES], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 60
