"""The networks are the papers' networks, and their weights start as the papers' weights do."""

from collections.abc import Callable
from fnmatch import fnmatch
from math import sqrt

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from lth_lightning.errors import SettingError
from lth_lightning.models import MLP, VGG, Conv2, Conv4, Conv6, LeNet5, LeNet300, Network, ResNet, initialise, reset
from lth_lightning.pruning.prunable import prunable_weights

Builder = Callable[..., Network]
DIGITS, MNIST, CIFAR = (1, 8, 8), (1, 28, 28), (3, 32, 32)


def size(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def matching(weights: dict[str, Tensor], pattern: str) -> dict[str, Tensor]:
    return {name: weight for name, weight in weights.items() if fnmatch(name, pattern)}


def weights_in_a_module(network: Builder, **kwargs: object) -> dict[str, Tensor]:
    """Prunable weights, named as where the network is the `net` of a LightningModule."""
    with torch.device("meta"):
        return dict(prunable_weights(nn.ModuleDict({"net": network(**kwargs)})))


@pytest.mark.parametrize(
    ("network", "parameters", "conv_weights", "linear_weights"),
    [
        (LeNet300, 266_610, 0, 266_200),
        (LeNet5, 61_706, 2_550, 58_920),
        (Conv2, 4_301_642, 38_592, 4_262_400),
        (Conv4, 2_425_930, 259_776, 2_165_248),
        (Conv6, 2_262_602, 1_144_512, 1_116_672),
        (ResNet, 272_474, 270_256, 640),
        (VGG, 20_035_018, 20_018_880, 5_120),
    ],
)
def test_sizes_are_the_papers_and_globs_find_every_layer(
    network: Builder, parameters: int, conv_weights: int, linear_weights: int
) -> None:
    weights = weights_in_a_module(network)
    assert size(dict(network().named_parameters())) == parameters
    assert size(matching(weights, "*.conv*.weight")) == conv_weights
    assert size(matching(weights, "*.fc*.weight")) + size(matching(weights, "*.output.weight")) == linear_weights
    assert size(weights) == conv_weights + linear_weights


@pytest.mark.parametrize(
    ("network", "kwargs", "names"),
    [
        (MLP, {"hidden": [7, 5]}, ["fc1", "fc2", "output"]),
        (MLP, {"hidden": []}, ["output"]),
        (LeNet300, {}, ["fc1", "fc2", "output"]),
        (LeNet5, {}, ["conv1", "conv2", "fc1", "fc2", "output"]),
        (Conv4, {}, ["conv1", "conv2", "conv3", "conv4", "fc1", "fc2", "output"]),
    ],
)
def test_layers_stand_in_order_under_the_names_that_configs_use(
    network: Builder, kwargs: dict[str, object], names: list[str]
) -> None:
    assert list(weights_in_a_module(network, **kwargs)) == [f"net.{name}.weight" for name in names]


def test_resnet20_has_the_papers_274k_with_its_running_statistics_and_2560_weights_in_shortcuts() -> None:
    network = ResNet(depth=20)
    statistics = [buffer for name, buffer in network.named_buffers() if "running" in name]
    assert sum(tensor.numel() for tensor in [*network.parameters(), *statistics]) == 274_042
    assert size(matching(weights_in_a_module(ResNet), "*shortcut*")) == 2_560


@pytest.mark.parametrize(("depth", "width"), [(8, 4), (20, 16), (56, 2)])
def test_resnet_has_as_many_layers_as_its_depth_says_and_four_widths_of_features(depth: int, width: int) -> None:
    network = ResNet(depth, width)
    assert len([name for name in prunable_weights(network) if "shortcut" not in name]) == depth
    assert network.output.in_features == 4 * width


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_vgg_has_the_convolutions_of_torchvisions_and_four_poolings(depth: int) -> None:
    with torch.device("meta"):
        ours = VGG(depth)
        theirs = getattr(torchvision.models, f"vgg{depth}_bn")(init_weights=False)
        assert ours.features(torch.empty(1, *CIFAR)).shape == (1, 512, 2, 2)
    assert [p.shape for p in ours.parameters() if p.ndim == 4] == [p.shape for p in theirs.parameters() if p.ndim == 4]


@pytest.mark.parametrize("network", [LeNet5, Conv2, ResNet, VGG])
def test_convolutions_have_a_bias_unless_batch_norm_follows(network: Builder) -> None:
    with torch.device("meta"):
        layers = list(network().modules())
    normed = any(isinstance(layer, nn.BatchNorm2d) for layer in layers)
    assert all((layer.bias is None) == normed for layer in layers if isinstance(layer, nn.Conv2d))


@pytest.mark.parametrize(
    ("network", "kwargs", "input_shape"),
    [
        (MLP, {}, CIFAR),
        (MLP, {"hidden": []}, DIGITS),
        (LeNet300, {}, DIGITS),
        (LeNet5, {}, MNIST),
        (LeNet5, {}, (3, 12, 17)),
        (Conv2, {}, DIGITS),
        (Conv4, {}, (1, 10, 7)),
        (Conv6, {}, MNIST),
        (ResNet, {"depth": 8}, DIGITS),
        (ResNet, {"depth": 14, "width": 4}, CIFAR),
        (VGG, {"depth": 11}, MNIST),
    ],
)
def test_logits_depend_on_every_parameter(
    network: Builder, kwargs: dict[str, object], input_shape: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    net = network(**kwargs, input_shape=input_shape, num_classes=7)
    logits = net(torch.randn(8, *input_shape))
    assert logits.shape == (8, 7)
    nn.functional.cross_entropy(logits, torch.arange(8) % 7).backward()
    dead = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


@pytest.mark.parametrize(
    ("network", "stack"),
    [
        (MLP([9, 8]), "flatten fc1 relu fc2 relu output"),
        (LeNet5(), "conv1 relu pool conv2 relu pool flatten fc1 relu fc2 relu output"),
        (Conv4(), "conv1 relu conv2 relu pool conv3 relu conv4 relu pool flatten fc1 relu fc2 relu output"),
    ],
    ids=["MLP", "LeNet5", "Conv4"],
)
def test_forward_is_the_papers_stack_of_layers(network: Network, stack: str) -> None:
    parts = {"flatten": nn.Flatten(), "relu": nn.ReLU(), "pool": nn.MaxPool2d(2), **dict(network.named_children())}
    reference = nn.Sequential(*(parts[name] for name in stack.split()))
    images = torch.randn(4, *(CIFAR if isinstance(network, Conv4) else MNIST))
    assert torch.equal(network(images), reference(images))


def test_a_residual_block_without_its_residual_is_its_shortcut() -> None:
    network = ResNet(8, width=4).eval()
    for name, parameter in network.named_parameters():
        if name.endswith("norm2.weight"):
            nn.init.zeros_(parameter)
    x = torch.rand(2, 4, 32, 32)
    first, second, _ = network.blocks
    assert torch.equal(first(x), x)
    assert torch.equal(second(x), second.get_submodule("shortcut")(x).relu())
    assert second(x).shape == (2, 8, 16, 16)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ResNet(depth=21), r"6n \+ 2, got 21; nearest 20 and 26"),
        (lambda: ResNet(depth=2), r"got 2; nearest 8\."),
        (lambda: ResNet(width=0), "width must be at least 1, got 0"),
        (lambda: VGG(depth=18), "one of 11, 13, 16, 19, got 18"),
        (lambda: VGG(input_shape=DIGITS), "at least 16 x 16 pixels, got 8 x 8"),
        (lambda: LeNet5(input_shape=(1, 28, 11)), "at least 12 x 12 pixels, got 28 x 11"),
        (lambda: Conv6(input_shape=(3, 7, 7)), "Conv6 needs images of at least 8 x 8"),
        (lambda: MLP([30, 0]), r"each width in hidden must be at least 1, got \[30, 0\]"),
        (lambda: MLP(input_shape=(28, 28)), r"must be \(channels, height, width\)"),  # type: ignore[arg-type]
        (lambda: MLP(input_shape=(0, 28, 28)), r"each at least 1, got \(0, 28, 28\)"),
        (lambda: MLP(num_classes=1), "num_classes must be at least 2, got 1"),
        (lambda: initialise(MLP(), "glorot"), "model.init: 'glorot' is unknown.*mean 'glorot_normal'"),
    ],
)
def test_arguments_that_make_no_network_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        build()


@pytest.mark.parametrize(
    ("scheme", "linear_std", "conv_std"),
    [
        ("glorot_normal", sqrt(2 / (600 + 900)), sqrt(2 / (64 * 9 + 128 * 9))),
        ("kaiming_normal", sqrt(2 / 600), sqrt(2 / (64 * 9))),
    ],
)
def test_initialise_draws_normal_weights_of_the_schemes_spread(scheme: str, linear_std: float, conv_std: float) -> None:
    torch.manual_seed(0)
    linear, conv = nn.Linear(600, 900), nn.Conv2d(64, 128, 3)
    initialise(nn.Sequential(conv, linear), scheme)
    for layer, std in ((linear, linear_std), (conv, conv_std)):
        standardised = layer.weight.detach() / std
        assert standardised.mean().item() == pytest.approx(0, abs=0.02)
        assert standardised.square().mean().item() == pytest.approx(1, rel=0.02)
        assert standardised.pow(4).mean().item() == pytest.approx(3, rel=0.05)  # 1.8 if it were uniform
        assert layer.bias is not None
        assert not layer.bias.any()


def torchvision_network() -> nn.Module:
    return torchvision.models.shufflenet_v2_x0_5(num_classes=10)


@pytest.mark.parametrize("build", [Conv2, lambda: ResNet(8), torchvision_network])
@pytest.mark.parametrize("fresh", [lambda net: initialise(net, "glorot_normal"), reset], ids=["initialise", "reset"])
def test_fresh_weights_hang_on_the_seed_alone(
    build: Callable[[], nn.Module], fresh: Callable[[nn.Module], None]
) -> None:
    def values(seed: int, trained: float) -> dict[str, Tensor]:
        network = build()
        for value in network.state_dict().values():
            value.fill_(trained)
        torch.manual_seed(seed)
        fresh(network)
        return network.state_dict()

    first, again, other = values(seed=1, trained=7), values(seed=1, trained=8), values(seed=2, trained=7)
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name, value in first.items() if value.ndim > 1]
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


@pytest.mark.parametrize("build", [MLP, LeNet5, lambda: ResNet(8), lambda: VGG(11)])
def test_a_reset_network_is_a_new_network(build: Builder) -> None:
    torch.manual_seed(3)
    new = build()
    trained = build()
    for value in trained.state_dict().values():
        value.fill_(7)
    torch.manual_seed(3)
    reset(trained)
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in new.state_dict().items())


def test_initialise_resets_normalisation_with_its_running_statistics() -> None:
    norm = nn.BatchNorm2d(3)
    for value in norm.state_dict().values():
        value.fill_(7)
    initialise(nn.Sequential(nn.Conv2d(1, 3, 3), norm), "kaiming_normal")
    expected = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
    assert {name: value.unique().item() for name, value in norm.state_dict().items()} == expected


class Shifted(nn.Module):
    """A constant in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.shift: Tensor
        self.register_buffer("shift", torch.full((3,), 7.0))


class Scaled(nn.Module):
    """A parameter of its own and children, no way to reset them, and an argument that nobody knows later."""

    def __init__(self, scale: float = 7.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale * torch.arange(3))
        self.linear = nn.Linear(3, 3)
        self.shifted = Shifted()
        nn.init.constant_(self.linear.weight, 7.0)


class ScaledWithReset(Scaled):
    """Resets all but its linear layer's weight, which it leaves to that layer."""

    def reset_parameters(self) -> None:
        for tensor in (self.scale, self.linear.bias, self.shifted.shift):
            nn.init.constant_(tensor, 2.0)


def test_a_module_has_the_last_word_on_its_children_and_leaves_none_behind() -> None:
    scaled = ScaledWithReset()
    reset(nn.Sequential(scaled))
    for tensor in (scaled.scale, scaled.linear.bias, scaled.shifted.shift):
        assert tensor.unique().item() == 2.0
    assert not (scaled.linear.weight == 7.0).any()


def test_initialise_prefers_its_scheme_to_a_modules_own_way_with_linear_layers() -> None:
    scaled = ScaledWithReset()
    initialise(nn.Sequential(scaled), "glorot_normal")
    assert scaled.scale.unique().item() == 2.0
    assert not scaled.linear.bias.any()


RAW = r"^1 \(Scaled\) holds scale, but has no method to draw it anew.*init: null.*reinit="
COMPUTED = r"^1 \(.*weight is computed from other parameters.*reinit="


@pytest.mark.parametrize(
    ("fresh", "layer", "message"),
    [
        (initialise, Scaled(), RAW),
        (reset, Scaled(), RAW),
        (initialise, parametrizations.weight_norm(nn.Embedding(3, 3)), COMPUTED),
        (reset, parametrizations.spectral_norm(nn.Linear(3, 3)), COMPUTED),
        (initialise, prune.l1_unstructured(nn.Conv2d(3, 3, 3), "weight", 0.5), COMPUTED),
        (reset, prune.l1_unstructured(nn.Conv2d(3, 3, 3), "weight", 0.5), COMPUTED),
    ],
)
def test_a_layer_that_would_keep_its_trained_weights_is_refused_by_name(
    fresh: Callable[..., None], layer: nn.Module, message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        fresh(nn.Sequential(nn.Linear(3, 3), layer), *(["glorot_normal"] if fresh is initialise else []))


@pytest.mark.parametrize("fresh", [lambda net: initialise(net, "glorot_normal"), reset], ids=["initialise", "reset"])
def test_constants_in_buffers_are_left_alone(fresh: Callable[[nn.Module], None]) -> None:
    shifted = Shifted()
    fresh(nn.Sequential(shifted, nn.Linear(3, 3)))
    assert shifted.shift.unique().item() == 7.0
