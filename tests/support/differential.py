"""Every op against its definition, on random calls: an attack each."""

from hypothesis.strategies import SearchStrategy

from support import cg, masked_conv, norm_act_pool, softmax_head, topk_mask
from support.search import attack_by_search

STRATEGIES: dict[str, SearchStrategy] = {
    **{f"masked_conv {name}": masked_conv.draws(name) for name in masked_conv.OPERATIONS},
    **{f"norm_act_pool {name}": norm_act_pool.draws(name) for name in norm_act_pool.OPERATIONS},
    "topk_mask": topk_mask.draws(),
    "cg_step": cg.steps(),
    "cg": cg.solves(),
    "softmax_head": softmax_head.draws(),
}
for _name, _strategy in STRATEGIES.items():
    attack_by_search(_name, _strategy)
