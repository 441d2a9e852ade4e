"""Batch norm, ReLU and 2x2 max-pool of a batch of tasks, and the derivatives of the block.

One program has one channel of one task, all its samples and positions: it takes the statistics and
writes the result in one launch, without a barrier and without partial sums in memory. A channel is
read two to four times, from cache in all but the first.

The mathematics is that of csrc/autograd/norm_act_pool.cpp. Which elements pass ReLU and pool is
the gate, one code per output: the place 0..3 of the element in its window (0 without pooling), or 4
where the ReLU is closed (csrc/norm_act_pool_gate.h). Three kinds of loop go over a channel:

    inputs    every element of x;
    outputs   every element of y, looking through the gate at the x it came from;
    norm      what the statistics are taken over: inputs if the norm comes first, else outputs.

How elements are read is in :mod:`.loads`; each derivative has a module.
"""

from metasparse_ext.triton.norm_act_pool.backward import norm_act_pool_backward
from metasparse_ext.triton.norm_act_pool.double_backward import norm_act_pool_double_backward
from metasparse_ext.triton.norm_act_pool.forward import norm_act_pool
from metasparse_ext.triton.norm_act_pool.tangent import norm_act_pool_tangent

__all__ = [
    "norm_act_pool",
    "norm_act_pool_backward",
    "norm_act_pool_double_backward",
    "norm_act_pool_tangent",
]
