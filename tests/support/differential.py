"""Every op against its definition, on random calls: an attack each."""

import atexit
from functools import cache, partial

from hypothesis.strategies import SearchStrategy

from support import cg, masked_conv, norm_act_pool, softmax_head, topk_mask
from support.attacks import Result, attack
from support.machine import Workers
from support.search import search

STRATEGIES: dict[str, SearchStrategy] = {
    **{f"masked_conv {name}": masked_conv.draws(name) for name in masked_conv.OPERATIONS},
    **{f"norm_act_pool {name}": norm_act_pool.draws(name) for name in norm_act_pool.OPERATIONS},
    "topk_mask": topk_mask.draws(),
    "cg_step": cg.steps(),
    "cg": cg.solves(),
    "softmax_head": softmax_head.draws(),
}
# A search ends at its first failure: others are found by searches that start elsewhere.
ROUND = 250


def differential(name: str, seed: int, draws: int) -> Result:
    """Searches of ROUND draws each, with seeds of their own."""
    failures = []
    for start in range(0, draws, ROUND):
        count = min(ROUND, draws - start)
        found = search(STRATEGIES[name], _workers(), seed * 10**6 + start, count)
        failures += [] if found is None else [found]
    return Result(draws, failures)


@cache
def _workers() -> Workers:
    """Those of all searches of this process."""
    workers = Workers()
    atexit.register(workers.close)
    return workers


for _name in STRATEGIES:
    attack(_name)(partial(differential, _name))
