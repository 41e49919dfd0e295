import re

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck

from fast_train.pipeline.config.architectures import ARCHITECTURES, SPEEDNETS, architecture_names
from fast_train.pipeline.config.settings import ModelConfig
from fast_train.pipeline.models import build_model, initialise_from_data
from fast_train.pipeline.models.blocks import PreActBottleneck
from fast_train.pipeline.models.resnet import PreActResNet, ResNet

_BIG = ("50", "56", "101", "110", "152")
_ALL = [pytest.param(a, marks=pytest.mark.slow) if a.endswith(_BIG) else a for a in architecture_names()]
# One small net of each kind of block.
_KINDS = ("resnet14", "plain-14", "preact-resnet14", "bottleneck", "preact-bottleneck")


def _model(arch, **settings):
    torch.manual_seed(0)
    return build_model(ModelConfig(arch=arch, **settings))


def _small(kind, shortcut=None, layers=(2, 2, 2), **settings):
    """A net of basic blocks by its name, or of so many bottlenecks."""
    if not kind.endswith("bottleneck"):
        return _model(kind, shortcut=shortcut, **settings)
    torch.manual_seed(0)
    network, block = (PreActResNet, PreActBottleneck) if kind.startswith("preact") else (ResNet, Bottleneck)
    return network(block, layers, (16, 32, 64), num_classes=10, shortcut=shortcut or "B", **settings)


def _unfilled(arch, **settings):
    """A net of the same modules without values."""
    with torch.device("meta"):
        return _model(arch, **settings)


def _count(arch, **settings):
    return sum(p.numel() for p in _unfilled(arch, **settings).parameters())


def _images(count=2, size=16, channels=3):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def test_names_cover_every_family():
    four, three = (18, 34, 50, 101, 152), (8, 14, 20, 32, 44, 56, 110)
    expected = {f"{family}{depth}" for family in ("resnet", "preact-resnet") for depth in four + three}
    expected |= {f"plain-{depth}" for depth in (18, 34, *three)}
    assert expected <= set(architecture_names())
    assert sorted(architecture_names()) == sorted([*ARCHITECTURES, *SPEEDNETS])


@pytest.mark.parametrize("arch", _ALL)
def test_forward_and_backward(arch):
    model = _model(arch, num_classes=7)
    initialise_from_data(model, _images())
    logits = model(_images())
    assert logits.shape == (2, 7)
    logits.logsumexp(1).sum().backward()
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    for name, parameter in trained:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_takes_torchvisions_weights_and_gives_its_outputs(arch):
    torch.manual_seed(3)
    theirs = getattr(torchvision.models, arch)(num_classes=11).eval()
    ours = _model(arch, num_classes=11, image_size=65).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = _images(size=65)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_starts_from_torchvisions_distribution(arch):
    ours = _model(arch, image_size=65).state_dict()
    theirs = getattr(torchvision.models, arch)(num_classes=10).state_dict()
    for name, value in theirs.items():
        if value.numel() > 30_000:
            assert float(ours[name].std()) == pytest.approx(float(value.std()), rel=0.05), name
        elif "bn" in name:
            assert torch.equal(ours[name], value), name


@pytest.mark.parametrize(
    "arch, parameters",
    [
        # He et al. 2015, table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 million.
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
        ("resnet18", 11_173_962),
    ],
)
def test_parameter_counts(arch, parameters):
    assert _count(arch) == parameters


@pytest.mark.parametrize("arch", ["resnet20", "resnet18", "resnet50", "preact-resnet20", "preact-resnet50"])
def test_shortcut_options_cost_what_the_paper_says(arch):
    """And option A costs nothing: it adds no tensors."""
    a, b, c = (_count(arch, shortcut=option) for option in "ABC")
    assert a < b < c
    assert not any("downsample" in name for name in _unfilled(arch, shortcut="A").state_dict())
    default = "A" if arch.endswith("20") else "B"
    assert _count(arch) == {"A": a, "B": b}[default]
    blocks = sum(ARCHITECTURES[arch].layers)
    projections = len(_convolutions(_unfilled(arch, shortcut="C"))) - len(_convolutions(_unfilled(arch, shortcut="A")))
    assert projections == blocks


def _convolutions(model):
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize("arch", ["resnet8", "preact-resnet8"])
def test_option_a_is_the_subsampled_identity_with_zero_channels(arch):
    shortcut = _model(arch).layer2[0].downsample
    images = _images(channels=16, size=9)
    out = shortcut(images)
    assert out.shape == (2, 32, 5, 5)
    assert torch.equal(out[:, :16], images[:, :, ::2, ::2])
    assert not out[:, 16:].any()


@pytest.mark.parametrize("depth", [8, 18, 20, 110])
def test_plain_twin_has_the_depth_but_no_shortcut(depth):
    plain, residual = _model(f"plain-{depth}"), _model(f"resnet{depth}", shortcut="A")
    assert [c.weight.shape for c in _convolutions(plain)] == [c.weight.shape for c in _convolutions(residual)]
    assert plain.state_dict().keys() == residual.state_dict().keys()

    # With dead convolutions in a block, what went in comes out of a residual block, and nothing of a plain one.
    images = _images(channels=plain.conv1.out_channels).relu()
    with torch.no_grad():
        for block in (plain.layer1[0], residual.layer1[0]):
            block.eval()
            block.conv2.weight.zero_()
        assert torch.equal(residual.layer1[0](images), images)
        assert not plain.layer1[0](images).any()


@pytest.mark.parametrize("kind", ["preact-resnet14", "preact-bottleneck"])
def test_preact_order(kind):
    model = _small(kind)
    calls = []
    for name, module in model.named_modules():
        # A block's own activation is called more than once, and the first block's children are enough to see all.
        if name.startswith("layer1.0.") and "downsample" not in name:
            module.register_forward_hook(lambda *_, name=name: calls.append(name.removeprefix("layer1.0.")))
        elif name in ("conv1", "layer1", "bn1", "relu", "bn_final", "avgpool", "fc"):
            module.register_forward_hook(lambda *_, name=name: calls.append("net." + name))
    model(_images())
    units = 3 if kind.endswith("bottleneck") else 2
    block = [step for i in range(1, units + 1) for step in (f"bn{i}", "relu", f"conv{i}")]
    assert calls == ["net.conv1", *block, "net.layer1", "net.bn_final", "net.relu", "net.avgpool", "net.fc"]


@pytest.mark.parametrize("kind", ["preact-resnet14", "preact-bottleneck"])
def test_preact_identity_stays_clear(kind):
    """With dead branches, a block that has no projection passes on its very input, negative values too."""
    block = _small(kind).layer2[1].eval()
    nn.init.zeros_((block.conv3 if kind.endswith("bottleneck") else block.conv2).weight)
    images = _images(channels=block.conv1.in_channels, size=8)
    with torch.no_grad():
        assert torch.equal(block(images.clone()), images)


@pytest.mark.parametrize("option", "ABC")
@pytest.mark.parametrize("kind", _KINDS)
def test_channels_last_changes_neither_output_nor_format(kind, option):
    model = _small(kind, shortcut=None if kind.startswith("plain") else option).eval()
    images = _images()
    formats = []
    with torch.no_grad():
        expected = model(images)
        model = model.to(memory_format=torch.channels_last)
        for stage in (model.layer1, model.layer2, model.layer3):
            for module in stage.modules():
                module.register_forward_hook(
                    lambda m, i, o: formats.append(o.is_contiguous(memory_format=torch.channels_last))
                )
        result = model(images.to(memory_format=torch.channels_last))
    assert formats
    assert all(formats)
    assert torch.allclose(result, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu"])
@pytest.mark.parametrize("kind", _KINDS)
def test_compiles_without_a_graph_break(kind, activation):
    torch._dynamo.reset()
    model = _small(kind.replace("14", "8"), layers=(1, 1, 1), activation=activation)
    images = _images()
    expected = model(images)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    # A tolerance: the first call has changed no weights, but the kernels may split their sums otherwise.
    assert torch.allclose(compiled(images), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("arch", architecture_names())
def test_every_architecture_compiles_without_a_graph_break(arch):
    torch._dynamo.reset()
    compiled = torch.compile(_model(arch), fullgraph=True, backend="eager")
    assert compiled(_images()).shape == (2, 10)


@pytest.mark.parametrize("activation, module", [("leaky_relu", nn.LeakyReLU), ("elu", nn.ELU)])
@pytest.mark.parametrize("kind", _KINDS)
def test_activation_replaces_every_relu_and_has_right_gradients(kind, activation, module):
    """In-place activations overwrite what a backward pass could need: compare with ones that are not in place."""
    model = _small(kind, activation=activation)
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())
    images = _images()
    model(images).square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    found = [m for m in model.modules() if isinstance(m, module)]
    assert found
    for m in found:
        m.inplace = False
    model(images).square().sum().backward()
    for expected, gradient in zip((p.grad for p in model.parameters()), gradients, strict=True):
        assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", [k for k in _KINDS if not k.startswith("plain")])
def test_zero_init_starts_blocks_as_their_shortcuts_and_still_learns(kind):
    model = _small(kind, zero_init_residual=True)
    block = model.layer2[1]
    images = _images(channels=block.conv1.in_channels, size=8).relu()
    with torch.no_grad():
        assert torch.equal(block.eval()(images.clone()), images)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(_images()), torch.tensor([1, 2])).backward()
        optimizer.step()
    assert all(p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("size, kernel", [(28, 3), (64, 3), (65, 7), (224, 7)])
def test_stem_follows_the_image_size(size, kernel):
    assert _unfilled("resnet18", image_size=size).conv1.kernel_size == (kernel, kernel)
    assert _unfilled("resnet18", image_size=size, stem="cifar").conv1.kernel_size == (3, 3)


@pytest.mark.parametrize("arch", ["resnet8", "resnet18", "preact-resnet8"])
@pytest.mark.parametrize("stem, size, channels", [("cifar", 28, 1), ("cifar", 5, 4), ("imagenet", 70, 3)])
def test_other_images(arch, stem, size, channels):
    model = _model(arch, stem=stem, in_channels=channels, num_classes=3).eval()
    assert model(_images(size=size, channels=channels)).shape == (2, 3)


def test_same_seed_gives_same_weights():
    first, second = _model("preact-resnet8").state_dict(), _model("preact-resnet8").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"arch": "preact_resnet18"}, "unknown architecture 'preact_resnet18'; did you mean 'preact-resnet18'?"),
        ({"arch": "Plain20"}, "unknown architecture 'Plain20'; did you mean 'plain-20'?"),
        ({"arch": "resnet19"}, "did you mean 'resnet18'"),
        ({"arch": "vgg"}, "choose from plain-8"),
        ({"stem": "imagnet"}, "did you mean 'imagenet'?"),
        ({"shortcut": "D"}, "unknown shortcut 'D'; choose from A, B, C"),
        ({"shortcut": "b"}, "did you mean 'B'?"),
        ({"activation": "leakyrelu"}, "did you mean 'leaky_relu'?"),
        ({"num_classes": 0}, "model.num_classes is 0; give 1 or more"),
        ({"in_channels": 0}, "model.in_channels"),
        ({"image_size": -32}, "model.image_size"),
        (
            {"arch": "plain-20", "shortcut": "A"},
            "plain-20 has no shortcuts; leave out model.shortcut, or take resnet20",
        ),
        ({"arch": "plain-20", "zero_init_residual": True}, "leave out model.zero_init_residual"),
    ],
)
def test_bad_configurations_are_refused_in_one_line(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        ModelConfig(**settings)
    assert "\n" not in str(caught.value)
