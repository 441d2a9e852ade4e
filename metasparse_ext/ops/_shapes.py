"""The shapes of results."""

from torch import Tensor


def after_window(
    x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> list[int]:
    """Ho and Wo, of images (T, N, C, H, W) and kernels (T, O, I, kh, kw)."""
    sizes = zip(x.shape[3:], weight.shape[3:], stride, padding, strict=True)
    return [(size + 2 * p - kernel) // s + 1 for size, kernel, s, p in sizes]
