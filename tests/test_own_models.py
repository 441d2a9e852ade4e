"""Models of one's own: attention, recurrent layers, several inputs, several outputs."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from support.own_models import (
    COUNT,
    FEATURES,
    RATE,
    STEPS,
    TASKS,
    WAYS,
    Attention,
    Recurrent,
    Summed,
    Two,
    assert_gradient,
    batch,
    largest,
    meta_gradient,
    samples,
)
from torch import Tensor, nn
from torch.func import functional_call

from metasparse_ext.algorithms import FOMAML, IMAML, MAML, AdaptedTasks, Reptile
from metasparse_ext.data import Samples, TaskBatch
from metasparse_ext.nn import Conv4, MaskedConv2d, TopKMask, is_task_aware


class Chooses(nn.Module):
    """A value decides what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(FEATURES, WAYS), nn.Linear(FEATURES, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(1)
        return self.one(x) if x.sum() > 0 else self.other(x).tanh()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.filterwarnings("ignore:.*does not run under torch.func.vmap")
@pytest.mark.parametrize("learner", [MAML, FOMAML])
@pytest.mark.parametrize("make", [Recurrent, Attention, Chooses])
def test_meta_gradients_are_those_of_a_plain_loop(make, learner):
    model = make().double()
    if make is Attention:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with sdpa_kernel(SDPBackend.MATH):
            expected = meta_gradient(model, batch(), first_order=learner is FOMAML)
    else:
        expected = meta_gradient(model, batch(), first_order=learner is FOMAML)
    made = learner(model, inner_lr=RATE, inner_steps=STEPS)
    made.meta_backward(batch())
    assert_gradient(made, expected)


@pytest.mark.filterwarnings("ignore:.*does not run under torch.func.vmap")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_networks_adapt_and_predict(kind):
    model = Recurrent(kind).double()
    learner = MAML(model, inner_lr=RATE, inner_steps=STEPS, first_order=True)
    support, query = batch()
    adapted = learner.adapt(support)
    for task in range(TASKS):
        own = {name: p[task] for name, p in adapted.parameters.items()}
        expected = functional_call(model, own, (query.images[task],))
        torch.testing.assert_close(adapted(query.images)[task], expected)


def test_a_model_that_runs_task_by_task_says_so_once():
    learner = FOMAML(Recurrent().double(), inner_lr=RATE, inner_steps=1)
    with pytest.warns(UserWarning, match=r"FOMAML: its 'rnn' \(LSTM\) does not run under"):
        learner.meta_backward(batch())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.meta_backward(batch())
        learner.adapt(samples(3))


def both(outputs, targets: Tensor) -> Tensor:
    one, two = (outputs["one"], outputs["two"]) if isinstance(outputs, dict) else outputs
    return F.cross_entropy(one + 2 * two, targets)


def right(outputs, targets: Tensor) -> Tensor:
    one, two = (outputs["one"], outputs["two"]) if isinstance(outputs, dict) else outputs
    return ((one + 2 * two).argmax(-1) == targets).double().mean()


LEARNERS = {
    "maml": lambda model, **own: MAML(model, inner_lr=RATE, inner_steps=STEPS, **own),
    "imaml": lambda model, **own: IMAML(model, inner_lr=RATE, inner_steps=STEPS, **own),
    "reptile": lambda model, **own: Reptile(
        model, inner_lr=RATE, inner_steps=STEPS, optimizer="sgd", **own
    ),
}


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("kind", [dict, tuple])
@pytest.mark.parametrize("name", LEARNERS)
def test_a_loss_takes_what_the_model_returns(name, kind, chunk):
    model = Two(kind).double()
    plain = Summed().double()
    plain.load_state_dict(model.state_dict())
    expected = LEARNERS[name](plain)
    metrics = expected.meta_backward(batch())
    learner = LEARNERS[name](model, loss=both, metric=right, task_chunk=chunk)
    found = learner.meta_backward(batch())
    torch.testing.assert_close(found.loss, metrics.loss)
    torch.testing.assert_close(found.accuracy, metrics.accuracy.double())
    assert_gradient(learner, {name: p.grad for name, p in plain.named_parameters()})


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("kind", [tuple, dict])
@pytest.mark.parametrize("name", LEARNERS)
def test_a_model_takes_several_inputs(name, kind, chunk):
    def of(seed: int) -> tuple[Samples, Samples]:
        x, shift = samples(seed), samples(seed + 10)
        pair = (x.images, shift.images)
        several = pair if kind is tuple else dict(zip(("x", "shift"), pair, strict=True))
        return Samples(sum(pair), x.labels), Samples(several, x.labels)

    (support, supports), (query, queries) = of(1), of(2)
    one = LEARNERS[name](Summed().double())
    several = LEARNERS[name](Summed().double(), task_chunk=chunk)
    several.load_state_dict(one.state_dict())
    expected = one.meta_backward(TaskBatch(support, query))
    found = several.meta_backward(TaskBatch(supports, queries).to("cpu"))
    torch.testing.assert_close(found.loss, expected.loss)
    assert_gradient(several, {name: p.grad for name, p in one.model.named_parameters()})
    logits = several.adapt(supports)(queries.images)
    torch.testing.assert_close(logits, one.adapt(support)(query.images))


def test_inputs_that_do_not_fit_are_named():
    learner, x = MAML(Summed().double(), inner_steps=1), samples(1)
    wrong = Samples({"x": x.images, "shift": x.images[:, :2]}, x.labels)
    with pytest.raises(ValueError, match=r"support\.images\['shift'\] to be \(T, N, \.\.\.\) = \("):
        learner.adapt(wrong)
    with pytest.raises(TypeError, match=r"support\.images\[1\] to be a tensor, got str"):
        learner.adapt(Samples((x.images, "text"), x.labels))
    with pytest.raises(ValueError, match=r"support\.images to be at least one tensor"):
        learner.adapt(Samples((), x.labels))


class Standardized(MaskedConv2d):
    """A convolution of standardized weights, which forgets the tasks' axis."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Centred(Conv4):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images - images.mean(0, keepdim=True))


def centre(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0] - inputs[0].mean(0, keepdim=True),)


def scale(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return output * output.detach().abs().amax((1, 2, 3), keepdim=True)


def standardized() -> nn.Module:
    net = Conv4(2, 8, 4, WAYS, blocks=2)
    old = net.blocks[1].conv
    net.blocks[1].conv = Standardized(4, 4, 3, stride=2, padding=1)
    net.blocks[1].conv.load_state_dict(old.state_dict())
    return net


def changed(how: str) -> nn.Module:
    if how == "subclass of a layer":
        return standardized()
    net = (Centred if how == "subclass of a network" else Conv4)(2, 8, 4, WAYS, blocks=2)
    if how == "weight norm":
        nn.utils.parametrizations.weight_norm(net.blocks[1].conv)
        nn.utils.parametrizations.weight_norm(net.head)
    elif how == "hook before":
        net.register_forward_pre_hook(centre)
    elif how == "hook after":
        net.blocks[0].conv.register_forward_hook(scale)
    elif how == "hook backward":
        net.blocks[1].conv.register_full_backward_hook(lambda _, g, __: (largest(g[0]),))
    elif how == "forward of an instance":
        forward = net.blocks[1].conv.forward
        net.blocks[1].conv.forward = lambda x: forward(x - x.mean(0, keepdim=True))
    return net


@pytest.mark.filterwarnings("ignore:.*so the model runs task by task")
@pytest.mark.parametrize(
    "how",
    [
        "subclass of a layer",
        "subclass of a network",
        "weight norm",
        "hook before",
        "hook after",
        "hook backward",
        "forward of an instance",
    ],
)
def test_what_was_changed_in_our_networks_sees_one_task(how):
    model = changed(how).double()
    assert not is_task_aware(model)
    support, query = (
        Samples(torch.randn(TASKS, COUNT, 2, 8, 8, dtype=torch.float64), samples(0).labels)
        for _ in range(2)
    )
    tasks = TaskBatch(support, query)
    expected = meta_gradient(model, tasks, first_order=False)
    learner = MAML(model, inner_lr=RATE, inner_steps=STEPS)
    learner.meta_backward(tasks)
    assert_gradient(learner, expected)
    adapted = learner.adapt(support)
    for task in range(TASKS):
        own = {name: p[task] for name, p in adapted.parameters.items()}
        wanted = functional_call(model, own, (query.images[task],))
        torch.testing.assert_close(adapted(query.images)[task], wanted)


class Weighted(nn.Module):
    """A loss with a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(1000.0, dtype=torch.float64))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.factor * F.cross_entropy(outputs, targets)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_loss_may_be_a_module(name):
    plain = LEARNERS[name](Summed().double(), loss=lambda o, t: 1000 * F.cross_entropy(o, t))
    learner = LEARNERS[name](Summed().double(), loss=Weighted(), metric=Weighted())
    learner.load_state_dict(plain.state_dict())
    expected, found = plain.meta_backward(batch()), learner.meta_backward(batch())
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.accuracy, found.loss)
    assert learner.state_dict().keys() == plain.state_dict().keys()


def test_attention_in_evaluation_mode_adapts():
    learner = FOMAML(Attention().double(), inner_lr=RATE, inner_steps=STEPS)
    support, query = batch()
    expected = learner.adapt(support)(query.images)
    learner.eval()
    torch.testing.assert_close(learner.adapt(support)(query.images), expected)


class Wrapped(nn.Module):
    """Hides that what is inside understands the task axis."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x)


@pytest.mark.parametrize("kind", [nn.Sequential, Wrapped])
def test_masks_are_copies(kind):
    layer = MaskedConv2d(3, 3, 3, mask=torch.ones(3, 3))
    model = kind(layer)
    held = {name: p.detach().expand(TASKS, *p.shape) for name, p in model.named_parameters()}
    adapted = AdaptedTasks(model, held)
    (mask,) = adapted.masks().values()
    assert mask.shape == (TASKS, 3, 3)
    mask.zero_()
    assert layer.masker.mask.all()
    assert adapted.active().eq(1).all()


def test_masks_of_tied_weights_are_those_that_are_used():
    one, two = (MaskedConv2d(3, 3, 3) for _ in range(2))
    one.masker, two.masker = TopKMask(0.5), TopKMask(0.5)
    two.weight = one.weight
    model = nn.Sequential(one, two)
    weights = torch.randn(TASKS, 3, 3, 3, 3)
    masks = AdaptedTasks(model, {"0.weight": weights}).masks()
    assert torch.equal(masks["0"], masks["1"])
