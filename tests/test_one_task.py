"""A model or a loss of one's own sees one task alone, however many run side by side."""

import copy
from dataclasses import dataclass
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from support.own_models import (
    FEATURES,
    LENGTH,
    RATE,
    STEPS,
    TASKS,
    WAYS,
    Attention,
    Recurrent,
    Summed,
    assert_gradient,
    batch,
    largest,
    meta_gradient,
    samples,
)
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from metasparse_ext.algorithms import MAML, one_task, task_call


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Averages(Recurrent):
    """Keeps a moving average of what it sees, in place or by a new tensor."""

    def __init__(self, in_place: bool, rnn: bool) -> None:
        super().__init__()
        self.rnn = self.rnn if rnn else None
        self.in_place = in_place
        self.register_buffer("mean", torch.zeros(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        seen = x.mean((0, 1))
        if self.in_place:
            self.mean.lerp_(seen, 0.1)
        else:
            self.mean = self.mean.lerp(seen, 0.1)
        return super().forward(x - self.mean) if self.rnn else x.mean(1)[:, :WAYS] * self.mean[0]


@pytest.mark.filterwarnings("ignore:.*does not run under torch.func.vmap")
@pytest.mark.parametrize("rnn", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_buffers_that_change_are_refused(in_place, rnn):
    model = Averages(in_place, rnn).double()
    buffer = model.mean
    with pytest.raises(NotImplementedError, match=r"change no buffer .* got Averages, .* 'mean'"):
        MAML(model, inner_steps=1).meta_backward(batch())
    assert model.mean is buffer


@pytest.mark.filterwarnings("ignore:.*does not run under torch.func.vmap")
def test_a_norm_of_the_weights_is_refused_while_it_changes():
    model = nn.Sequential(
        nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(LENGTH * FEATURES, WAYS))
    ).double()
    learner = MAML(model, inner_lr=RATE, inner_steps=STEPS)
    with pytest.raises(NotImplementedError, match=r"change no buffer .* got its '1\.parametrizati"):
        learner.meta_backward(batch())
    learner.eval()
    expected = meta_gradient(model, batch(), first_order=False)
    learner.meta_backward(batch())
    assert_gradient(learner, expected)


class Writes(nn.Module):
    """Fills a tensor that it made, and hooks its gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(LENGTH * FEATURES, WAYS))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros(len(x), WAYS, dtype=x.dtype)
        y[:, :] = self.net(x)
        if y.requires_grad:
            y.register_hook(largest)
        return y


def hooked(name: str, hook) -> nn.Module:
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(LENGTH * FEATURES, 5), nn.Tanh(), nn.Linear(5, WAYS)
    )
    getattr(net[3], name)(hook)
    return net


class Words(nn.Module):
    """Looks up words, of which the last is padding."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.table = nn.Embedding(7, FEATURES, padding_idx=-1, **options)
        self.head = nn.Linear(FEATURES, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table((3 * x[..., 0]).long().clamp(-3, 3) + 3).tanh().mean(1))


class Slopes(nn.Module):
    """Sees the slope of a network in its input, as a score does."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(LENGTH * FEATURES, WAYS), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
        return self.net(slope)


class LooksUp(Words):
    def forward(self, x: Tensor) -> Tensor:
        words = (3 * x[..., 0]).long().clamp(-3, 3) + 3
        return self.head(torch.embedding(self.table.weight, words, 6).tanh().mean(1))


class Normed(nn.Module):
    """A batch norm of images."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Unflatten(1, (1, LENGTH)), nn.Conv2d(1, 3, 3, padding=1)),
            *(nn.BatchNorm2d(3, **options), nn.Tanh()),
            *(nn.Flatten(), nn.Linear(3 * LENGTH * FEATURES, WAYS)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


ALONE = {
    "norm": lambda: Normed(track_running_stats=False),
    "norm without scale": lambda: Normed(track_running_stats=False, affine=False),
    "norm by what it tracked": lambda: Normed().eval(),
    "gradient inside": Slopes,
    "looks up": LooksUp,
    "in place": Writes,
    "before": lambda: hooked("register_full_backward_pre_hook", lambda _, g: (largest(g[0]),)),
    "after": lambda: hooked("register_full_backward_hook", lambda _, g, __: (largest(g[0]),)),
    "padding": Words,
    "renormalized": lambda: Words(max_norm=1.0),
}


@pytest.mark.filterwarnings("ignore:.*so the model runs task by task")
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("name", ALONE)
def test_a_model_sees_one_task_alone(name, first_order):
    model = ALONE[name]().double()
    expected = meta_gradient(model, batch(), first_order=first_order)
    learner = MAML(model, inner_lr=RATE, inner_steps=STEPS, first_order=first_order)
    learner.meta_backward(batch())
    assert_gradient(learner, expected)


@pytest.mark.parametrize("tracked", [False, True])
def test_norms_by_the_batch_are_our_op_on_all_tasks(tracked):
    model = Normed(track_running_stats=tracked).double().eval()
    learner = MAML(model, inner_lr=RATE, inner_steps=1)
    with mock.patch.object(one_task, "norm_act_pool", wraps=one_task.norm_act_pool) as ours:
        learner.meta_backward(batch())
    assert ours.call_count == (0 if tracked else 2)


def test_a_norm_of_one_number_a_channel_is_refused_as_by_torch():
    norm = nn.BatchNorm2d(2, track_running_stats=False)
    parameters = {name: p.detach().expand(3, -1) for name, p in norm.named_parameters()}
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        task_call(norm, parameters, torch.ones(3, 1, 2, 1, 1))


def test_gradients_of_embeddings_may_be_sparse():
    dense, sparse = Words().double(), Words(sparse=True).double()
    sparse.load_state_dict(dense.state_dict())
    for model in (dense, sparse):
        MAML(model, inner_lr=RATE, inner_steps=STEPS).meta_backward(batch())
    assert torch.equal(sparse.table.weight.grad, dense.table.weight.grad)


@pytest.mark.parametrize(
    "options", [{"backend": "eager", "fullgraph": True}, {"backend": "aot_eager"}]
)
def test_a_compiled_model_sees_one_task_alone(options):
    torch._dynamo.reset()
    plain = Words().double()
    compiled = torch.compile(copy.deepcopy(plain), **options)
    for model in (plain, compiled):
        MAML(model, inner_lr=RATE, inner_steps=STEPS, first_order=True).meta_backward(batch())
    for found, expected in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


class Checkpointed(Recurrent):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


@pytest.mark.filterwarnings("ignore:.*does not run under torch.func.vmap")
def test_checkpoints_would_compute_again_with_other_parameters():
    learner = MAML(Checkpointed().double(), inner_lr=RATE, inner_steps=STEPS)
    for call in (lambda: learner.meta_backward(batch()), lambda: learner.adapt(samples(1))):
        with pytest.raises(NotImplementedError, match=r"got torch\.utils\.checkpoint or another"):
            call()
    # Hooks around a meta-step see what autograd saves, and give it back.
    outside = MAML(Attention().double(), inner_lr=RATE, inner_steps=STEPS)
    expected = copy.deepcopy(outside)
    expected.meta_backward(batch())
    with torch.autograd.graph.save_on_cpu():
        outside.meta_backward(batch())
    assert_gradient(outside, {name: p.grad for name, p in expected.model.named_parameters()})


@dataclass
class Record:
    logits: Tensor


class Records(Recurrent):
    def forward(self, x: Tensor) -> Record:
        return Record(super().forward(x))


@pytest.mark.filterwarnings("ignore:.*does not run under torch.func.vmap")
def test_what_may_hold_tensors_unseen_is_refused():
    with pytest.raises(TypeError, match=r"MAML: expected model to be one that .*, got Record$"):
        MAML(Records().double(), loss=lambda o, t: o.logits.sum()).meta_backward(batch())


LOSSES = {
    "choice of samples": lambda o, t: F.cross_entropy(o[t != 1], t[t != 1]),
    "values decide": lambda o, t: F.gaussian_nll_loss(o, F.one_hot(t, WAYS).double(), o.exp()),
    "in place": lambda o, t: o.square().index_fill_(0, t.unique(), 0.0).sum(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_that_vmap_cannot_run_see_task_after_task(name):
    model, loss = Summed().double(), LOSSES[name]
    own = {n: p.detach().requires_grad_() for n, p in model.named_parameters()}
    tasks, total = batch(), 0.0
    for task in range(TASKS):
        outputs = functional_call(model, own, (tasks.query.images[task],))
        total = total + loss(outputs, tasks.query.labels[task]) / TASKS
    expected = dict(zip(own, torch.autograd.grad(total, list(own.values())), strict=True))
    learner = MAML(model, inner_steps=0, loss=loss)
    with pytest.warns(UserWarning, match="MAML: its loss does not run under .* runs task by task"):
        learner.meta_backward(tasks)
    assert_gradient(learner, expected)


class Asking(nn.Module):
    """A layer that asks of what its input was made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            self.seen.append(x.grad_fn.name())
        return x


def test_a_tensor_says_of_which_operation_it_is():
    asking = Asking()
    model = nn.Sequential(nn.Flatten(), nn.Linear(LENGTH * FEATURES, WAYS), asking).double()
    expected = meta_gradient(copy.deepcopy(model), batch(), first_order=False)
    learner = MAML(model, inner_lr=RATE, inner_steps=STEPS)
    learner.meta_backward(batch())
    assert asking.seen
    assert_gradient(learner, expected)


def test_operations_of_a_network_of_ones_own_are_counted():
    model = nn.Sequential(nn.Flatten(), nn.Linear(LENGTH * FEATURES, WAYS)).double()
    with FlopCounterMode(display=False) as counter:
        MAML(model, inner_lr=RATE, inner_steps=STEPS).meta_backward(batch())
    assert counter.get_total_flops() > 0
