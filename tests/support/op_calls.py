"""A call of every op: its name and arguments.

Ops with a row of ``OPS`` in metasparse_ext/ops/cuda.py are in :func:`all_calls`, those that every
device but the CPU composes of others in :func:`composed_calls`.
"""

import torch

WINDOW = ((2, 2), (1, 1))


def conv_calls(dtype=torch.float64, draw=torch.randn, channels=3, image=(5, 4)):
    """Two tasks of two samples, 3x3 kernels of stride 2, four channels out."""
    height, width = image
    x, weight = draw(2, 2, channels, *image).to(dtype), draw(2, 4, channels, 3, 3).to(dtype)
    grad = draw(2, 2, 4, (height + 1) // 2, (width + 1) // 2).to(dtype)
    bias, mask = draw(2, 4).to(dtype), (torch.rand(2, 4, channels) < 0.5).to(dtype)
    return {
        "masked_conv": (x, weight, mask, bias, *WINDOW),
        "masked_conv_input_grad": (grad, weight, mask, image, *WINDOW),
        "masked_conv_weight_grad": (grad, x, mask, (3, 3), *WINDOW),
        "masked_conv_mask_grad": (grad, x, weight, *WINDOW),
        "masked_conv_pair": (x, weight, mask, x + 1, weight, None, bias, *WINDOW),
        "masked_conv_input_grad_pair": (grad, weight, mask, grad, weight, None, image, *WINDOW),
        "masked_conv_weight_grad_pair": (grad, x, grad, x + 1, mask, (3, 3), *WINDOW),
    }


def depthwise_calls(dtype=torch.float64):
    """Two tasks of two samples, three channels, 3x3 kernels of stride 2."""
    x, weight = torch.randn(2, 2, 3, 5, 4).to(dtype), torch.randn(2, 3, 1, 3, 3).to(dtype)
    grad = torch.randn(2, 2, 3, 3, 2).to(dtype)
    return {
        "depthwise_conv": (x, weight, *WINDOW),
        "depthwise_conv_input_grad": (grad, weight, (5, 4), *WINDOW),
        "depthwise_conv_weight_grad": (grad, x, (3, 3), *WINDOW),
    }


def norm_calls(dtype=torch.float64, offset=0, side=4):
    """Two tasks of three samples and two channels, with ReLU and pool."""
    x = torch.randn(2, 3, 2, side, side, dtype=dtype) + offset
    w = torch.randn(2, 2, dtype=dtype)
    forward = (x, w, w, 1e-5, True, True, True)
    y, mean, rstd, gate = torch.ops.metasparse_dense.norm_act_pool(*forward)
    point = (x, w, mean, rstd, gate, 1e-5, True, True)
    return {
        "norm_act_pool": forward,
        "norm_act_pool_backward": (y, *point),
        "norm_act_pool_tangent": (x, w, w, *point),
        "norm_act_pool_double_backward": (x, w, w, y, *point),
    }


def other_calls(dtype=torch.float64):
    v = torch.randn(2, 9, dtype=dtype)
    rows, one = torch.ones(2).double(), torch.ones(2, dtype=torch.int64)
    features, center = torch.randn(2, 6, 5, dtype=dtype), torch.randn(2, 3, 5, dtype=dtype)
    labels, lam = torch.randint(0, 3, (2, 6)), torch.ones(2, dtype=dtype)
    state = (v.clone(), v.clone(), v.clone(), 2 * v, None, rows, rows.clone(), 0 * rows)
    logits = features[..., :4].contiguous()
    weight, mask = torch.randn(2, 4, 3, 3, 3, dtype=dtype), torch.randn(2, 4, 3, dtype=dtype)
    return {
        "masked_weight_pair": (weight, mask, weight + 1, mask + 1),
        "masked_weight_backward": (weight + 1, weight, mask),
        "score_gate": (v,),
        "score_gate_grad": (v, v + 1, v - 1, 2),
        "add_budget_gradient": (v.clone(), v, lam[0], lam[1] / 9, 0.1),
        "task_cross_entropy": (logits, labels),
        "task_cross_entropy_backward": (lam, logits, labels),
        "task_cross_entropy_double_backward": (logits + 1, lam, logits, labels),
        "task_linear": (features, center, center[..., 0]),
        "task_linear_pair": (features, center, features + 1, center - 1, center[..., 0]),
        "task_linear_backward": (features[..., :3] + 1, features, center),
        "topk_mask": (v, 3 * one),
        "cg_step": (*state, one, one.clone()),
        "softmax_head": (features, labels, center, lam, 1e-10, 20),
        "softmax_head_grad": (center + 1, center, features, labels, center, lam),
    }


def all_calls():
    return {**conv_calls(), **depthwise_calls(), **norm_calls(), **other_calls()}


def composed_calls(dtype=torch.float64):
    """Ops that have no backends of their own on CUDA."""
    calls = conv_calls(dtype)
    grad, images, weight = calls["masked_conv_mask_grad"][:3]
    mask = calls["masked_conv"][2]
    return {
        "masked_conv_backward": (grad, images, weight, mask, True, False, True, *WINDOW),
        "binary_mask": (torch.randn(3, dtype=dtype), 0.0),
    }
