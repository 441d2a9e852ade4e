"""The sparse file: as small as what is left, the same tensors again, and whole or refused."""

import json

import pytest
import safetensors.torch
import torch
from support.exported import masks_of, numbers, prune, task_images
from support.training_helpers import tiny_config
from torch import nn

import metasparse_ext as ms
from metasparse_ext import _sealed
from metasparse_ext.export import sparse
from metasparse_ext.export.plain import plain_network
from metasparse_ext.nn import Conv4, FixedMask, MaskedConv2d, ResNet12
from metasparse_ext.training import CheckpointError, Run, Trainer, build

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = {
    "classes": '["a", "b", "c", "d", "e"]',
    "images": '{"shape": [3, 32, 32], "fit": "squash", "ground": "white", "inverted": false}',
}


@pytest.fixture(scope="module")
def task(tiny_root, tmp_path_factory, one_thread):
    """An adapted task, and query images of its classes."""
    run = Run(tmp_path_factory.mktemp("runs") / "metadock")
    Trainer(tiny_config(tiny_root, "metadock", iterations=1), run).fit()
    support, query = task_images(build.images(run.config(), "test"))
    return ms.load(run).adapt(support), query


def stock(net):
    return plain_network(net, {}, masks_of(net), 5)


def same_tensors(found, wanted):
    """Those of layers, beside the masks that the file's convolutions have."""
    own = {n: v for n, v in found.state_dict().items() if "masker" not in n}
    wanted = wanted.state_dict()
    assert own.keys() == wanted.keys()
    assert all(torch.equal(own[name], wanted[name]) for name in own)
    assert all(own[name].dtype == wanted[name].dtype for name in own)


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
@torch.no_grad()
def test_the_file_is_as_large_as_what_is_left(density):
    net = stock(prune(Conv4(3, 32, 32, 5), density, dead=False))
    data = sparse.to_bytes(net, SETTINGS)
    kernels = sum(m.weight[:, :, 0, 0].numel() for m in net.modules() if isinstance(m, nn.Conv2d))
    left = sum(
        round(density * m.weight[:, :, 0, 0].numel())
        for m in net.modules()
        if isinstance(m, nn.Conv2d)
    )
    others = numbers(net) - 9 * kernels
    bits = kernels / 8 if density < 1 else 0
    assert 0 <= len(data) - 4 * (9 * left + others) - bits < 6000  # names, layers, settings
    again, _ = sparse.from_bytes(data)
    same_tensors(again, net)
    images = torch.rand(6, 3, 32, 32)
    torch.testing.assert_close(again(images), net(images), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_kernels_that_are_pruned_are_skipped():
    net = prune(Conv4(3, 32, 8, 5), 0.3)
    again, _ = sparse.from_bytes(sparse.to_bytes(stock(net), SETTINGS))
    layers = [m for m in again.modules() if isinstance(m, MaskedConv2d)]
    assert len(layers) == 4
    for layer, mask in zip(layers, masks_of(net).values(), strict=True):
        assert torch.equal(layer.masker(layer.weight), mask)


@torch.no_grad()
def test_weights_pruned_one_by_one_and_those_of_a_head():
    net = Conv4(3, 32, 16, 5).eval()
    for layer in net.modules():
        if isinstance(layer, MaskedConv2d):
            layer.masker = FixedMask(torch.rand_like(layer.weight) < 0.2)
    net.head.weight *= torch.rand_like(net.head.weight) < 0.1
    net = stock(net)
    data = sparse.to_bytes(net, SETTINGS)
    assert len(data) < 0.35 * 4 * numbers(net) + 6000
    same_tensors(sparse.from_bytes(data)[0], net)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_other_networks_and_dtypes(dtype):
    net = stock(prune(ResNet12(3, 16, 4, 5), 0.4).to(dtype))
    same_tensors(sparse.from_bytes(sparse.to_bytes(net, SETTINGS))[0], net)


@torch.no_grad()
def test_the_first_logits_of_a_network_without_a_head_and_shared_layers():
    conv = MaskedConv2d(3, 8, 3, mask=torch.rand(8, 3) < 0.5)
    again = MaskedConv2d(8, 8, 1)
    net = nn.Sequential(conv, again, nn.ReLU(), again, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = stock(net.eval())
    found, _ = sparse.from_bytes(sparse.to_bytes(net, SETTINGS))
    same_tensors(found, net)
    images = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(found(images), net(images))
    assert found(images).shape == (4, 5)


def test_a_file_classifies_images(tmp_path, task):
    adapted, query = task
    for transductive in (False, True):
        path = tmp_path / f"{transductive}.metasparse"
        adapted.export(path, transductive=transductive)
        read = ms.load_sparse(str(path))
        same_tensors(read.network, adapted.network(transductive=transductive))
        assert read.classes == adapted.classes
        assert read.reader == adapted.reader
        found = read.classify(query)
        assert [each.image for each in found[:2]] == ["images[0]", "images[1]"]
        logits = adapted.network(transductive=transductive)(query / 255)
        for each, row in zip(found, logits.softmax(-1), strict=True):
            assert list(each.probabilities.values()) == pytest.approx(row.tolist(), abs=1e-5)
            assert each.label == adapted.classes[row.argmax()]


def test_layers_that_no_file_names_are_refused():
    net = nn.Sequential(MaskedConv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(36, 5))
    with pytest.raises(
        ValueError, match=r"one of the layers .*got GroupNorm \(1\); --to torch takes any"
    ):
        sparse.to_bytes(stock(net), SETTINGS)

    class Exp(nn.Module):
        def forward(self, x):
            return x.flatten(1).exp()

    with pytest.raises(ValueError, match="got exp; --to torch"):
        sparse.to_bytes(stock(Exp()), SETTINGS)
    with pytest.raises(ValueError, match="one whose forward can be traced, got Linear"):
        sparse.to_bytes(nn.Linear(2, 2), SETTINGS)


@pytest.fixture(scope="module")
def whole():
    return sparse.to_bytes(stock(prune(Conv4(3, 32, 4, 5), 0.5)), SETTINGS)


def refused(tmp_path, data, said=None):
    path = tmp_path / "task.metasparse"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=said) as caught:
        ms.load_sparse(path)
    assert str(caught.value).startswith(f"{path}: not a whole network (")


@pytest.mark.parametrize("left", [0, 5, 8, 100, 1000, -1])
def test_a_file_that_ends_early_is_refused(tmp_path, whole, left):
    refused(tmp_path, whole[:left])


def test_every_changed_byte_is_found(tmp_path, whole):
    for place in range(0, len(whole), len(whole) // 40):
        changed = bytearray(whole)
        changed[place] ^= 0x10
        refused(tmp_path, bytes(changed))


def test_other_files_are_refused(tmp_path, whole):
    tensors = safetensors.torch.save({"a": torch.ones(2)}, {"format": sparse.FORMAT})
    refused(tmp_path, tensors, "it has no checksum")
    refused(tmp_path, _sealed.to_bytes({}, {"format": "x"}), "expected format 'metasparse network")
    refused(tmp_path, b"{}" * 50, "it ends within its header")
    with pytest.raises(CheckpointError, match="there is no such file"):
        ms.load_sparse(tmp_path / "none.metasparse")
    with pytest.raises(CheckpointError, match="there is no such file"):
        ms.load_sparse(tmp_path)
    with pytest.raises(TypeError, match="load_sparse: expected path to be a path"):
        ms.load_sparse(3)


def steps(**change):
    return lambda graph, shapes, tensors: graph[1]["settings"].update(change)


HOSTILE = {
    "an unknown layer": lambda graph, *_: graph[1].update(kind="Bilinear"),
    "a step that is none": lambda graph, *_: graph.insert(1, 3),
    "no graph": lambda graph, *_: graph.clear(),
    "a later step": lambda graph, *_: graph[2].update(takes=[7]),
    "a step before the first": lambda graph, *_: graph[2].update(takes=[-1]),
    "nothing taken": lambda graph, *_: graph[2].update(takes=[]),
    "a name with code": lambda graph, *_: graph[1].update(name="a'); print(1); ('"),
    "a name of the language": lambda graph, *_: graph[1].update(name="if"),
    "a name with quotes": lambda graph, *_: graph[1].update(name='a");print(1);("'),
    "a name that is none": lambda graph, *_: graph[1].update(name=7),
    "a module's own method": lambda graph, *_: graph[1].update(name="forward"),
    "an unknown setting": steps(device="cpu"),
    "too many channels": steps(out_channels=1 << 40),
    "a negative size": steps(out_channels=-3),
    "a padding mode": steps(padding_mode="best"),
    "a count that is none": lambda graph, *_: graph.insert(
        2, {"kind": "first", "count": "all", "takes": [1]}
    ),
    "text for a number": steps(stride="two"),
    "a huge kernel": steps(kernel_size=[1 << 14, 1 << 14]),
    "another shape": lambda _, shapes, __: shapes.update({"blocks.1.conv.weight": [4, 2, 3, 3]}),
    "a huge shape": lambda _, s, __: s.update({"blocks.1.conv.weight": [1 << 20, 1 << 20, 3, 3]}),
    "a shape of text": lambda _, shapes, __: shapes.update({"blocks.1.conv.weight": "abcd"}),
    "no shape": lambda _, shapes, __: shapes.clear(),
    "bits for others": lambda _, __, t: t.update(
        {"blocks.1.conv.weight#active": torch.zeros(2, dtype=torch.uint8)}
    ),
    "no bits": lambda _, __, tensors: tensors.pop("blocks.1.conv.weight#active"),
    "a missing tensor": lambda _, __, tensors: tensors.pop("head.weight"),
    "another tensor": lambda _, __, tensors: tensors.update(more=torch.ones(2)),
    "integers": lambda _, __, t: t.update({"head.weight": torch.ones(5, 16, dtype=torch.int64)}),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_file_with_a_right_checksum_is_not_believed(tmp_path, whole, what):
    tensors, text = _sealed.from_bytes(whole, sparse.FORMAT)
    text = {name: value for name, value in text.items() if name != "sha256"}
    graph, shapes = json.loads(text["graph"]), json.loads(text["shapes"])
    HOSTILE[what](graph, shapes, tensors)
    text |= {"graph": json.dumps(graph), "shapes": json.dumps(shapes)}
    refused(tmp_path, _sealed.to_bytes(tensors, text))


def test_settings_that_earlier_versions_did_not_write_have_their_defaults(whole):
    tensors, text = _sealed.from_bytes(whole, sparse.FORMAT)
    graph = json.loads(text["graph"])
    for step in graph:
        if step["kind"] == "relu":
            assert step["settings"].pop("inplace") is False
    text = {**text, "graph": json.dumps(graph)}
    del text["sha256"]
    again, _ = sparse.from_bytes(_sealed.to_bytes(tensors, text))
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(again(images), sparse.from_bytes(whole)[0](images))


@pytest.mark.parametrize(
    "change",
    [
        {"classes": "[1, 2]"},
        {"classes": "{}"},
        {"classes": '["a", "b"]'},
        {"images": "[]"},
        {"images": '{"shape": [1, 32, 32], "inverted": false}'},
        {"images": '{"shape": [3, 65536, 65536], "inverted": false}'},
        {"images": '{"shape": [3, 32], "inverted": false}'},
        {"images": '{"shape": [3, 0, 32], "inverted": false}'},
        {"images": '{"shape": [3, 32, 32], "fit": "stretch", "inverted": false}'},
        {"images": '{"shape": [3, 32, 32], "ground": "green", "inverted": false}'},
        {"images": '{"shape": [3, 32, 32], "inverted": "no"}'},
    ],
    ids=str,
)
def test_settings_are_not_believed(tmp_path, whole, change):
    tensors, text = _sealed.from_bytes(whole, sparse.FORMAT)
    text = {**{name: value for name, value in text.items() if name != "sha256"}, **change}
    refused(tmp_path, _sealed.to_bytes(tensors, text))
