"""Networks of one's own leave as what they are, or are refused in words and nothing is written."""

import threading

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from support.exported import adapted
from torch import nn
from torch.nn.utils import parametrizations, prune

import metasparse_ext as ms
from metasparse_ext.export import sparse
from metasparse_ext.nn import BatchNorm2d, Conv4, MaskedConv2d

pytestmark = pytest.mark.usefixtures("one_thread")


class Own(nn.Module):
    """Two convolutions and a head; what is between them is said by ``features``."""

    def __init__(self, features, norm=BatchNorm2d, conv=MaskedConv2d, **layers):
        super().__init__()
        self.a = conv(3, 6, 3, padding=1)
        self.b = conv(6, 6, 3, padding=1)
        self.norm = norm(6)
        self.head = nn.Linear(6, 3)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.features = features

    def forward(self, x):
        return self.head(self.features(self, x).mean((2, 3)))


def shared(net, x):
    x = F.relu(net.norm(net.a(x)))
    return F.relu(net.norm(net.b(x)))


def recurrent(net, x):
    x = net.a(x)
    for _ in range(3):
        x = F.relu(net.norm(net.b(x)))
    return x


def untraceable(net, x):
    return shared(net, x if x.sum() < 1e9 else -x)


def tracks_nothing(channels):
    return nn.BatchNorm2d(channels, track_running_stats=False)


def plain_norm(channels):
    return BatchNorm2d(channels, affine=False)


def by_hand(task, images):
    """The logits by the statistics that each call of the norm finds in the support set."""
    model = task.networks.model
    own = {name: value[0] for name, value in task.networks.parameters.items()}
    norm, found, known = model.norm, [], []

    def measure(x):
        known.append((x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)))
        return F.batch_norm(x, *known[-1], norm.weight, norm.bias, eps=norm.eps)

    def use(x):
        found.append(x)
        return F.batch_norm(x, *known[len(found) - 1], norm.weight, norm.bias, eps=norm.eps)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(own.get(name, parameter))
        norm.forward = measure
        model(task.support.images[0])
        norm.forward = use
        logits = model(images)
        del norm.forward
    return logits


@pytest.mark.parametrize("norm", [BatchNorm2d, tracks_nothing, plain_norm])
@pytest.mark.parametrize("features", [shared, recurrent])
@torch.no_grad()
def test_each_call_of_a_norm_has_statistics_of_its_own(tmp_path, features, norm):
    task = adapted(Own(features, norm))
    images = torch.rand(5, 3, 12, 12)
    wanted = by_hand(task, images)
    torch.testing.assert_close(task.network()(images), wanted, rtol=1e-4, atol=1e-5)
    task.export(tmp_path / "own.metasparse")
    found = ms.load_sparse(tmp_path / "own.metasparse").network(images)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    together = task.network(transductive=True)
    assert sum(isinstance(each, nn.BatchNorm2d) for each in together.modules()) == 1
    wanted = task.logits(images, transductive=True)
    torch.testing.assert_close(together(images), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*vmap:UserWarning")
def test_a_norm_that_no_graph_calls_twice_is_refused():
    task = adapted(Own(untraceable))
    with pytest.raises(ValueError, match=r"got 2 calls of network\.norm; --transductive"):
        task.network()
    task.network(transductive=True)
    with pytest.raises(ValueError, match="one whose forward can be traced, got Own; --to torch"):
        task.export("own.metasparse", transductive=True)


def test_a_network_that_cannot_be_copied_is_refused():
    net = Own(shared)
    net.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"one that copy\.deepcopy can copy, got Own: .*lock"):
        adapted(net).network()


class Doubles(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(2 * x)


DEPENDENT = {
    "a function": lambda net, x: F.batch_norm(net.a(x), None, None, training=True),
    "the mean image": lambda net, x: net.a(x - x.mean(0, keepdim=True)),
    "one image is no batch": lambda net, x: net.a(x.squeeze()),
    "a norm of one's own": lambda net, x: net.own(net.a(x)),
    "a norm that doubles": lambda net, x: net.doubles(net.a(x).relu()),
}


class Centred(BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize("what", DEPENDENT)
def test_statistics_that_cannot_be_fixed_are_refused(tmp_path, what):
    doubles = Doubles(6, eps=0.1, track_running_stats=False)
    task = adapted(Own(DEPENDENT[what], own=Centred(6), doubles=doubles))
    with pytest.raises(ValueError, match=r"export: expected the network to be .*--transductive"):
        task.export(tmp_path / "own.safetensors")
    assert not list(tmp_path.iterdir())
    images = torch.rand(5, 3, 12, 12)
    found, wanted = task.network(transductive=True)(images), task.logits(images, transductive=True)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_class_of_ones_own_with_our_forward_is_our_layer():
    class Mine(BatchNorm2d):
        pass

    found = adapted(Own(lambda net, x: net.norm(net.a(x)), Mine)).network()
    assert type(found.norm) is nn.BatchNorm2d


def old_weight_norm(*args, **options):
    return torch.nn.utils.weight_norm(nn.Conv2d(*args, **options))


def pruned(*args, **options):
    return prune.random_unstructured(nn.Conv2d(*args, **options), "weight", 0.5)


def weight_norm(*args, **options):
    return parametrizations.weight_norm(MaskedConv2d(*args, **options))


def spectral_norm(*args, **options):
    return parametrizations.spectral_norm(MaskedConv2d(*args, **options))


def shortcut(net, x):
    x = net.a(x)
    return net.b(net.act(x)) + x  # of the activation, where that works in place


def kept(net, x):
    net.feature = net.a(x)
    net.several = [net.feature.relu()]
    return net.b(net.several[0])


def named(net, x):
    return net.b(F.relu(getattr(net, "conv-1")(x)))


def chain(net, x):
    return net.act(net.b(net.act(net.a(x))))


LEAVING = {
    "elu": lambda: Own(chain, act=nn.ELU(alpha=0.3)),
    "gelu": lambda: Own(chain, act=nn.GELU(approximate="tanh")),
    "leaky": lambda: Own(chain, act=nn.LeakyReLU(0.5, inplace=True)),
    "in place": lambda: Own(shortcut, act=nn.ReLU(inplace=True)),
    "dropout": lambda: Own(chain, act=nn.Sequential(nn.Dropout(0.5), nn.Dropout2d(), nn.ReLU())),
    "a function of dropout": lambda: Own(lambda n, x: n.b(F.dropout(n.a(x), 0.5, n.training))),
    "a name": lambda: Own(named, **{"conv-1": MaskedConv2d(3, 6, 3, mask=torch.eye(6)[:, :3])}),
    "kept": lambda: Own(kept),
    "old weight norm": lambda: Own(chain, conv=old_weight_norm, act=nn.Tanh()),
    "weight norm": lambda: Own(chain, conv=weight_norm, act=nn.Tanh()),
    "spectral norm": lambda: Own(chain, conv=spectral_norm, act=nn.Tanh()),
    "pruned": lambda: Own(chain, conv=pruned, act=nn.Tanh()),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of weight norms
@pytest.mark.parametrize("what", LEAVING)
@torch.no_grad()
def test_a_file_computes_what_the_network_does(tmp_path, what):
    task = adapted(LEAVING[what]())
    before = task.networks(task.support.images)
    images = torch.rand(5, 3, 12, 12)
    wanted = task.logits(images)
    torch.testing.assert_close(task.network()(images), wanted, rtol=1e-4, atol=1e-5)
    task.export(tmp_path / "own.metasparse")
    found = ms.load_sparse(tmp_path / "own.metasparse").network(images)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(task.networks(task.support.images), before)


def hooked():
    net = Own(chain, act=nn.Tanh())
    net.act.register_forward_hook(lambda layer, given, made: 3 * made)
    return net


def test_hooks_that_cannot_leave_are_named(caplog):
    seen = []
    net = Own(chain, act=nn.Tanh())
    net.b.register_forward_hook(lambda layer, given, made: seen.append(made.shape))
    images = torch.rand(5, 3, 12, 12)
    task = adapted(net)
    wanted = task.logits(images)
    network = task.network()
    assert caplog.messages == ["export: hooks on b are left out"]
    seen.clear()
    torch.testing.assert_close(network(images), wanted, rtol=1e-4, atol=1e-5)
    assert not seen
    net.b.register_forward_hook(lambda layer, given, made: 3 * made)
    with pytest.raises(ValueError, match="PyTorch's own layers can compute"):
        adapted(net).network()


REFUSED = {
    "alpha": (lambda: Own(lambda n, x: torch.add(n.a(x), n.a(x), alpha=3)), "add with alpha"),
    "hook": (hooked, r"Tanh \(act\) with hooks"),
    "quotes": (lambda: Own(lambda n, x: n.a(getattr(n, 'a"b')(x)), **{'a"b': nn.Tanh()}), "."),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_file_cannot_say_is_refused(tmp_path, what):
    make, said = REFUSED[what]
    task = adapted(make())
    with pytest.raises(ValueError, match=f"export: expected the network to be .*{said}"):
        task.export(tmp_path / "own.metasparse")
    assert not list(tmp_path.iterdir())


def test_a_file_that_would_read_as_another_network_is_not_written(tmp_path, monkeypatch):
    task = adapted(Own(chain, act=nn.ELU(alpha=0.3)))
    monkeypatch.setitem(sparse._LAYERS, "elu", (nn.ELU, ()))
    said = (
        r"one that load_sparse reads as it is, got one whose ELU \(act\) would give other numbers"
    )
    with pytest.raises(ValueError, match=said):
        task.export(tmp_path / "own.metasparse")
    monkeypatch.setitem(sparse._LAYERS, "elu", (nn.ELU, ("training",)))
    with pytest.raises(ValueError, match=r"reads as it is, got .*'training'; --to torch takes any"):
        task.export(tmp_path / "own.metasparse")
    assert not list(tmp_path.iterdir())


class Thrice(MaskedConv2d):
    def forward(self, x):
        return 3 * super().forward(x)


@pytest.mark.parametrize(
    "make",
    [Thrice, lambda *size, **how: parametrizations.spectral_norm(MaskedConv2d(*size, **how))],
)
@torch.no_grad()
def test_pruned_weights_are_zeros_in_layers_of_ones_own(tmp_path, make):
    mask = torch.rand(6, 6) < 0.5
    net = Own(chain, conv=make, act=nn.Tanh())
    net.b.masker.mask.copy_(mask)
    task = adapted(net)
    task.export(tmp_path / "own.safetensors")
    weights = [
        v for v in load_file(tmp_path / "own.safetensors").values() if v.shape[1:] == (6, 3, 3)
    ]
    assert len(weights) == 1
    assert torch.equal((weights[0] != 0).flatten(2).any(2), mask)
    images = torch.rand(5, 3, 12, 12)
    torch.testing.assert_close(task.network()(images), task.logits(images), rtol=1e-4, atol=1e-5)


def test_one_image_of_which_no_statistics_can_be_taken_is_refused_in_words(tmp_path):
    task = adapted(Conv4(3, 12, 4, 3))
    task.export(tmp_path / "own.metasparse", transductive=True)
    read = ms.load_sparse(tmp_path / "own.metasparse")
    assert len(read.classify(torch.rand(2, 3, 12, 12))) == 2
    with pytest.raises(ValueError, match=r"classify: expected images to be 2 or more, .*one image"):
        read.classify(torch.rand(1, 3, 12, 12))
