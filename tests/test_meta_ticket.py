"""Meta winning tickets: masks that hold, exact densities, rewinding, costs, early detection."""

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.plain_tasks import batch, flat, leaves, network, plain_logits, plain_rates
from support.training_helpers import timeless, tiny_config

from metasparse_ext import cli
from metasparse_ext.algorithms import MAML, MetaTicket, pruning
from metasparse_ext.algorithms.maml import step_weights
from metasparse_ext.nn import Conv4
from metasparse_ext.training import Run, Trainer, checkpoint, metrics

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = {"skip": ()}


def ticket(net=None, **options):
    options = {"inner_lr": 0.1, "inner_steps": 2, "rounds": 3, **options}
    return MetaTicket(network() if net is None else net, **options)


def prune(learner, rounds=1):
    for _ in range(rounds):
        learner.next_stage(0.0)
    return learner


def pruned(learner, phi):
    """The entries of flat parameters (..., P) that must be zero."""
    return phi[..., learner.kept == 0]


# What goes and what stays.


@pytest.mark.parametrize(
    ("density", "rounds", "rate", "expected"),
    [
        (0.2, None, 0.2, [0.8, 0.64, 0.512, 0.4096, 0.32768, 0.262144, 0.2097152, 0.2]),
        (0.64, None, 0.2, [0.8, 0.64]),
        (0.25, 2, 0.9, [0.5, 0.25]),
        (None, 3, 0.5, [0.5, 0.25, 0.125]),
        (0.9, None, 0.5, [0.9]),
    ],
)
def test_schedules(density, rounds, rate, expected):
    assert pruning.schedule(density, rounds, rate) == pytest.approx(expected)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("skip", [("head", "bias", "norm"), ("first", "head", "bias", "norm"), ()])
def test_exactly_the_smallest_weights_go(scope, skip):
    learner = ticket(scope=scope, skip=skip, density=0.3, rounds=2)
    for target in learner.densities:
        before = {n: p.detach().clone() for n, p in learner.model.named_parameters()}
        kept = {name: mask != 0 for name, mask in learner._named(learner.kept).items()}
        prune(learner)
        now = {name: mask != 0 for name, mask in learner._named(learner.kept).items()}
        groups = [list(now)] if scope == "global" else [[name] for name in now]
        for names in groups:
            size = sum(now[name].numel() for name in names)
            assert sum(int(now[name].sum()) for name in names) == round(target * size)
            left = torch.cat([before[name][now[name]].abs() for name in names])
            gone = torch.cat([before[name][kept[name] & ~now[name]].abs() for name in names])
            assert not len(gone) or gone.max() <= left.min()
        assert all(bool((kept[name] | ~now[name]).all()) for name in now)
    assert learner.density() == pytest.approx(0.3, abs=1e-2)
    assert not learner.searching


def test_kinds_of_parameters():
    names = [name for name, _ in network().named_parameters()]
    kinds = set(get_args(pruning.Kind))
    found = {kind: pruning.prunable(network(), names, kinds - {kind}) for kind in kinds}
    assert found["first"] == ["blocks.0.conv.weight"]
    assert found["conv"] == ["blocks.1.conv.weight"]
    assert found["head"] == ["head.weight"]
    assert found["bias"] == ["blocks.0.conv.bias", "blocks.1.conv.bias", "head.bias"]
    assert sorted(name for group in found.values() for name in group) == sorted(names)


def test_layers_differ_under_a_global_scope_only():
    net = network()
    with torch.no_grad():
        net.blocks[1].conv.weight.mul_(1e-3)
    shares = {}
    for scope in ("global", "layer"):
        masks = prune(ticket(net, scope=scope, density=0.5, rounds=1)).masks()
        shares[scope] = [float(mask.mean()) for mask in masks.values()]
    assert shares["global"] == pytest.approx([1, 0.25], abs=0.05)
    assert shares["layer"] == pytest.approx([0.5, 0.5], abs=0.01)


# Learning under the mask.


def plain_meta_gradient(learner, kept, tasks, steps, rate):
    """MAML's gradient of a network whose every weight is multiplied by its mask, by unrolling."""
    net = learner.model
    theta = leaves(net)
    sources, rates = dict(theta), lambda k: dict.fromkeys(theta, rate)
    if learner.learned_rates is not None:
        sources["rates"], rates = plain_rates(learner)
    losses = []
    for t in range(len(tasks.support.images)):
        phi = theta
        for k, part in enumerate((*[tasks.support] * steps, tasks.query)):
            masked = {name: value * kept[name] for name, value in phi.items()}
            logits = plain_logits(net, masked, part.images[t])
            loss = torch.nn.functional.cross_entropy(logits, part.labels[t])
            if part is tasks.support:
                slope = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
                at = rates(k)
                phi = {n: p - at[n] * g for (n, p), g in zip(phi.items(), slope, strict=True)}
        losses.append(loss)
    gradient = torch.autograd.grad(torch.stack(losses).mean(), list(sources.values()))
    return dict(zip(sources, gradient, strict=True))


@pytest.mark.parametrize("rates", ["fixed", "parameter"])
@pytest.mark.parametrize("skip", [("head", "bias", "norm"), ()], ids=["convolutions", "all"])
def test_the_meta_gradient_is_that_of_the_masked_network(skip, rates):
    net = network()
    learner = prune(ticket(net, skip=skip, density=0.4, rates=rates))
    with torch.no_grad():  # a mask must hold whatever lies beneath it
        for parameter in net.parameters():
            parameter.add_(0.1)
    tasks, kept = batch(), learner.layout.unflatten(learner.kept)
    expected = plain_meta_gradient(learner, kept, tasks, 2, 0.1)
    learner.meta_backward(tasks)
    if rates != "fixed":
        found, wanted = learner.learned_rates.values.grad, expected.pop("rates")
        assert float((found - wanted).norm() / wanted.norm()) < 1e-9
        assert not pruned(learner, found).any()
    found = {name: p.grad for name, p in net.named_parameters()}
    assert float((flat(found) - flat(expected)).norm() / flat(expected).norm()) < 1e-9
    assert not pruned(learner, learner.layout.flatten(found)).any()


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
@pytest.mark.parametrize("skip", [("head", "bias", "norm"), ()], ids=["convolutions", "all"])
def test_pruned_weights_stay_zero_in_both_loops(optimizer, skip):
    learner = prune(ticket(skip=skip, density=0.3), 2)
    steps = optimizer(learner.parameters(), lr=0.1)
    for seed in range(3):
        steps.zero_grad()
        learner.meta_backward(batch(seed=seed))
        steps.step()
        adapted = learner.layout.flatten(learner.adapt(batch(seed=seed).support).parameters)
        assert not pruned(learner, learner.start(3)).any()
        assert not pruned(learner, adapted).any()
        assert (adapted != learner.start(3)).float().mean() > 0.2


def test_a_whole_network_is_mamls():
    one, two = network(), network()
    ticket(one).meta_backward(batch())
    MAML(two, inner_lr=0.1, inner_steps=2).meta_backward(batch())
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rewind", [0, 2])
def test_the_options_of_maml_hold_in_every_training(rewind):
    learner = ticket(rates="layer", rewind=rewind, rounds=2, first_order_until=3, multi_step=4)
    rates = [learner.learned_rates.values.detach().clone()]
    steps = torch.optim.SGD(learner.parameters(), lr=0.1)
    for iteration in range(5):
        steps.zero_grad()
        learner.meta_backward(batch(seed=iteration))
        steps.step()
        learner.stepped(iteration + 1, iteration + 1.0)
        rates.append(learner.learned_rates.values.detach().clone())
    assert not torch.equal(rates[0], rates[2])
    assert learner._phase() == (False, [])
    learner.next_stage(5.0)
    assert torch.equal(learner.learned_rates.values, rates[rewind])
    assert learner.age() == rewind
    first_order, weights = learner._phase()
    assert first_order
    assert weights == step_weights(2, rewind / 4)


# Costs.


def test_costs_are_those_of_a_hand_count():
    learner = ticket(Conv4(1, 8, 4, 3, blocks=2), inner_steps=2, density=0.5, rounds=1, **ALL)
    positions = {"blocks.0.conv.weight": 16, "blocks.1.conv.weight": 4, "head.weight": 1}
    images = torch.rand(2, 5, 1, 8, 8), torch.rand(2, 7, 1, 8, 8)
    tasks = batch(2)
    tasks = tasks._replace(
        support=tasks.support._replace(images=images[0]),
        query=tasks.query._replace(images=images[1]),
    )
    dense = 16 * 36 + 4 * 144 + 48
    for _ in range(2):
        learner.meta_backward(tasks)
        learner.stepped(1, 0.0)
    assert learner.macs == (2 * (2 * 5 + 7) * dense, 0)
    prune(learner)
    kept = learner.layout.unflatten(learner.kept)
    sparse = sum(int(kept[name].sum()) * count for name, count in positions.items())
    assert sparse < dense
    learner.meta_backward(tasks)
    learner.stepped(1, 0.0)
    assert learner.macs == (34 * dense, 17 * sparse)
    assert learner.status()["training_macs"] == 17 * sparse


# Early detection.


def masks(*rows):
    return {f"layer {i}": torch.tensor(row, dtype=torch.bool) for i, row in enumerate(rows)}


def test_distances_of_masks():
    one = masks([1, 1, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0])
    two = masks([1, 0, 0, 0], [1, 1, 1, 0, 1, 1, 0, 0])
    assert pruning.inter_layer(one, two) == pytest.approx(1 / 6)
    assert pruning.intra_layer(one, two) == pytest.approx(3 / 8)
    assert pruning.hamming(one, two) == pytest.approx(4 / 12)
    assert pruning.jaccard(one, two) == pytest.approx(1 / 2)
    for signal in pruning.SIGNALS.values():
        assert signal(one, one) == 0
        assert signal(one, two) == signal(two, one)
    empty = masks([0, 0])
    assert pruning.jaccard(empty, empty) == 0


def sequence(learner, flips, monkeypatch):
    """Feeds the search masks of which each differs from the last in so many entries."""
    mask = torch.ones_like(learner.kept)
    drawn = []
    for first, count in enumerate(flips):
        mask = mask.clone()
        mask[20 * first : 20 * first + count] = 0
        drawn.append(mask)
    supply = iter(drawn)
    monkeypatch.setattr(learner, "_draw", lambda density: next(supply))
    found = []
    for check in range(1, len(flips) + 1):
        learner.stepped(check * learner.check_every, float(check))
        found.append(learner.stage_ended(float(check), 1000.0))
    return found


def test_the_search_ends_once_masks_are_stable(monkeypatch):
    options = {"search": "early", "check_every": 10, "signals": ["hamming"], **ALL}
    learner = ticket(window=3, threshold=21 / 291, **options)
    assert learner.layout.numel == 291
    flips = [0, 20, 20, 15, 5, 5, 5]
    assert sequence(learner, flips, monkeypatch) == [False] * 4 + [True] * 3
    assert learner.distances["hamming"] == pytest.approx(10 / 291)
    never = ticket(window=3, threshold=9 / 291, **options)
    assert not any(sequence(never, flips, monkeypatch))
    assert never.stage_ended(1000.0, 1000.0)


def test_every_signal_must_be_stable(monkeypatch):
    options = {"search": "early", "check_every": 1, "window": 2, **ALL}
    one = ticket(signals=["hamming"], threshold=0.1, **options)
    assert sequence(one, [0, 5], monkeypatch)[-1]
    both = ticket(signals=["hamming", "intra"], threshold=0.1, **options)
    assert not sequence(both, [0, 20], monkeypatch)[-1]
    assert both.distances["intra"] > 0.1 > both.distances["hamming"]


def test_masks_are_drawn_at_the_final_density_and_the_network_stays_dense():
    learner = ticket(search="early", density=0.25, rounds=1, check_every=1, window=2)
    learner.meta_backward(batch())
    learner.stepped(1, 1.0)
    drawn = learner._named(learner.drawn[-1])
    total = sum(mask.numel() for mask in drawn.values())
    assert sum(int(mask.sum()) for mask in drawn.values()) == round(0.25 * total)
    assert learner.density() == 1
    assert learner.stages == 2


# In the training loop.


def stages(root, **options):
    shared = {"inner_lr": 0.1, "inner_steps": 1, "rounds": 2, "density": 0.3}
    return tiny_config(root, "meta-ticket", iterations=4, options={**shared, **options})


@pytest.mark.parametrize("rewind", [0, 2, None])
def test_weights_are_rewound_exactly(tmp_path, tiny_root, rewind):
    """Or, with None, stay as they are while the next stage begins."""
    config = stages(tiny_root, rewind=rewind).replace(schedule="cosine", save_every=1)
    trainer = Trainer(config, Run(tmp_path))
    learner, seen, rates = trainer.learner, {}, []
    original, step = learner.next_stage, trainer._step

    def stepping():
        seen.setdefault(trainer.iteration, learner.start(1)[0].clone())
        step()
        rates.append(trainer.optimizer.param_groups[0]["lr"])

    def beginning(position):
        back = learner.start(1)[0].clone() if rewind is None else seen[rewind]
        original(position)
        assert torch.equal(learner.start(1)[0], back * learner.kept)

    trainer._step, learner.next_stage = stepping, beginning
    trainer.fit()
    rest = 4 - (rewind or 0)
    assert trainer.iteration == 4 + 2 * rest
    assert (learner.stage, trainer.optimizer.state_dict()["state"][0]["step"]) == (2, rest)
    assert rates == rates[:4] + 2 * rates[4 - rest : 4]


def test_a_search_may_be_shorter_than_the_training(tmp_path, tiny_root):
    """Its rates fall as far in fewer iterations; what it rewinds to must lie in them."""
    config = stages(tiny_root, rewind=1, search_length=0.5).replace(schedule="linear")
    trainer, rates = Trainer(config, Run(tmp_path)), []
    step = trainer._step

    def stepping():
        step()
        rates.append(trainer.optimizer.param_groups[0]["lr"] / config.meta_lr)

    trainer._step = stepping
    trainer.fit()
    assert rates == [1, 0.5, 0.5, 0.75, 0.5, 0.25]
    with pytest.raises(ValueError, match="expected rewind to be at most 2, the training, got 3"):
        Trainer(stages(tiny_root, rewind=3, search_length=0.5), Run(tmp_path / "late"))


def test_metrics_tell_the_stages_and_the_best_is_a_ticket(tmp_path, tiny_root):
    run = Run(tmp_path)
    outcome = Trainer(stages(tiny_root), run).fit()
    records = metrics.read(run.metrics_path)
    steps = [r for r in records if r["kind"] == "train"]
    assert [s["round"] for s in steps] == [0] * 4 + [1] * 4 + [2] * 4
    assert steps[0]["density"] == 1
    assert steps[-1]["density"] == pytest.approx(0.3, abs=2e-3)
    assert all(a["search_macs"] < b["search_macs"] for a, b in pairwise(steps[:8]))
    assert steps[-1]["search_macs"] == steps[7]["search_macs"]
    eligible = [r["eligible"] for r in records if r["kind"] == "validation"]
    assert eligible == [False] * 4 + [True] * 2
    best = checkpoint.load(run.best_path)
    assert best.iteration == outcome.best["iteration"] > 8
    weights = best.learner["model.blocks.1.conv.weight"]
    assert not weights[best.learner["model.blocks.1.conv.masker.mask"] == 0].any()


def test_an_early_ticket_costs_less_than_an_iterative_one(tmp_path, tiny_root):
    early = {"search": "early", "rounds": 1, "check_every": 1, "window": 2, "threshold": 0.5}
    costs = {}
    for name, options in (("iterative", {}), ("early", early)):
        trainer = Trainer(stages(tiny_root, **options), Run(tmp_path / name))
        trainer.fit()
        costs[name] = trainer.learner.macs
        assert trainer.learner.density() == pytest.approx(0.3, abs=2e-3)
    assert trainer.iteration == 2 + 4
    assert costs["early"][0] * 3 < costs["iterative"][0]


def test_an_early_search_may_take_several_rounds(tmp_path, tiny_root):
    """Each ends when the masks of its own density are stable: here after two of them."""
    early = {"search": "early", "check_every": 1, "window": 2, "threshold": 0.9, "rewind": None}
    run = Run(tmp_path)
    trainer = Trainer(stages(tiny_root, **early), run)
    trainer.fit()
    steps = [r for r in metrics.read(run.metrics_path) if r["kind"] == "train"]
    assert [s["round"] for s in steps] == [0] * 2 + [1] * 2 + [2] * 4
    assert steps[2]["density"] == pytest.approx(0.3**0.5, abs=2e-3)
    assert trainer.learner.density() == pytest.approx(0.3, abs=2e-3)


@pytest.mark.parametrize(
    ("search", "stop"), [("iterative", 3), ("iterative", 4), ("iterative", 8), ("early", 5)]
)
def test_resume_is_exact_in_every_round(tmp_path, tiny_root, search, stop):
    options = {"search": search, "check_every": 2, "window": 3, "threshold": 1e-9, "rewind": 1}
    config = stages(tiny_root, **options).replace(save_every=1)
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    Trainer(config, whole).fit()
    first = Trainer(config, parts)
    step = first._step

    def dying():
        if first.iteration == stop:
            raise KeyboardInterrupt
        step()

    first._step = dying
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    Trainer(config, parts).fit()
    one, two = (checkpoint.load(run.last_path) for run in (whole, parts))
    assert one.learner.keys() == two.learner.keys()
    for name, value in one.learner.items():
        same = torch.equal(value, two.learner[name]) if torch.is_tensor(value) else None
        assert value == two.learner[name] if same is None else same, name
    assert one.best == two.best
    assert timeless(whole) == timeless(parts)


def test_seconds_are_shared_among_the_trainings(tmp_path, tiny_root, monkeypatch):
    ticks = iter(range(10_000))
    monkeypatch.setattr("time.process_time", lambda: float(next(ticks)))
    config = stages(tiny_root).replace(max_seconds=9.0, schedule="linear")
    trainer = Trainer(config, Run(tmp_path))
    assert trainer.fit().iteration == 9
    steps = [r for r in metrics.read(trainer.run.metrics_path) if r["kind"] == "train"]
    assert [s["round"] for s in steps] == [0] * 3 + [1] * 3 + [2] * 3
    assert checkpoint.load(trainer.run.last_path).elapsed == 9


def test_the_command_line_trains_evaluates_and_exports_a_ticket(tmp_path, tiny_root):
    def invoke(*arguments):
        result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    run, out = Run(tmp_path / "run"), tmp_path / "masks.npz"
    flags = "--search early --density 0.2 --rewind 1 --set check_every=1 --set window=2 --ways 3"
    flags += " --queries 2 --width 4 --iterations 4 --inner-steps 1 --validation-tasks 4"
    place = ("--data", "omniglot", "--root", tiny_root, "--out", run)
    assert "best: iteration" in invoke("train", "meta-ticket", *place, *flags.split())
    assert invoke("train", "meta-ticket", "--out", run, "--resume")
    assert "best checkpoint" in invoke("evaluate", run, "--tasks", 5)
    assert "blocks.3.conv" in invoke("export", run, "--out", out)
    with np.load(out) as arrays:
        found = dict(arrays)
    weights = checkpoint.load(run.best_path).learner
    assert sum(int(mask.sum()) for mask in found.values()) == round(0.2 * (36 + 3 * 144))
    for name, mask in found.items():
        assert mask.dtype == np.uint8
        assert np.array_equal(mask != 0, weights[f"model.{name}.weight"].numpy() != 0)


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"search": "late"}, "expected search to be one of"),
        ({"density": 1.0}, "expected density to be"),
        ({"density": None, "rounds": None}, "expected rounds to be given where density is None"),
        ({"rounds": 0}, "expected rounds to be"),
        ({"rate": 1.0}, "expected rate to be"),
        ({"search_length": 0.0}, "expected search_length to be"),
        ({"scope": "local"}, "expected scope to be one of"),
        ({"skip": ("bn",)}, "expected each of skip to be one of"),
        ({"skip": get_args(pruning.Kind)}, "expected model to be one with weights to prune beside"),
        ({"rewind": -1}, "expected rewind to be"),
        ({"early_detection": "kdd"}, "expected early_detection to be one of 'mask_stability'"),
        ({"signals": ("mean",)}, "expected each of signals to be one of"),
        ({"signals": ()}, "expected signals to be at least one"),
        ({"check_every": 0}, "expected check_every to be"),
        ({"window": 1}, "expected window to be"),
        ({"threshold": 0.0}, "expected threshold to be"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"MetaTicket: {message}"):
        ticket(**options)


def test_a_rewind_point_past_the_training_is_refused():
    learner = ticket(rewind=5)
    learner.iteration.fill_(4)
    with pytest.raises(ValueError, match="expected rewind to be at most 4"):
        learner.next_stage(4.0)
