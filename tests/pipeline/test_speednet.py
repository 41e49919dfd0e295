"""The whitening layer and the nets after it."""

import pytest
import torch
import torch.nn.functional as F

from fast_train.pipeline.config.settings import ModelConfig
from fast_train.pipeline.models import build_model, initialise_from_data, starts_from_data
from fast_train.pipeline.models.speednet import Whitening


def _correlated(count=64, size=12, channels=3, seed=0):
    """Noise that neighbouring pixels and channels share: natural enough to be worth whitening."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, channels, size + 4, size + 4, generator=generator)
    smooth = F.avg_pool2d(noise, 3, stride=1, padding=1) * 3
    mixed = torch.einsum("kc,nchw->nkhw", torch.eye(channels) + 0.8, smooth)
    return mixed[..., 2:-2, 2:-2]


def _net(arch="speednet8", **settings):
    torch.manual_seed(0)
    return build_model(ModelConfig(arch=arch, **settings))


@pytest.mark.parametrize("channels", [1, 3])
def test_whitened_patches_are_uncorrelated_with_unit_variance(channels):
    images, layer = _correlated(channels=channels), Whitening(channels)
    layer.fit(images)
    with torch.no_grad():
        layer.bias.zero_()
        half = layer.out_channels // 2
        out = layer(images)
    assert out.shape == (64, 8 * channels, 11, 11)
    columns = out[:, :half].transpose(0, 1).reshape(half, -1).double()
    moments = columns @ columns.T / columns.shape[1]
    # Not exactly: 5e-4 is added to eigenvalues of 0.02 and more here.
    torch.testing.assert_close(moments, torch.eye(half, dtype=torch.float64), rtol=0, atol=0.03)
    assert torch.equal(layer.weight[:half], -layer.weight[half:])
    raw = F.unfold(images, 2).transpose(0, 1).reshape(half, -1).double()
    assert float((raw @ raw.T / raw.shape[1] - torch.eye(half)).abs().max()) > 0.5


def test_fitting_does_not_depend_on_how_many_go_at_a_time():
    images, layers = _correlated(30), (Whitening(3), Whitening(3))
    layers[0].fit(images)
    layers[1].fit(images, at_once=7)
    torch.testing.assert_close(*(layer.weight[:12].abs() for layer in layers), rtol=1e-4, atol=1e-5)


def test_the_same_images_give_the_same_weights():
    first, second = _net(), _net()
    for model in (first, second):
        initialise_from_data(model, _correlated())
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_only_speednets_start_from_data():
    model = _net("resnet8")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    initialise_from_data(model, _correlated())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [starts_from_data(_net(arch)) for arch in ("resnet8", "speednet8", "speednet11")] == [False, True, True]


def test_the_first_filters_of_a_convolution_pass_their_channel_on():
    convolution = _net().layer2.conv1
    images = torch.randn(2, 64, 6, 6)
    assert torch.equal(convolution(images)[:, :64], images)
    assert not torch.equal(convolution.weight[64:128], convolution.weight[:64])


@pytest.mark.parametrize(("arch", "trained"), [("speednet8", 1_971_352), ("speednet11", 12_717_464)])
def test_sizes(arch, trained):
    """speednet8: the paper's 1.97 million (section 3.1); speednet11: a third convolution and twice the channels."""
    model = _net(arch)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count == trained
    assert {name.split(".")[0] for name in model.state_dict()} == {"whiten", "layer1", "layer2", "layer3", "fc"}


def test_the_third_convolution_has_a_shortcut_around_it_and_the_second():
    stage = _net("speednet11").layer1.eval()
    images = torch.randn(1, 24, 8, 8)
    with torch.no_grad():
        stage.conv3.weight.zero_()
        first = F.gelu(stage.bn1(F.max_pool2d(stage.conv1(images), 2)))
        assert torch.equal(stage(images), F.gelu(first + stage.bn3.bias[None, :, None, None]))


@pytest.mark.parametrize(("size", "channels"), [(9, 3), (28, 1), (32, 3), (70, 4)])
def test_other_images(size, channels):
    model = _net(image_size=size, in_channels=channels, num_classes=5).eval()
    assert model(torch.randn(2, channels, size, size)).shape == (2, 5)


@pytest.mark.parametrize("arch", ["speednet8", "speednet11"])
def test_compiles_without_a_graph_break_and_keeps_channels_last(arch):
    torch._dynamo.reset()
    model = _net(arch).to(memory_format=torch.channels_last).eval()
    images = _correlated(2, 16).to(memory_format=torch.channels_last)
    initialise_from_data(model, images)
    formats = []
    for stage in (model.layer1, model.layer2):
        stage.register_forward_hook(lambda m, i, o: formats.append(o.is_contiguous(memory_format=torch.channels_last)))
    expected = model(images)
    assert formats == [True, True]
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), expected)


@pytest.mark.parametrize(("settings", "message"), [
    ({"shortcut": "A"}, "speednet8 has no choice of model.shortcut"),
    ({"activation": "elu"}, "no choice of model.activation"),
    ({"stem": "imagenet"}, "no choice of model.stem"),
    ({"zero_init_residual": True}, "no choice of model.zero_init_residual"),
    ({"image_size": 8}, "needs images of 9 pixels or more a side, not 8"),
])  # fmt: skip
def test_what_it_can_not_be_is_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        ModelConfig(arch="speednet8", **settings)
    assert "\n" not in str(error.value)
