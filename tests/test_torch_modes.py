"""Learners under torch's modes and wrappers: inference mode, compile, copies, frozen parameters."""

import copy
import io

import pytest
import torch
from support.plain_tasks import CHANNELS, SIZE, WAYS, Opaque, batch, network
from support.training_helpers import tiny_config
from torch import distributed, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from metasparse_ext.algorithms import (
    BMP,
    CAVIA,
    FOMAML,
    IMAML,
    LEARNERS,
    MAML,
    ConvexIMAML,
    MetaLearner,
    MetaTicket,
    ProtoNet,
    Reptile,
)
from metasparse_ext.data import Samples, TaskBatch
from metasparse_ext.training import build


def episodes(seed=0):
    """Two tasks of images (1, 16, 16)."""
    torch.manual_seed(seed)

    def samples(each):
        labels = torch.arange(WAYS).repeat_interleave(each).expand(2, -1).contiguous()
        return Samples(torch.rand(2, WAYS * each, 1, 16, 16), labels)

    return TaskBatch(samples(1), samples(2))


@pytest.fixture(params=LEARNERS)
def learner(request, tiny_root) -> MetaLearner:
    torch.manual_seed(0)
    return build.learner(tiny_config(tiny_root, request.param), (1, 16, 16))


def gradients(learner):
    return {n: p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None}


def assert_equal(ours, expected):
    assert ours.keys() == expected.keys()
    for name in ours:
        assert torch.equal(ours[name], expected[name]), name


def test_inference_mode_adapts_as_no_grad_does(learner):
    tasks = episodes()
    with torch.no_grad():
        expected = learner.adapt(tasks.support)
        logits = expected(tasks.query.images)
    with torch.inference_mode():
        made_here = episodes()
        for batch in (tasks, made_here):
            adapted = learner.adapt(batch.support)
            assert_equal(adapted.parameters, expected.parameters)
            assert torch.equal(adapted(batch.query.images), logits)
    assert learner.iteration == 0


def test_a_network_of_its_own_class_adapts_in_inference_mode():
    learner, tasks = MAML(network("opaque"), inner_lr=0.1, inner_steps=2), batch()
    expected = learner.adapt(tasks.support)(tasks.query.images)
    with torch.inference_mode():
        assert torch.equal(learner.adapt(tasks.support)(tasks.query.images), expected)


def test_a_meta_step_in_inference_mode_is_a_meta_step(learner):
    other, tasks = copy.deepcopy(learner), episodes()
    expected = other.meta_backward(tasks)
    with torch.inference_mode():
        found = learner.meta_backward(episodes())
    assert torch.equal(found.loss, expected.loss)
    assert_equal(gradients(learner), gradients(other))


def test_a_meta_step_on_meta_infers_shapes(learner):
    tasks = episodes().to("meta")
    learner = learner.to("meta")
    assert learner.meta_backward(tasks).loss.shape == (2,)
    assert gradients(learner)
    assert learner.adapt(tasks.support)(tasks.query.images).shape == (2, 2 * WAYS, WAYS)


def test_a_meta_step_of_fake_tensors_infers_shapes():
    with FakeTensorMode():
        learner = MAML(network(), inner_steps=2)
        assert learner.meta_backward(batch()).loss.shape == (3,)


def test_training_goes_on_after_inference_mode(learner):
    tasks = episodes()
    with torch.inference_mode():
        learner.adapt(episodes().support)
    learner.meta_backward(tasks)
    assert gradients(learner)


def test_copies_and_pickles_take_the_same_step(learner):
    file = io.BytesIO()
    torch.save(learner, file)
    file.seek(0)
    copies = [copy.deepcopy(learner), torch.load(file, weights_only=False)]
    learner.meta_backward(episodes())
    for other in copies:
        other.meta_backward(episodes())
        assert_equal(gradients(other), gradients(learner))
        assert_equal(dict(other.named_parameters()), dict(learner.named_parameters()))
        assert_equal(dict(other.named_buffers()), dict(learner.named_buffers()))


def test_averaged_model_averages(learner):
    averaged = AveragedModel(learner)
    averaged.update_parameters(learner)
    first = {n: p.detach().clone() for n, p in learner.named_parameters()}
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(1)
    averaged.update_parameters(learner)
    for name, parameter in averaged.module.named_parameters():
        torch.testing.assert_close(parameter, first[name] + 0.5)
    averaged.module.adapt(episodes().support)


def test_learners_made_in_inference_mode_learn():
    """Of a model from outside; parameters that were made there never get gradients."""
    net = network()
    with torch.inference_mode():
        learner, made_there = Reptile(net, inner_steps=1), network()
    learner.meta_backward(batch())
    assert int(learner.iteration) == 1
    expected = r"outside of torch\.inference_mode, .* got blocks\.0\.conv\.weight"
    with pytest.raises(ValueError, match=expected):
        MAML(made_there)


def test_compile_leaves_a_meta_step_as_it_is():
    learner, tasks = MAML(network(), inner_lr=0.1, inner_steps=2), batch()
    other = copy.deepcopy(learner)
    expected = other.meta_backward(tasks)
    found = torch.compile(learner.meta_backward, backend="eager")(tasks)
    assert torch.equal(found.loss, expected.loss)
    assert_equal(gradients(learner), gradients(other))
    adapted = torch.compile(learner.adapt, backend="eager")(tasks.support)
    assert_equal(adapted.parameters, other.adapt(tasks.support).parameters)


def test_compile_of_a_step_around_it_compiles_the_rest():
    learner, tasks = MAML(network(), inner_lr=0.1, inner_steps=1), batch()
    expected = copy.deepcopy(learner).meta_backward(tasks).loss.mean() * 2
    step = torch.compile(
        lambda tasks: learner.meta_backward(tasks).loss.mean() * 2, backend="eager"
    )
    assert torch.equal(step(tasks), expected)


def test_a_learner_is_not_called():
    with pytest.raises(NotImplementedError, match=r"MAML: a learner is not called; .*all_reduce"):
        MAML(network())(batch().query.images)


@pytest.fixture
def one_process():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_a_model_that_averages_gradients_by_itself_is_refused(one_process):
    model = DistributedDataParallel(network())
    with pytest.raises(ValueError, match=r"got DistributedDataParallel; hand over its \.module"):
        MAML(model)
    with pytest.raises(ValueError, match=r"got its '0' \(DistributedDataParallel\); hand over"):
        MAML(nn.Sequential(model))


# Parameters that are frozen when the learner is there already.


def frozen(net):
    net.blocks[0].requires_grad_(False)
    return net


@pytest.mark.parametrize("kind", [MAML, Reptile, ConvexIMAML])
def test_freezing_later_is_freezing_before(kind):
    before, later = kind(frozen(network())), kind(network())
    later.meta_backward(batch())  # Reptile's averages have values now
    if kind is Reptile:
        before.square.copy_(before.layout.flatten(later.layout.unflatten(later.square)))
        before.updates.copy_(later.updates)
    for parameter in later.parameters():
        parameter.grad = None
    before.iteration.fill_(1)
    frozen(later.model)
    for learner in (before, later):
        learner.meta_backward(batch())
    assert_equal(gradients(later), gradients(before))
    assert not any(name.startswith("model.blocks.0.") for name in gradients(later))
    assert_equal(later.adapt(batch().support).parameters, before.adapt(batch().support).parameters)


def test_thawing_puts_parameters_back():
    learner = MAML(frozen(network()))
    learner.model.requires_grad_(True)
    learner.meta_backward(batch())
    expected = MAML(network())
    expected.meta_backward(batch())
    assert_equal(gradients(learner), gradients(expected))


def test_every_learner_follows_or_says_why_not(learner):
    if isinstance(learner, CAVIA):
        pytest.skip("its inner loop moves contexts alone")
    weights = [n for n, _ in learner.model.named_parameters() if n.endswith("conv.weight")]
    parameter = learner.model.get_parameter(weights[0]).requires_grad_(False)
    if isinstance(learner, (BMP, MetaTicket)):
        expected = rf"changed: {weights[0]}\. Freeze parameters before making the learner"
        with pytest.raises(ValueError, match=expected):
            learner.meta_backward(episodes())
        return
    learner.meta_backward(episodes())
    assert parameter.grad is None
    assert gradients(learner)


def test_learned_rates_refuse_a_new_layout():
    learner = MAML(network(), rates="layer")
    frozen(learner.model)
    with pytest.raises(ValueError, match=r"keeps learned rates for each; changed: blocks\.0\.conv"):
        learner.meta_backward(batch())


def test_nothing_left_to_adapt_is_refused():
    learner = MAML(network())
    learner.model.requires_grad_(False)
    for make in (learner.start, lambda _: MAML(learner.model)):
        with pytest.raises(
            ValueError, match="MAML: expected model to be one with parameters that require"
        ):
            make(1)


# Models of one's own.


def test_statistics_that_are_tracked_after_all_are_refused():
    net = nn.Sequential(
        nn.Conv2d(CHANNELS, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(WAYS)
    ).double()
    net(batch().query.images[0])
    learner = MAML(net.eval(), inner_steps=1)
    learner.meta_backward(batch())
    learner.train()
    for call in (lambda: learner.meta_backward(batch()), lambda: learner.adapt(batch().support)):
        with pytest.raises(ValueError, match="'1' updates its running statistics in its forward"):
            call()
    learner.eval()
    learner.meta_backward(batch())


class Wrapped(Opaque):
    def __init__(self, net, kind):
        super().__init__(net)
        self.kind = kind

    def forward(self, x):
        y = self.net(x)
        return {"logits": y} if self.kind is dict else (y, None)


@pytest.mark.parametrize("kind", [dict, tuple])
@pytest.mark.parametrize("learner", [MAML, ConvexIMAML])
def test_outputs_that_are_no_tensor_are_refused(kind, learner):
    expected = f"expected model to return its logits, a tensor, got {kind.__name__} from Wrapped"
    with pytest.raises(TypeError, match=expected):
        learner(Wrapped(network(), kind)).meta_backward(batch())


def test_a_model_without_a_linear_layer_has_no_head():
    with pytest.raises(
        ValueError, match=r"expected model to be one with an nn\.Linear, .* Sequential without"
    ):
        ConvexIMAML(nn.Sequential(nn.Conv2d(CHANNELS, WAYS, SIZE), nn.Flatten()))


class Detached(Opaque):
    @torch.no_grad()
    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("learner", [MAML, FOMAML, IMAML, Reptile, ProtoNet])
def test_a_model_without_gradients_is_refused(learner):
    with pytest.raises(ValueError, match="expected model to be one whose loss depends, differ"):
        learner(Detached(network())).meta_backward(batch())


def test_a_loss_without_gradients_is_refused():
    learner = MAML(network(), loss=lambda outputs, targets: outputs.detach().square().mean())
    with pytest.raises(ValueError, match="MAML: expected model to be one whose loss depends, diff"):
        learner.meta_backward(batch())
