"""Images whose dtype the model cannot take: learners and task networks say which, in one line."""

import pytest
import torch
from torch import nn

from metasparse_ext.algorithms import FOMAML, MAML, ProtoNet, Reptile, task_call
from metasparse_ext.data import Samples, TaskBatch
from metasparse_ext.nn import Conv4
from metasparse_ext.training import predict

MODELS = {
    "plain": lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3)),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
    "task-aware": lambda: Conv4(1, 8, 4, 3, blocks=2),
}
LEARNERS = {
    "maml": lambda model: MAML(model, inner_lr=0.1, inner_steps=1),
    "in chunks": lambda model: FOMAML(model, inner_lr=0.1, inner_steps=1, task_chunk=1),
    "reptile": lambda model: Reptile(model, inner_lr=0.1, inner_steps=1),
    "protonet": ProtoNet,
}
DTYPES = [torch.float64, torch.uint8, torch.int64]


def samples(dtype: torch.dtype) -> Samples:
    images = torch.zeros(2, 3, 1, 8, 8, dtype=dtype)
    return Samples(images, torch.arange(3).expand(2, 3))


def message(owner: str, name: str, dtype: torch.dtype, like: str = "the model") -> str:
    got = str(dtype).removeprefix("torch.")
    return f"^{owner}: expected {name} to be of float32 like {like}, got {got}$"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("learner", LEARNERS)
def test_learners_name_the_images(learner, model, dtype):
    made = LEARNERS[learner](MODELS[model]())
    right, wrong = samples(torch.float32), samples(dtype)
    with pytest.raises(TypeError, match=message(made.name, r"support\.images", dtype)):
        made.adapt(wrong)
    with pytest.raises(TypeError, match=message(made.name, r"batch\.support\.images", dtype)):
        made.meta_backward(TaskBatch(wrong, wrong))
    other = message(made.name, r"batch\.query\.images", dtype, r"batch\.support\.images")
    with pytest.raises(TypeError, match=other):
        made.meta_backward(TaskBatch(right, wrong))
    adapted = made.adapt(right)
    with pytest.raises(TypeError, match=message("AdaptedTasks", "images", dtype)):
        adapted(wrong.images)


@pytest.mark.parametrize("model", MODELS)
def test_task_call_names_the_images(model):
    network = MODELS[model]()
    parameters = {name: p.expand(2, *p.shape) for name, p in network.named_parameters()}
    with pytest.raises(TypeError, match=message("task_call", "images", torch.uint8)):
        task_call(network, parameters, samples(torch.uint8).images)


def test_images_on_another_device_are_named():
    """vmap would compute something of a tensor without values."""
    network = MODELS["linear"]()
    parameters = {name: p.expand(2, *p.shape) for name, p in network.named_parameters()}
    wanted = "expected images to be on cpu like the parameters, got meta"
    with pytest.raises(ValueError, match=wanted):
        task_call(network, parameters, samples(torch.float32).images.to("meta"))


def test_a_model_may_convert_its_images():
    class Converting(nn.Sequential):
        def forward(self, x):
            return super().forward(x.float() / 255)

    learner = MAML(Converting(nn.Flatten(), nn.Linear(64, 3)), inner_lr=0.1, inner_steps=1)
    for dtype in (torch.uint8, torch.float64):
        learner.meta_backward(TaskBatch(samples(dtype), samples(dtype)))


def test_sets_of_different_dtypes_are_refused():
    """Also what both would be promoted to where a learner lays them together, and targets."""
    learner = Reptile(MODELS["linear"](), inner_steps=1)
    got = r"batch\.query\.images to be of uint8 like batch\.support\.images, got float32$"
    with pytest.raises(TypeError, match=f"^Reptile: expected {got}"):
        learner.meta_backward(TaskBatch(samples(torch.uint8), samples(torch.float32)))
    learner = MAML(MODELS["linear"](), inner_steps=1, loss=torch.nn.functional.mse_loss)
    support = samples(torch.float32)._replace(labels=torch.zeros(2, 3, 3))
    query = support._replace(labels=support.labels.double())
    with pytest.raises(TypeError, match=r"labels to be of float32 like .*support\.labels, got f"):
        learner.meta_backward(TaskBatch(support, query))
    network = MAML(MODELS["linear"](), inner_steps=1).adapt(samples(torch.float32))
    expected = message("predict", "images", torch.uint8, r"support\.images")
    with pytest.raises(TypeError, match=expected):
        predict(network, samples(torch.float32), samples(torch.uint8).images, transductive=False)


def test_other_errors_of_the_model_stay_as_they_are():
    learner = MAML(nn.Sequential(nn.Flatten(), nn.Linear(9, 3)), inner_lr=0.1, inner_steps=1)
    wrong = Samples(torch.zeros(2, 3, 1, 8, 8), torch.arange(3).expand(2, 3))
    with pytest.raises(RuntimeError, match=r"shape|size"):
        learner.adapt(wrong)


def test_the_first_input_of_a_floating_dtype_is_named():
    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.rest = nn.Embedding(5, 4), nn.Linear(4, 3)

        def forward(self, words, rest):
            return self.rest(self.words(words) + rest)

    learner = MAML(Embedded(), inner_lr=0.1, inner_steps=1)
    words, labels = torch.zeros(2, 3, dtype=torch.int64), torch.arange(3).expand(2, 3)
    rest = torch.zeros(2, 3, 4, dtype=torch.float64)
    with pytest.raises(TypeError, match=message("MAML", r"support\.images\[1\]", rest.dtype)):
        learner.adapt(Samples((words, rest), labels))
    learner.adapt(Samples((words, rest.float()), labels))
