"""random_reinit and `transfer` draw from θ₀'s own distribution, or are refused before training.

What was tried without `reinit`, each in a LightningModule that was handed it as an instance. Exact: compared tensor by
tensor with networks constructed independently.

Exact
- ours (MLP, LeNet, Conv, ResNet, VGG; glorot_normal, kaiming_normal, null): bit for bit the draws of before
- torch: MultiheadAttention (kdim, bias_kv), TransformerEncoderLayer, nn.Transformer, RNN, LSTM, GRU and cells,
  Bilinear, Embedding and EmbeddingBag with padding_idx, norms, PReLU, AdaptiveLogSoftmaxWithLoss, ConvTranspose;
  float64, bfloat16, complex; lazy layers that have run; torch.compile
- nn.TransformerEncoder, nn.Transformer: layers that start as copies of one another do so again
- parametrizations.weight_norm
- constant parameters without a reset: LayerScale, a zero class token, a temperature of 0.07
- any constructor in a class without arguments, with save_hyperparameters() or with one config, or in configure_model:
  other spreads, orthogonal_, sparse_, eye_, prior bias, random tokens, LoRA (B = 0, the base stays)
- frozen teacher (also in half precision, with batch norm), unfrozen teacher: a copy of the fresh student
- transformers 5.24: Bert, BertForMaskedLM (tied), sequence classification, GPT2LM, ViT, Llama, T5, AutoModel; inside a
  module of one's own, resized, with another head
- timm 1.0.31: resnet18 (in_chans=1), vit_tiny (img_size=32), efficientnet_b0 (no head), convnext_atto, swin_tiny,
  mobilenetv3_small, deit_tiny_distilled
- torchvision 0.29: resnet18 (another stem, another head), efficientnet_b0, mobilenet_v3, convnext_tiny, swin_t,
  densenet121, vgg11_bn, shufflenet, mnasnet, regnet, alexnet

Refused by name, exact with `reinit`
- a spread, bias, forget gate or padding row changed by a constructor that takes arguments nobody saved; a LoRA instance
- a random class token, position embedding or CLIP's logit scale on such a module; ParameterList
- an embedding tied to a head by hand; trained and pretrained weights; constructors that load weights or draw unseeded
- spectral_norm, orthogonal (their buffers belong to the weights); nn.utils.weight_norm, spectral_norm, prune
- torchvision's resnet18(zero_init_residual=True), googlenet(init_weights=False), squeezenet, a VisionTransformer of
  one's own size; timm's resnet18(zero_init_last=False)
"""

import copy
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torchvision
from conftest import THOROUGH, Cut, ForeignData, assert_same, copies, digits, draw_plainly, fit, mlp
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lth_lightning import ImageClassifier
from lth_lightning.cli.main import main
from lth_lightning.errors import SettingError
from lth_lightning.lottery.fresh_weights import how_to_draw
from lth_lightning.lottery.same_distribution import difference
from lth_lightning.models import MLP, Conv2, LeNet5, ResNet
from lth_lightning.models.rebuild import rebuilt
from lth_lightning.pruning.prunable import prunable_weights
from lth_lightning.pruning.state import State
from lth_lightning.seeding import derive_seed, generators

Build = Callable[[], nn.Module]
CONTROLS = ["random_reinit"]
# LightningCLI 2.6 calls jsonargparse the old way.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")


class Holder(L.LightningModule):
    """Somebody's module around a network that it was handed."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


def held(net: nn.Module) -> nn.Module:
    return Holder(net)


def drawn(module: nn.Module, reinit: Build | None = None, seed: int = 5) -> State:
    """Fresh weights of a module, which must stay as it is, with the generators."""
    before, around = copies(module), generators()
    modes = [layer.training for layer in module.modules()]
    try:
        how = how_to_draw(module, reinit, 1, prunable_weights(module), "lottery.controls: random_reinit")
        return how.draw(module, reinit, seed, None)
    finally:
        assert_same(before, copies(module))
        assert modes == [layer.training for layer in module.modules()]
        assert all(weight.grad is None for weight in module.parameters())
        now = generators()
        assert torch.equal(now["torch"], around["torch"])
        for name in ("python", "numpy"):
            assert torch.equal(now[name][1], around[name][1])


def assert_as_constructed(fresh: State, build: Build) -> None:
    """Against four constructions: constants are these constants, and spreads agree within chance."""
    states = []
    for seed in range(100, 104):
        torch.manual_seed(seed)
        module = build()
        states.append(copies(module))
    for name in (name for name, weight in module.named_parameters() if weight.requires_grad):
        ours, theirs = fresh[name], [state[name] for state in states]
        if all(torch.equal(theirs[0], one) for one in theirs):
            assert torch.equal(ours, theirs[0]), name
            continue
        assert not any(torch.equal(ours, one) for one in theirs), name
        if ours.numel() >= 16:
            spread = torch.stack([torch.view_as_real(t) if t.is_complex() else t for t in theirs]).double().std()
            here = (torch.view_as_real(ours) if ours.is_complex() else ours).double().std()
            assert abs(math.log(here / spread)) < 6 / math.sqrt(ours.numel()) + 0.01, name
        assert torch.equal(ours == 0, theirs[0] == 0), name


def sequence(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


class Tokens(nn.Module):
    """Parameters on a module of its own: constants, and with `std` a random token."""

    def __init__(self, width: int, std: float = 0.0, temperature: float = 0.07) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.scale = nn.Parameter(1e-6 * torch.ones(width))
        self.temperature = nn.Parameter(torch.tensor(temperature))
        self.linear = nn.Linear(width, width)
        if std:
            nn.init.trunc_normal_(self.token, std=std)


class Config:
    """A configuration, as Hugging Face's."""

    def __init__(self, width: int = 48, initializer_range: float = 0.02) -> None:
        self.width, self.initializer_range = width, initializer_range


class HuggingFaceLike(nn.Module):
    """`PreTrainedModel`'s way: a config, `_init_weights` for one layer, a head tied to the embedding."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(60, config.width, padding_idx=0)
        self.attention = nn.MultiheadAttention(config.width, 4)
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, 60, bias=False)
        self.apply(self._init_weights)
        self.head.weight = self.embedding.weight

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding):
            nn.init.zeros_(module.weight[0])


class TimmLike(nn.Module):
    """timm's way: arguments that nobody knows later, and `init_weights()` for all layers."""

    def __init__(self, width: int, depth: int = 2) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 9, width))
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.init_weights()

    def init_weights(self, mode: str = "") -> None:
        nn.init.trunc_normal_(self.position, std=0.02)
        for block in self.blocks:
            nn.init.trunc_normal_(block.weight, std=0.02)
            nn.init.zeros_(block.bias)


class OwnWay(nn.Module):
    """A constructor without arguments that changes what its layers drew; NumPy takes part."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(40, 30)
        self.recurrent = nn.Linear(30, 30)
        self.head = nn.Linear(30, 1)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.orthogonal_(self.body.weight)
        nn.init.eye_(self.recurrent.weight)
        nn.init.constant_(self.head.bias, -4.6)
        self.position = nn.Parameter(
            torch.from_numpy(np.random.randn(9, 8).astype(np.float32)) * random.uniform(1, 1.1)
        )


class Hyperparameters(L.LightningModule):
    def __init__(self, width: int, std: float = 1.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Linear(20, width)
        nn.init.normal_(self.body.weight, std=std)


class OneConfig(L.LightningModule):
    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters(settings)
        self.body = nn.Linear(20, settings["width"])
        nn.init.normal_(self.body.weight, std=settings["std"])


class Configured(L.LightningModule):
    """Builds itself where Lightning asks for it."""

    def configure_model(self) -> None:
        if not hasattr(self, "body"):
            self.body = nn.Linear(30, 30)
            nn.init.orthogonal_(self.body.weight)


def configured() -> nn.Module:
    module = Configured()
    module.configure_model()
    return module


def with_other_head(net: nn.Module, name: str, features: int, classes: int = 7) -> nn.Module:
    setattr(net, name, nn.Linear(features, classes))
    return net


def with_other_stem(net: nn.Module) -> nn.Module:
    net.features[0][0] = nn.Conv2d(1, 16, kernel_size=3, bias=False)
    return net


def run_once(net: nn.Module, *shape: int) -> nn.Module:
    net(torch.randn(shape))
    return net


KNOWN: dict[str, Build] = {
    "attention": lambda: held(sequence(nn.MultiheadAttention(48, 4), nn.MultiheadAttention(16, 2, 0.1, True, True))),
    "attention of other sizes": lambda: held(nn.MultiheadAttention(48, 4, kdim=20, vdim=24)),
    "Transformer": lambda: held(nn.Transformer(16, 2, 2, 1, 32, batch_first=True)),
    "encoder layer": lambda: held(nn.TransformerEncoderLayer(32, 4, 64)),
    "recurrent": lambda: held(sequence(nn.LSTM(8, 16, 2, bidirectional=True), nn.GRU(8, 16), nn.RNNCell(8, 16))),
    "bilinear, embeddings": lambda: held(
        sequence(nn.Bilinear(8, 8, 8), nn.Embedding(60, 8, padding_idx=0), nn.EmbeddingBag(60, 8, padding_idx=2))
    ),
    "norms": lambda: held(
        sequence(nn.LayerNorm(16), nn.GroupNorm(4, 16), nn.BatchNorm1d(16), nn.RMSNorm(16), nn.PReLU(), nn.PReLU(8))
    ),
    "single numbers": lambda: held(sequence(nn.Linear(64, 1), nn.Linear(16, 1))),
    "weight_norm": lambda: held(
        sequence(parametrizations.weight_norm(nn.Linear(32, 32)), parametrizations.weight_norm(nn.Conv1d(8, 8, 3)))
    ),
    "lazy": lambda: held(run_once(sequence(nn.LazyLinear(32), nn.LazyLinear(8)), 2, 20)),
    "half precision": lambda: held(sequence(nn.Linear(32, 32), nn.LayerNorm(32)).bfloat16()),
    "complex": lambda: held(nn.Linear(32, 32, dtype=torch.cfloat)),
    "constants": lambda: held(Tokens(16)),
    "class without arguments": lambda: held(OwnWay()),
    "hyperparameters": lambda: Hyperparameters(30, std=3.0),
    "hyperparameters as one": lambda: OneConfig({"width": 30, "std": 3.0}),
    "configure_model": configured,
    "Hugging Face": lambda: held(HuggingFaceLike(Config(initializer_range=0.1))),
    "timm": lambda: held(TimmLike(32, depth=3)),
    "classifier, Hugging Face inside": lambda: ImageClassifier(HuggingFaceLike(Config()), init=None),
    "classifier with attention": lambda: ImageClassifier(sequence(nn.MultiheadAttention(16, 2), nn.Linear(16, 10))),
    "torchvision, other stem": lambda: held(with_other_stem(torchvision.models.mobilenet_v3_small(num_classes=7))),
}


@pytest.mark.parametrize("build", KNOWN.values(), ids=KNOWN)
def test_fresh_weights_are_those_of_another_construction(build: Build) -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    module = build()
    fresh = drawn(module)
    assert_as_constructed(fresh, build)
    assert_same(fresh, drawn(module))
    other = drawn(module, seed=6)
    assert any(not torch.equal(fresh[name], other[name]) for name in fresh) or not any(
        weight.unique().numel() > 2 for weight in module.parameters()
    )


def forget_gates() -> nn.Module:
    lstm = nn.LSTM(8, 32)
    nn.init.ones_(lstm.bias_ih_l0.data[32:64])
    return lstm


def padding_row() -> nn.Module:
    embedding = nn.Embedding(500, 16)
    nn.init.zeros_(embedding.weight.data[3])
    return embedding


def wider(std: float) -> nn.Module:
    linear = nn.Linear(100, 100)
    nn.init.normal_(linear.weight, std=std)
    return linear


def with_bias(value: float) -> nn.Module:
    linear = nn.Linear(64, 1)
    nn.init.constant_(linear.bias, value)
    return linear


def tied() -> nn.Module:
    net = sequence(nn.Embedding(50, 16), nn.Linear(16, 50, bias=False))
    net[1].weight = net[0].weight
    return net


def trained() -> nn.Module:
    """Of the very class that is known, but no longer as it was drawn."""
    net = sequence(nn.Linear(8, 40), nn.BatchNorm1d(40), nn.Linear(40, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(30):
        x = torch.randn(32, 8)
        optimizer.zero_grad()
        (net(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
    net.zero_grad()
    return net


class Loaded(nn.Module):
    """Its constructor loads pretrained weights."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(20, 20)
        nn.init.normal_(self.body.weight, generator=torch.Generator().manual_seed(0))


class Unseeded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(20, 20)
        nn.init.normal_(
            self.body.weight, generator=torch.Generator().manual_seed(random.SystemRandom().getrandbits(60))
        )


REFUSED: dict[str, tuple[Build, str]] = {
    "std": (lambda: wider(0.02), r"net.weight \(spread 0.0\d+ at the start, spread 0.0\d+ drawn anew\)"),
    "the same std, normal": (lambda: wider(0.1 / math.sqrt(3)), r"net.weight"),
    "zeroed bias": (lambda: with_bias(0.0), r"net.bias \(0 at the start"),
    "prior bias": (lambda: with_bias(-4.6), r"net.bias \(-4.6 at the start"),
    "forget gates": (forget_gates, r"net.bias_ih_l0"),
    "padding row": (padding_row, r"net.weight"),
    "tied": (tied, r"net.0.weight \(spread"),
    "zero B of LoRA": (lambda: LoRA(nn.Linear(20, 20)), r"net.b.weight \(all 0 at the start, spread"),
    "trained": (trained, r"net.1.weight .* drawn anew\).*pretrained weights do not show"),
    "random token": (lambda: Tokens(16, std=0.02), r"no layer has a method to draw net.token anew"),
    "logit scale": (
        lambda: Tokens(16, temperature=math.log(1 / 0.07)),
        r"no layer has a method to draw net.temperature anew",
    ),
    "parameter list": (lambda: nn.ParameterList([torch.randn(3, 3)]), r"no layer has a method to draw net.0 anew"),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(8, 8)), r"net \(ParametrizedLinear\).*computed"),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(8, 8)), r"net \(ParametrizedLinear\).*computed"),
    "loaded": (Loaded, r"always has the same net.body.weight \(it loads pretrained"),
    "unseeded": (Unseeded, r"two draws with the same seed differ in net.body.weight"),
    "torchvision, other arguments": (
        lambda: torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10),
        r"net.conv1.weight \(spread 0.02\d+ at the start, spread 0.04\d+ drawn anew\)",
    ),
}


@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED)
def test_another_distribution_is_refused_and_names_tensors_spreads_and_the_way_out(build: Build, message: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(SettingError, match=r"^lottery.controls: random_reinit: .*" + message) as raised:
        drawn(Holder(build()))
    assert "reinit=" in str(raised.value) or "global generators" in str(raised.value)
    assert "reset_parameters()" not in str(raised.value)


# ------------------------------------------------------------------------------ what is frozen, what is a copy


class LoRA(nn.Module):
    """A frozen layer, and two small trained matrices, the second 0."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Linear(base.in_features, rank, bias=False)
        self.b = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.b.weight)


class LoRANet(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = sequence(LoRA(nn.Linear(20, 20)), nn.ReLU(), LoRA(nn.Linear(20, 20)))


def test_lora_keeps_its_base_and_starts_as_zero() -> None:
    module = LoRANet()
    fresh = drawn(module)
    assert not fresh["net.0.b.weight"].any()
    for name, value in copies(module).items():
        assert torch.equal(value, fresh[name]) == (not name.endswith("a.weight")), name


class Distilled(L.LightningModule):
    def __init__(self, student: nn.Module, frozen: bool = True, half: bool = False) -> None:
        super().__init__()
        self.student = student
        self.teacher = copy.deepcopy(student).requires_grad_(not frozen)
        if half:
            self.teacher.half()


def body() -> nn.Module:
    return sequence(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.Linear(30, 3))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("reinit", [None, body, lambda: Distilled(body())], ids=["reset", "student", "both"])
@pytest.mark.parametrize("pretrained", [False, True])
def test_a_teacher_that_starts_as_a_copy_of_its_student_is_one_of_the_fresh_student(
    half: bool, frozen: bool, reinit: Build | None, pretrained: bool
) -> None:
    if (pretrained and reinit is None) or (not frozen and (half or (reinit is body))):
        pytest.skip("refused: reset cannot know, two halves train, or one is given for two")
    student = body()
    if pretrained:
        for value in student.state_dict().values():
            value.copy_(torch.rand(value.shape) if value.is_floating_point() else torch.tensor(9))
    module = Distilled(student, frozen, half)
    fresh = drawn(module, reinit)
    changed = {name for name, value in copies(module).items() if not torch.equal(value, fresh[name])}
    assert "student.0.weight" in changed
    for name, value in module.student.named_parameters():
        assert torch.equal(
            fresh[f"student.{name}"].to(module.teacher.get_parameter(name).dtype), fresh[f"teacher.{name}"]
        )
        assert value.requires_grad
    assert fresh["teacher.1.running_mean"].unique().numel() == 1


def test_a_frozen_backbone_stays_with_its_running_statistics() -> None:
    module = Holder(sequence(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)))
    run_once(module.net, 16, 8)
    module.net[:2].requires_grad_(False)
    module.net[0].weight.data.copy_(torch.eye(8) * 3)
    for reinit in (None, lambda: sequence(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))):
        fresh = drawn(module, reinit)
        changed = {name for name, value in copies(module).items() if not torch.equal(value, fresh[name])}
        assert changed == {"net.2.weight", "net.2.bias"}


def test_layers_that_start_as_copies_of_one_another_do_so_again() -> None:
    module = Holder(nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 3, enable_nested_tensor=False))
    fresh, start = drawn(module), copies(module)
    assert torch.equal(start["net.layers.0.linear1.weight"], start["net.layers.2.linear1.weight"])
    for name in (name for name in fresh if ".layers.0." in name):
        assert torch.equal(fresh[name], fresh[name.replace(".0.", ".2.", 1)]), name
    assert not torch.equal(fresh["net.layers.0.linear1.weight"], start["net.layers.0.linear1.weight"])


# ------------------------------------------------------------------------------ bits of our own networks


@pytest.mark.parametrize("init", ["glorot_normal", "kaiming_normal", None])
@pytest.mark.parametrize("net", [MLP, LeNet5, lambda: Conv2(input_shape=(1, 8, 8)), lambda: ResNet(8)])
def test_our_networks_draw_the_bits_that_resetting_layer_after_layer_draws(net: Build, init: str | None) -> None:
    module = ImageClassifier(net(), init=init)
    fresh, start = drawn(module, seed=11), copies(module)
    torch.manual_seed(11)

    def reset_layers() -> None:
        for layer in module.net.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.BatchNorm2d):
                layer.reset_parameters()

    reset_layers()
    if init is None:
        reset_layers()
    else:
        draw = {"glorot_normal": nn.init.xavier_normal_, "kaiming_normal": _kaiming}[init]
        for layer in module.net.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                draw(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
    assert_same(fresh, copies(module))
    assert not torch.equal(fresh["net.output.weight"], start["net.output.weight"])


def _kaiming(weight: Tensor) -> Tensor:
    return nn.init.kaiming_normal_(weight, nonlinearity="relu")


# ------------------------------------------------------------------------------ reinit


def two_layers(width: int = 20, dtype: torch.dtype = torch.float32) -> nn.Module:
    return sequence(nn.Linear(20, width, dtype=dtype), nn.Linear(width, 3, dtype=dtype))


class Named(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.model = net


class WithLoss(Holder):
    def __init__(self) -> None:
        super().__init__(two_layers())
        self.loss = nn.Linear(3, 3)


@pytest.mark.parametrize(
    "reinit", [lambda: Holder(two_layers()), two_layers, lambda: Named(two_layers())], ids=["module", "net", "prefix"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_reinit_gives_the_weights_by_name_with_or_without_a_prefix(reinit: Build, dtype: torch.dtype) -> None:
    module = Holder(two_layers().to(dtype))
    for weight in module.parameters():
        weight.data.normal_(3, 7)  # trained before: there is nothing to compare
    module.register_buffer("mean", torch.arange(3.0))
    fresh = drawn(module, reinit, seed=2)
    torch.manual_seed(2)
    expected = two_layers()
    for name, value in copies(expected).items():
        assert torch.equal(fresh[f"net.{name}"], value.to(dtype))
    assert torch.equal(fresh["mean"], torch.arange(3.0))


def lazy_layers() -> nn.Module:
    return sequence(nn.LazyLinear(20), nn.Linear(20, 3))


THE_ONE = two_layers()

UNFIT: dict[str, tuple[Callable[[], Any], str]] = {
    "shape": (lambda: two_layers(30), r"other shapes.*net.0.weight \(there \(30, 20\) torch.float32, here \(20, 20\)"),
    "type": (lambda: two_layers(dtype=torch.cfloat), r"other shapes or dtypes.*there \(20, 20\) torch.complex64"),
    "names": (
        lambda: sequence(nn.Linear(20, 20)),
        r"names of the Sequential .*not those of Holder.*net.1.weight \(miss",
    ),
    "more names": (lambda: sequence(*two_layers(), nn.Linear(3, 3)), r"2.weight \(only there\)"),
    "no module": (lambda: 3, r"reinit must return a module, got int"),
    "state": (lambda: two_layers().state_dict(), r"reinit must return a module, got OrderedDict"),
    "lazy": (lazy_layers, r"lazy layers; pass a batch"),
    "the same each time": (lambda: THE_ONE, r"always has the same net.0.weight, net.1.weight"),
    "unseeded": (lambda: Holder(sequence(Unseeded().body, nn.Linear(20, 3))), r"two draws with the same seed differ"),
}


@pytest.mark.parametrize(("reinit", "message"), UNFIT.values(), ids=UNFIT)
def test_a_reinit_that_does_not_fit_is_refused(reinit: Callable[[], Any], message: str) -> None:
    with pytest.raises(SettingError, match=r"^lottery.controls: random_reinit: .*" + message):
        drawn(Holder(two_layers()), reinit)


def test_a_reinit_that_leaves_out_what_is_trained_is_refused() -> None:
    with pytest.raises(SettingError, match=r"loss.weight \(missing\)"):
        drawn(WithLoss(), two_layers)


def test_a_reinit_that_hands_out_the_module_itself_changes_nothing() -> None:
    module = Holder(two_layers())
    with pytest.raises(SettingError, match="always has the same net.0.weight"):
        drawn(module, lambda: module)


def test_rebuilding_never_touches_a_live_network_among_the_arguments() -> None:
    class Keeps(L.LightningModule):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.save_hyperparameters(logger=False)
            self.net = net
            nn.init.zeros_(self.net.weight)

    with pytest.warns(UserWarning, match="is an instance of `nn.Module`"):
        module = Keeps(nn.Linear(3, 3))
    nn.init.ones_(module.net.weight)
    assert rebuilt(module) is None
    assert module.net.weight.unique().item() == 1


# ------------------------------------------------------------------------------ the comparison


def test_chance_alone_raises_no_alarm() -> None:
    """Thousands of tensors, each against draws of its own distribution: sizes, shapes of distributions, atoms, rows."""
    generator = torch.Generator().manual_seed(1)

    def uniform(n: int) -> Tensor:
        return torch.rand(n, generator=generator) * 2 - 1

    def normal(n: int) -> Tensor:
        return torch.randn(n, generator=generator)

    kinds: list[Callable[[int], Tensor]] = [
        uniform,
        normal,
        lambda n: normal(n) ** 3,
        lambda n: normal(n).sign() * 0.3,
        lambda n: normal(n) * (uniform(n) > 0.8),
        lambda n: torch.cat([torch.ones(n // 4), normal(n - n // 4) * 0.1]),
        lambda n: normal(n).bfloat16(),
        lambda n: torch.complex(normal(n), normal(n)),
    ]

    def is_alarm(start: Tensor, draw: Callable[[], Tensor]) -> bool:
        """As `how_to_draw` asks: what two draws do not settle, eight do."""
        draws = [draw(), draw()]
        return start.numel() == 1 or difference(start, draws) is not None

    def is_refused(draw: Callable[[], Tensor]) -> bool:
        start = draw()
        return is_alarm(start, draw) and difference(start, [draw() for _ in range(8)]) is not None

    def varied(draw: Callable[[int], Tensor], n: int) -> Tensor:
        while len(set((drawn := draw(n)).tolist())) == 1 < n:  # by lot a constant
            pass
        return drawn

    for n in (1, 2, 3, 5, 10, 30, 100, 300, 1000):
        for kind in kinds[:2] if n < 3 else kinds:  # two signs that are not constant give two draws in all
            for _ in range((200 if THOROUGH else 60) // (1 + n // 50)):
                assert not is_refused(lambda kind=kind, n=n: varied(kind, n)), (n, kinds.index(kind))  # type: ignore[misc]
    for _ in range(30):
        assert not is_refused(lambda: normal(50).exp().repeat_interleave(20) * uniform(1000)), "rows of their own scale"


@pytest.mark.parametrize(
    ("start", "fresh"),
    [
        (lambda: torch.randn(300), lambda: 1.8 * torch.randn(300)),
        (lambda: torch.randn(30), lambda: 50 * torch.randn(30)),
        (lambda: torch.randn(3000) + 0.2, lambda: torch.randn(3000)),
        (lambda: torch.randn(20000), lambda: (torch.rand(20000) * 2 - 1) * math.sqrt(3)),
        (lambda: torch.zeros(2), lambda: torch.rand(2)),
        (lambda: torch.rand(2), lambda: torch.zeros(2)),
        (lambda: torch.ones(1), lambda: torch.zeros(1)),
        (lambda: torch.zeros(1), lambda: torch.rand(1)),
        (lambda: torch.full((1,), 1.00001), lambda: torch.ones(1)),
        (lambda: torch.full((9,), math.nan), lambda: torch.rand(9)),
        (lambda: torch.randn(200) * (torch.arange(200) > 3), lambda: torch.randn(200)),
        (lambda: torch.randn(200), lambda: torch.randn(200) * (torch.arange(200) > 3)),
    ],
)
def test_what_differs_is_seen(start: Callable[[], Tensor], fresh: Callable[[], Tensor]) -> None:
    for _ in range(20):
        assert difference(start(), [fresh() for _ in range(8)]) is not None


# ------------------------------------------------------------------------------ in a fit


def foreign(std: float = 0.3) -> ImageClassifier:
    """A network whose constructor did more than its layers do; ImageClassifier cannot know."""
    net = sequence(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
    nn.init.normal_(net[1].weight, std=std)
    return ImageClassifier(net, init=None, num_classes=10)


@pytest.mark.parametrize("rewind_to", ["0it", "4it"])
def test_a_control_starts_from_what_reinit_gives_and_resumes_to_the_same(tmp_path: Path, rewind_to: str) -> None:
    settings: dict[str, Any] = {"rounds": 1, "rewind_to": rewind_to, "controls": CONTROLS, "reinit": foreign}
    torch.manual_seed(0)
    run = fit(foreign(), digits(), tmp_path / "whole", **settings)
    start, mask = run.start(1, "random_reinit"), run.ticket(1).masks["net.1.weight"]
    torch.manual_seed(derive_seed(7, "random_reinit", 1, 0))
    assert torch.equal(start["net.1.weight"], copies(foreign())["net.1.weight"] * mask)
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="cut"):
        fit(foreign(), digits(), tmp_path / "cut", **settings, callbacks=(Cut(12),))
    checkpoint = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    again = fit(foreign(), digits(), tmp_path / "cut", **settings, ckpt_path=checkpoint)
    assert_same(again.witness.starts[-1], start)
    with pytest.raises(SettingError, match="lottery.reinit was foreign, is two_layers"):
        fit(foreign(), digits(), tmp_path / "cut", **{**settings, "reinit": two_layers}, ckpt_path=checkpoint)


def test_a_late_rewind_settles_how_to_draw_by_the_weights_at_the_start(tmp_path: Path) -> None:
    """A constant of θ₀ has been trained at the rewind point, and the dense network is trained where a run resumes."""
    module = ImageClassifier(sequence(nn.Flatten(), nn.Linear(64, 10), Scale(10, 2)), init=None)
    run = fit(module, digits(), tmp_path / "whole", rounds=1, rewind_to="4it", controls=CONTROLS)
    assert run.start(1)["net.2.scale"].unique().numel() == 10
    assert run.start(1, "random_reinit")["net.2.scale"].unique().item() == 1
    with pytest.raises(RuntimeError, match="cut"):
        fit(scaled(), digits(), tmp_path / "cut", rounds=1, rewind_to="4it", controls=CONTROLS, callbacks=(Cut(9),))
    checkpoint = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    again = fit(
        scaled(), digits(), tmp_path / "cut", rounds=1, rewind_to="4it", controls=CONTROLS, ckpt_path=checkpoint
    )
    assert again.witness.starts[-1]["net.2.scale"].unique().item() == 1


class Scale(nn.Module):
    """LayerScale without a reset, and with arguments."""

    def __init__(self, width: int, decimals: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.decimals = decimals

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def scaled() -> ImageClassifier:
    return ImageClassifier(sequence(nn.Flatten(), nn.Linear(64, 10), Scale(10, 2)), init=None)


def test_layers_that_are_to_start_anew_name_the_setting_that_asks_for_it(tmp_path: Path) -> None:
    fit(foreign(), digits(), tmp_path / "source", rounds=1)
    settings: dict[str, Any] = {"rounds": None, "tickets": tmp_path / "source" / "tickets"}
    with pytest.raises(SettingError, match=r"lottery.on_mismatch: reinitialise: .*net.1.weight \(spread"):
        fit(foreign(), digits(), tmp_path / "run", **settings, on_mismatch="reinitialise")


@pytest.mark.parametrize("way", ["mask", "mask_and_sign"])
def test_transfer_draws_from_the_same_distribution_or_is_refused(tmp_path: Path, way: str) -> None:
    fit(foreign(), digits(), tmp_path / "source", rounds=1)
    settings: dict[str, Any] = {"rounds": None, "tickets": tmp_path / "source" / "tickets", "transfer": way}
    with pytest.raises(SettingError, match=rf"lottery.transfer: {way}: .*net.1.weight \(spread 0.\d+ at the start"):
        fit(foreign(), digits(), tmp_path / "refused", **settings)
    assert not (tmp_path / "refused" / "results.csv").exists()
    run = fit(foreign(), digits(), tmp_path / "run", **settings, reinit=foreign)
    torch.manual_seed(derive_seed(7, "transfer"))
    assert torch.equal(run.start(0)["net.1.weight"].abs(), copies(foreign())["net.1.weight"].abs())


def test_what_cannot_be_drawn_is_refused_before_training_and_only_where_it_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"random_reinit: .*net.1.weight \(spread 0.\d+ at the start.*reinit="):
        fit(foreign(), digits(), tmp_path / "refused", controls=CONTROLS)
    assert not (tmp_path / "refused").exists()
    fit(foreign(), digits(), tmp_path / "asked", rounds=1, controls=["random_mask"])
    trained = mlp()
    fit(trained, digits(), tmp_path / "first", rounds=1)
    with pytest.raises(SettingError, match=r"pretrained weights do not show how they were drawn.*reinit="):
        fit(trained, digits(), tmp_path / "second", rounds=1, controls=CONTROLS)
    fit(trained, digits(), tmp_path / "second", rounds=1, controls=CONTROLS, reinit=mlp)


NET = """
import torch
from torch import nn
class Wide(nn.Module):
    def __init__(self, std: float = 0.5, num_classes: int = 10, inner: nn.Module | None = None):
        super().__init__()
        self.body, self.head = nn.Linear(64, 32), nn.Linear(32, num_classes)
        self.inner = inner or nn.Identity()
        self.token = nn.Parameter(torch.randn(32))
        nn.init.normal_(self.body.weight, std=std)
    def forward(self, x):
        return self.head(self.inner(torch.relu(self.body(x.flatten(1))) + self.token))
def narrow() -> nn.Module:
    return Wide(0.01, inner=nn.Linear(32, 32))
"""


@pytest.mark.parametrize("given", [False, True])
def test_the_command_line_builds_a_foreign_network_from_its_class_and_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    (tmp_path / "my_nets.py").write_text(NET)
    draw_plainly(monkeypatch)
    monkeypatch.syspath_prepend(tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: {init: null, optimizer: Adam, net: {class_path: my_nets.Wide, init_args: {std: 2.0, inner: "
        "{class_path: torch.nn.Linear, init_args: {in_features: 32, out_features: 32}}}}}\n"
        "data: {dataset: Digits, train_size: 120}\n"
        "lottery: {rounds: 1, train_for: 3it, pruning: {rate: 0.2}, controls: [random_reinit]}\n"
        "trainer: {accelerator: cpu, logger: false}\n"
    )
    seen: list[State] = []
    monkeypatch.setattr(
        "lth_lightning.cli.lightning_cli.SaveRunConfig.on_network_start",
        lambda self, trainer, module, *_: seen.append(copies(module)),
    )
    arguments = ["--lottery.reinit", "my_nets.narrow"] if given else []
    main(["fit", "--config", str(config), "--run_dir", str(tmp_path / "run"), "--quiet", *arguments])
    _, _, reinit = seen
    weight = reinit["net.body.weight"]
    assert weight[weight != 0].std().item() == pytest.approx(0.01 if given else 2.0, rel=0.1)
    assert torch.equal(seen[0]["net.token"], seen[1]["net.token"])
    assert not torch.equal(seen[0]["net.token"], reinit["net.token"])


def test_metrics_and_data_of_others_work_with_reinit(tmp_path: Path) -> None:
    from conftest import FOREIGN_METRICS, ForeignModule

    run = fit(ForeignModule(), ForeignData(), tmp_path, rounds=1, controls=CONTROLS, metrics=FOREIGN_METRICS)
    assert not torch.equal(run.start(1)["body.5.weight"], run.start(1, "random_reinit")["body.5.weight"])


# ------------------------------------------------------------------------------ the real libraries, where installed


def test_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    small = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    bert = transformers.BertConfig(vocab_size=90, **small)
    gpt2 = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=90, n_positions=16)
    vit = transformers.ViTConfig(image_size=16, patch_size=4, **small)
    builds: list[Build] = [
        lambda: transformers.BertForMaskedLM(bert),
        lambda: transformers.GPT2LMHeadModel(gpt2),
        lambda: with_other_head(transformers.ViTForImageClassification(vit), "classifier", 32),
    ]
    for build in builds:
        torch.manual_seed(0)
        assert_as_constructed(drawn(Holder(build())), lambda build=build: Holder(build()))


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "efficientnet_b0"])
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    module = Holder(timm.create_model(name, num_classes=10))
    assert_as_constructed(drawn(module), lambda: Holder(timm.create_model(name, num_classes=10)))
