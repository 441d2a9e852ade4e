"""A meta-step as one CUDA graph: nothing on its path stops it, and what capture keeps track of."""

import copy
import logging
from typing import NamedTuple

import pytest
import torch
from support.host import FakeGraph, HostLooked, NothingOnTheHost
from support.plain_tasks import batch as draw
from support.plain_tasks import network
from torch import Tensor

import metasparse_ext as ms
from metasparse_ext import _capture
from metasparse_ext._capture import observed, unobserved
from metasparse_ext.algorithms import LEARNERS, MAML, MetaDOCK
from metasparse_ext.nn import MaskedConv2d, TopKMask

OPTIONS = {
    "imaml": {"inner_lr": 0.05, "inner_steps": 2, "cg_steps": 3},
    "metadock": {
        "inner_lr": 0.05,
        "inner_steps": 2,
        "lambda1": 0.5,
        "lambda2": 0.25,
        "budget_schedule": "exponential",
        "total_iterations": 10,
    },
    "convex-imaml": {"lam": 0.1, "max_iterations": 5},
    "protonet": {"temperature": 2.0},
    "r2d2": {"lam": 2.0},
    "reptile": {"inner_lr": 0.01, "inner_steps": 3, "inner_batch": 4},
    "cavia": {"context": 6, "block": 1},
    "mmsup": {"inner_lr": 0.05, "inner_steps": 2, "sparsity_gradient": "boundary"},
    "bmp": {"inner_lr": 0.05, "inner_steps": 2, "emphasis": "batch", "rates": "layer"},
    "multi-maml": {"inner_lr": (0.05,), "inner_steps": 2, "rates": "parameter"},
    "meta-ticket": {"inner_lr": 0.05, "inner_steps": 2, "rates": "parameter"},
}
OTHERS = {"inner_lr": 0.05, "inner_steps": 2}
by_learner = pytest.mark.parametrize("name", LEARNERS)
# CAVIA puts its context into a block of the network, which has to show them.
by_learner_and_kind = pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in LEARNERS
        for kind in ("task-aware", "opaque")
        if (name, kind) != ("cavia", "opaque")
    ],
)


def learner_of(name, kind="task-aware"):
    return LEARNERS[name](network(kind), **OPTIONS.get(name, OTHERS))


def adam(learner, device="cpu"):
    rate = torch.tensor(1e-2, device=device)
    return torch.optim.Adam(learner.parameters(), lr=rate, capturable=True, fused=True)


def moved(batch, device):
    return _capture._map(lambda t: t.to(device), batch)


def meta_step_of(learner, optimizer):
    def meta_step(batch):
        optimizer.zero_grad()
        metrics = learner.meta_backward(batch)
        optimizer.found_inf = learner.nonfinite.float()
        optimizer.step()
        return metrics

    return meta_step


# Nothing on the path of a meta-step needs the host.


@pytest.mark.parametrize("device", ["cpu", "meta"])
@by_learner_and_kind
def test_a_meta_step_never_needs_the_host(name, kind, device):
    learner, batch = learner_of(name, kind).to(device), moved(draw(), device)
    for _ in range(2):  # into fresh gradients, and on top of old ones
        with unobserved(), NothingOnTheHost(device):
            metrics = learner.meta_backward(batch)
    assert all(value.device.type == device for value in vars(metrics).values())


@by_learner
def test_nor_does_its_optimizer_step(name):
    learner = learner_of(name)
    step = meta_step_of(learner, adam(learner))
    with unobserved():
        step(draw())  # the first of the warm-up
        with NothingOnTheHost("cpu"):
            step(draw())


@pytest.mark.parametrize("granularity", ["weight", "kernel"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_nor_do_masks_that_follow_the_weights(device, granularity):
    net = network()
    for layer in net.modules():
        if isinstance(layer, MaskedConv2d):
            layer.masker = TopKMask(0.5, granularity)
    learner, batch = MAML(net, inner_lr=0.05, inner_steps=2).to(device), moved(draw(), device)
    with unobserved(), NothingOnTheHost(device):
        learner.meta_backward(batch)


LOOKS = {
    "bool": lambda t: bool(t.sum() > 0),
    "item": lambda t: t.sum().item(),
    "equal": lambda t: torch.equal(t, t),
    "nonzero": lambda t: t.nonzero(),
    "a boolean index": lambda t: t[t > 0],
    "assignment by one": lambda t: t.__setitem__(t > 0, torch.zeros(())),
    "masked_select": lambda t: t.masked_select(t > 0),
    "unique": torch.unique,
    "repeat_interleave": lambda t: t.repeat_interleave(t.abs().long()),
    "a tensor from a number": lambda t: t * torch.tensor(0.5),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS.keys())
def test_the_proof_can_fail(look):
    with pytest.raises(HostLooked), NothingOnTheHost("cpu"):
        look(torch.linspace(-1, 1, 5))


def test_the_proof_sees_tensors_of_another_device():
    with pytest.raises(HostLooked), NothingOnTheHost("meta"):
        torch.zeros(3, device="meta") + torch.zeros(())


def test_an_observed_meta_step_looks_once():
    learner = learner_of("maml")
    with pytest.raises(HostLooked, match="_local_scalar_dense"), NothingOnTheHost("cpu"):
        learner.meta_backward(draw())


# What an unobserved meta-step does about numbers that are not finite.


def nonfinite_batch():
    batch = draw()
    batch.query.images[1] = torch.nan
    return batch


@by_learner
def test_a_nonfinite_unobserved_step_leaves_the_state_as_it_was(name):
    learner = learner_of(name)
    optimizer = adam(learner)
    step = meta_step_of(learner, optimizer)
    with unobserved():
        step(draw())
        before = copy.deepcopy((learner.state_dict(), optimizer.state_dict()["state"]))
        assert not learner.nonfinite
        step(nonfinite_batch())
        step(draw())  # the note stays, and so does the state
    assert learner.nonfinite
    assert learner.iteration == 1
    torch.testing.assert_close(learner.state_dict(), before[0], rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict()["state"], before[1], rtol=0, atol=0)


def test_an_observed_one_raises():
    learner = learner_of("maml")
    with pytest.raises(FloatingPointError, match="task 1 is nan on the query set"):
        learner.meta_backward(nonfinite_batch())
    assert not learner.nonfinite


def test_the_ramp_of_the_budget_follows_a_counter_on_the_device():
    """What a graph replays reads the counter; a number of Python's would have been frozen in it."""
    learner = learner_of("metadock")
    assert isinstance(learner, MetaDOCK)
    scores = torch.randn(2, 9, dtype=torch.float64)
    early = learner.budget_loss.gradient(scores, learner.iteration)
    learner.iteration += 5
    assert not torch.equal(early, learner.budget_loss.gradient(scores, learner.iteration))


# What capture keeps track of, with a graph that is none: it runs the step again at every replay.


@pytest.mark.usefixtures("fake_graph")
@by_learner
def test_a_captured_training_takes_the_steps_of_an_eager_one(name):
    learners = [learner_of(name) for _ in range(2)]
    optimizers = [adam(learner) for learner in learners]
    eager = meta_step_of(learners[0], optimizers[0])
    step = ms.capture(meta_step_of(learners[1], optimizers[1]))
    for seed in range(6):
        expected, metrics = eager(draw(seed=seed)), step(draw(seed=seed))
        torch.testing.assert_close(vars(metrics), vars(expected), rtol=0, atol=0, equal_nan=True)
        assert step.captured == (seed >= 3)
    assert step.reason is None
    states = [
        (learner.state_dict(), opt.state_dict()["state"])
        for learner, opt in zip(learners, optimizers, strict=True)
    ]
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)


class Pair(NamedTuple):
    x: Tensor
    more: dict


@pytest.mark.usefixtures("fake_graph")
def test_inputs_stay_in_place_and_results_are_copies():
    seen = []

    def meta_step(pair):
        seen.append((pair.x.data_ptr(), pair.more["y"].data_ptr(), observed()))
        return {"sum": pair.x + pair.more["y"], "note": "text", "parts": [pair.x * 2]}

    step = ms.capture(meta_step, warmup=2)
    batches = [Pair(torch.full((3,), float(i)), {"y": torch.ones(3)}) for i in range(6)]
    results = [step(batch) for batch in batches]
    assert [result["sum"][0].item() for result in results] == [1, 2, 3, 4, 5, 6]
    assert [result["parts"][0][0].item() for result in results] == [0, 2, 4, 6, 8, 10]
    assert results[-1]["note"] == "text"
    assert len(set(seen)) == 1
    assert seen[0][2] is False
    assert seen[0][0] not in {batch.x.data_ptr() for batch in batches}
    assert step._graph.rehearsals == [False, True]


@pytest.mark.usefixtures("fake_graph")
def test_a_batch_of_other_shapes_runs_eagerly():
    step = ms.capture(lambda x: (x.sum(), observed()), warmup=1)
    for _ in range(3):
        step(torch.ones(4))
    assert step(torch.ones(4)) == (4, False)
    assert step(torch.ones(2)) == (2, True)
    assert step(torch.ones(4, dtype=torch.float64)) == (4, True)
    assert step(torch.ones(4).to(torch.int64)) == (4, True)
    assert step.captured
    assert step(torch.full((4,), 2.0)) == (8, False)


@pytest.mark.usefixtures("fake_graph")
def test_a_step_that_stops_the_host_is_not_captured(monkeypatch, caplog):
    monkeypatch.setattr(FakeGraph, "stops", ("learner.py:17",))
    step = ms.capture(lambda x: x * 2)
    with caplog.at_level(logging.WARNING, "metasparse_ext"):
        results = [step(torch.tensor([float(i)])).item() for i in range(6)]
    assert results == [0, 2, 4, 6, 8, 10]
    assert step.reason == "the host waits for the device: learner.py:17"
    assert [record.getMessage() for record in caplog.records].count(
        f"capture: the meta-step runs eagerly: {step.reason}"
    ) == 1


@pytest.mark.usefixtures("fake_graph")
def test_a_capture_that_cuda_refuses_ends_the_run_and_says_how_to_go_on(monkeypatch):
    def refuse(self, step):
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    monkeypatch.setattr(FakeGraph, "record", refuse)
    step = ms.capture(lambda x: (x * 2, observed()), warmup=1)
    step(torch.ones(1))
    sentence = "CUDA refused: operation not permitted .*; the meta-step has not run.*--no-capture"
    with pytest.raises(_capture.CaptureError, match=sentence):
        step(torch.ones(1))
    assert step(torch.ones(1)) == (2, True)  # whoever goes on all the same does so eagerly
    assert step.reason == "CUDA refused: operation not permitted when stream is capturing"
    assert not step.captured


def test_on_the_cpu_it_says_so_once(caplog):
    step = ms.capture(lambda x: (x * 2, observed()))
    assert step.reason is None
    with caplog.at_level(logging.WARNING, "metasparse_ext"):
        assert [step(torch.ones(1)) for _ in range(3)] == [(2, True)] * 3
    assert step.reason == "CUDA graphs need a CUDA device, the batch is on cpu"
    assert len(caplog.records) == 1


def test_errors_of_the_step_are_its_own():
    step = ms.capture(lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        step(torch.ones(1))
    with pytest.raises(ValueError, match="warmup to be at least 1, got 0"):
        ms.capture(lambda x: x, warmup=0)


# With a GPU.


def cuda_pair(name, dtype, kind="task-aware"):
    """Two learners alike on the GPU."""
    return [learner_of(name, kind).to("cuda", dtype) for _ in range(2)]


def cuda_batch(seed, dtype):
    return _capture._map(
        lambda t: t.to("cuda", dtype if t.is_floating_point() else None), draw(seed=seed)
    )


for_cuda = pytest.mark.parametrize(
    "dtype",
    [pytest.param(torch.float32, id="float32"), pytest.param(torch.float64, id="float64")],
)


def on_cuda(test):
    """A test that needs a GPU."""
    test = pytest.mark.usefixtures("deterministic_cudnn")(pytest.mark.cuda(test))
    return pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")(test)


@on_cuda
@for_cuda
@by_learner_and_kind
def test_a_captured_training_equals_an_eager_one_bit_for_bit(name, kind, dtype):
    learners = cuda_pair(name, dtype, kind)
    optimizers = [adam(learner, "cuda") for learner in learners]
    eager = meta_step_of(learners[0], optimizers[0])
    step = ms.capture(meta_step_of(learners[1], optimizers[1]))
    for seed in range(6):
        with unobserved():
            expected = eager(cuda_batch(seed, dtype))
        metrics = step(cuda_batch(seed, dtype))
        assert step.reason is None
        torch.testing.assert_close(vars(metrics), vars(expected), rtol=0, atol=0, equal_nan=True)
    assert step.captured
    for own, other in zip(learners[0].parameters(), learners[1].parameters(), strict=True):
        assert torch.equal(own, other)
    assert learners[1].iteration == 6


@on_cuda
@by_learner
def test_the_meta_gradient_equals_that_of_the_cpu(name):
    cpu, cuda = learner_of(name), learner_of(name).to("cuda")
    cpu.meta_backward(draw())
    cuda.meta_backward(moved(draw(), "cuda"))
    for (key, here), there in zip(cpu.named_parameters(), cuda.parameters(), strict=True):
        torch.testing.assert_close(
            there.grad.cpu(), here.grad, rtol=1e-8, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}"
        )


@on_cuda
def test_a_host_synchronisation_is_found_where_it_is_written():
    step = ms.capture(lambda x: x * x.sum().item(), warmup=1)
    assert step(torch.ones(2, device="cuda")).tolist() == [2, 2]
    assert "test_capture.py" in step.reason
    assert step(torch.ones(2, device="cuda")).tolist() == [2, 2]


@on_cuda
def test_after_a_capture_that_cuda_refuses_the_stream_is_the_users_again():
    calls = []

    def meta_step(x):
        calls.append(torch.cuda.current_stream())
        if len(calls) == 2:
            x.sum().item()  # unseen until the capture itself
        return x * 2

    step = ms.capture(meta_step, warmup=1)
    before = torch.cuda.current_stream()
    x = torch.ones(2, device="cuda")
    assert step(x).tolist() == [2, 2]
    with pytest.raises(_capture.CaptureError, match="--no-capture"):
        step(x)
    assert [step(x).tolist() for _ in range(2)] == [[2, 2]] * 2  # the process is not poisoned
    assert step.reason.startswith("CUDA refused")
    assert torch.cuda.current_stream() == before == calls[-1]


@on_cuda
def test_a_nonfinite_replay_leaves_the_state_as_it_was():
    learner = learner_of("maml").to("cuda")
    step = ms.capture(meta_step_of(learner, adam(learner, "cuda")))
    for seed in range(4):
        step(cuda_batch(seed, torch.float64))
    before = copy.deepcopy(learner.state_dict())
    step(moved(nonfinite_batch(), "cuda"))
    assert learner.nonfinite
    torch.testing.assert_close(learner.state_dict(), before, rtol=0, atol=0)
