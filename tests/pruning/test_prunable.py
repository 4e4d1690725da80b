"""Which weights may be pruned, what is left out and why, and what cannot be pruned exactly.

What was tried beyond these tests, with transformers 5.24, timm 1.0.31, peft 0.21 and torchvision 0.30 (share: prunable
weights of all parameters, of tiny configurations where the library lets one choose):

| network | share | left out, or refused |
|---|---|---|
| torchvision resnet18, convnext_tiny, efficientnet_b0, regnet_y_400mf | 99.0 to 99.9 % | nothing |
| torchvision vit_b_16; swin_t, maxvit_t | 99.7; 99.7, 99.5 % | position embedding; relative position tables |
| torchvision.ops.DeformConv2d | 96.4 % | nothing |
| nn.Transformer; AdaptiveLogSoftmaxWithLoss | 91.4; 100 % | nothing |
| LSTM with proj_size and bidirectional, GRU, RNN, their cells | 77.8 to 88.9 % | nothing |
| MultiheadAttention with kdim, vdim, add_bias_kv | 81.8 % | nothing |
| BERT (MLM), GPT-2, T5, Whisper, Mamba | 21 to 90 % | embeddings, the one shared with the head included |
| BERT (classifier), Llama | 31.7, 87.1 % | embeddings |
| transformers ViT | 91.3 % | position embedding |
| Wav2Vec2 (weight_norm on a convolution) | 89.7 % | nothing |
| Mixtral | 28.7 % | embeddings, experts and routers (bare parameters) |
| BiT (WeightStandardizedConv2d) | | refused by name: it standardises its weights |
| GPT-2 with LoRA (peft) | 3.2 % | the frozen base |
| timm vit_tiny, deit_tiny, volo, cait, beit, swin_tiny, coatnet, maxvit_tf | 98.8 to 99.7 % | position tables |
| timm mobilenetv3, tf_efficientnet_b0 (Conv2dSame), convnext, mixer, xcit, hrnet, repvgg | 98.7 to 99.8 % | nothing |
| timm botnet, halonet, lambda_resnet | 99.6 % | relative position tables |
| timm efficientnet_cc (CondConv2d) | 19.3 % | experts (bare parameters) |
| timm resnetv2_bit, nf_resnet26, nfnet_f0, vit_base_r50 (StdConv2d, ScaledStdConv2d) | | refused by name |
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import ForeignModule, mlp, resnet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from lth_lightning import Pruning, SettingError, prunable_weights
from lth_lightning.models import Conv2, LeNet300
from lth_lightning.pruning import matrices
from lth_lightning.pruning.criteria import Evidence
from lth_lightning.pruning.masks import dense_masks, masked
from lth_lightning.pruning.prunable import check_norms, chosen, copies_of, left_out
from lth_lightning.pruning.state import copied, fingerprint, full_state, load_state, parameters_by_name, stable_name


class LanguageModel(nn.Module):
    """An embedding whose weight the head shares, and a layer between them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.body = nn.Linear(16, 16)
        self.head = nn.Linear(16, 30, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.embedding(tokens).mean(1))))


# ------------------------------------------------------------------------------------- what may be pruned


class Conv1D(nn.Module):
    """As transformers has it, recognised by where it is defined, as importing transformers would take seconds."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight + self.bias


@pytest.fixture(autouse=True)
def _conv1d_stands_for_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by another `__module__`: jsonargparse would import it for the help of each command."""
    assert ("transformers.pytorch_utils", "Conv1D") in matrices.LAYERS_BY_PATH
    ours = (Conv1D.__module__, Conv1D.__qualname__)
    monkeypatch.setattr(matrices, "LAYERS_BY_PATH", {*matrices.LAYERS_BY_PATH, ours})


class OwnConv1D(Conv1D):
    pass


LSTM = ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"]
LAYERS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "linear": (lambda: nn.Linear(4, 3), ["weight"]),
    "bilinear": (lambda: nn.Bilinear(4, 3, 2), ["weight"]),
    "convolution, grouped": (lambda: nn.Conv1d(4, 6, 3, groups=2), ["weight"]),
    "transposed": (lambda: nn.ConvTranspose3d(4, 3, 2), ["weight"]),
    "attention": (lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True), ["in_proj_weight", "out_proj.weight"]),
    "attention, other sizes": (
        lambda: nn.MultiheadAttention(8, 2, kdim=5, vdim=6),
        ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
    ),
    "rnn": (lambda: nn.RNN(4, 3, 2), ["weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1"]),
    "gru, no bias": (lambda: nn.GRU(4, 3, bias=False), ["weight_ih_l0", "weight_hh_l0"]),
    "lstm": (
        lambda: nn.LSTM(4, 3, proj_size=2, bidirectional=True),
        [*LSTM, *(f"{name}_reverse" for name in LSTM)],
    ),
    "cells": (
        lambda: nn.Sequential(nn.RNNCell(4, 3), nn.GRUCell(4, 3), nn.LSTMCell(4, 3)),
        [f"{i}.{name}" for i in range(3) for name in ("weight_ih", "weight_hh")],
    ),
    "conv1d": (lambda: nn.Sequential(Conv1D(4, 6), OwnConv1D(2, 4)), ["0.weight", "1.weight"]),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 3)), ["parametrizations.weight.original1"]),
    "weight_norm in a gru": (
        lambda: parametrizations.weight_norm(nn.GRU(4, 3), "weight_hh_l0"),
        ["weight_ih_l0", "parametrizations.weight_hh_l0.original1"],
    ),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Conv2d(4, 3, 2)), ["parametrizations.weight.original"]),
    "both norms": (
        lambda: parametrizations.spectral_norm(parametrizations.weight_norm(nn.Linear(4, 3))),
        ["parametrizations.weight.original1"],
    ),
    "spectral_norm, as it was": (lambda: nn.utils.spectral_norm(nn.Linear(4, 3)), ["weight_orig"]),
    "nothing to multiply by": (lambda: nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm([4, 3]), nn.PReLU(3)), []),
    "no entries": (
        lambda: nn.AdaptiveLogSoftmaxWithLoss(8, 20, [5, 10]),
        ["head.weight", "tail.0.0.weight", "tail.0.1.weight"],
    ),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_the_weight_matrices_of_layers_that_multiply_by_them_are_prunable(name: str) -> None:
    make, names = LAYERS[name]
    layer = make()
    weights = prunable_weights(layer)
    assert list(weights) == names
    assert all(weight is dict(layer.named_parameters())[name] for name, weight in weights.items())


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
def test_weight_norm_as_it_was() -> None:
    assert list(prunable_weights(nn.utils.weight_norm(nn.Linear(4, 3)))) == ["weight_v"]


def test_our_own_networks_have_the_names_they_always_had() -> None:
    lenet, conv2 = list(prunable_weights(LeNet300())), list(prunable_weights(Conv2()))
    assert lenet == ["fc1.weight", "fc2.weight", "output.weight"]
    assert conv2 == ["conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight", "output.weight"]
    for make in (mlp, resnet, ForeignModule):
        module = make()
        names = [f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        assert list(chosen(module, prunable_weights)) == names
        assert left_out(module, prunable_weights(module)) == {}


def test_subclasses_count_and_frozen_weights_do_not() -> None:
    class Own(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return F.linear(inputs, self.weight, self.bias).relu()

    net = nn.Sequential(Own(4, 3), nn.Linear(3, 3))
    net[1].weight.requires_grad_(False)
    assert list(chosen(net, prunable_weights)) == ["0.weight"]
    assert left_out(net, prunable_weights(net)) == {"1.weight": "not trained"}


@pytest.mark.parametrize("name", [name for name in LAYERS if "norm" in name])
def test_a_0_in_what_is_trained_is_a_0_in_what_is_multiplied_by(name: str) -> None:
    """After the steps of an optimizer that has seen gradients for it."""
    layer = LAYERS[name][0]()
    attribute = "weight_hh_l0" if "gru" in name else "weight"
    inputs = torch.randn(2, 4, *((2, 2) if isinstance(layer, nn.Conv2d) else ()))
    (*_, (own, weight)) = prunable_weights(layer).items()
    mask = torch.arange(weight.numel()).view(weight.shape) % 2 == 0
    load_state(layer, masked(copied(full_state(layer)), {own: mask}))
    for _ in range(3):
        output = layer(inputs)
        (output[0] if isinstance(output, tuple) else output).square().sum().backward()
        with torch.no_grad():
            for trained in layer.parameters():
                if trained.grad is not None:
                    trained.sub_(0.1 * trained.grad * (mask if trained is weight else 1))
        layer(inputs)
        computed = getattr(layer, attribute)
        assert not computed[~mask].any()
        assert computed[mask].isfinite().all()


# ------------------------------------------------------------------------------------- what is left out, by name


def test_what_is_left_out_is_named_with_its_reason() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.language = LanguageModel()
            self.positions = nn.Embedding(6, 16)
            self.bag = parametrizations.spectral_norm(nn.EmbeddingBag(6, 16))
            self.token = nn.Parameter(torch.zeros(1, 1, 16))
            self.table = nn.Parameter(torch.zeros(1, 6, 16))
            self.generated = nn.Linear(3, 2)
            del self.generated.weight
            self.generated.weight = self.table[0, :2, :3]

    net = Mixed()
    assert left_out(net, prunable_weights(net)) == {
        "table": "of no layer whose weights are pruned",
        "language.embedding.weight": "embeddings, shared with a layer",
        "positions.weight": "embeddings",
        "bag.parametrizations.weight.original": "embeddings",
        "generated.weight": "computed elsewhere",
    }
    nothing = left_out(net, {})
    assert nothing["language.body.weight"] == "not chosen"
    assert set(nothing) - set(left_out(net, prunable_weights(net))) == {"language.body.weight"}


def test_what_no_optimizer_trains_is_left_out_or_refused_and_copies_are_found() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.average = nn.Linear(4, 3)
            self.online = nn.Linear(4, 3)
            self.average.load_state_dict(self.online.state_dict())
            self.other = nn.Linear(4, 3)
            self.zeros, self.zeros_too = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
            nn.init.zeros_(self.zeros.weight), nn.init.zeros_(self.zeros_too.weight)
            self.register_buffer("kept", self.online.weight.detach().clone())
            self.register_buffer("rounded", self.online.weight.detach().half())

    net = Pair()
    stepped = {id(weight) for weight in (*net.online.parameters(), net.zeros.weight)}
    weights = chosen(net, prunable_weights, stepped)
    assert [*weights] == ["online.weight", "zeros.weight"]
    without = ("average.weight", "other.weight", "zeros_too.weight")
    assert left_out(net, weights, stepped) == dict.fromkeys(without, "trained by no optimizer")
    copies = ("average.weight", "kept", "rounded")
    assert copies_of(net, weights, stepped) == dict.fromkeys(copies, "online.weight")
    with pytest.raises(SettingError, match=r"average.weight is trained by no optimizer .* leave it out by lottery"):
        chosen(net, lambda module: {**prunable_weights(module)}, stepped)
    with pytest.raises(SettingError, match=r"nothing to prune: .*average.weight \(trained by no optimizer\)"):
        chosen(net, prunable_weights, set())


def test_a_copy_of_layers_that_start_equal_follows_its_own_source() -> None:
    layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8), 2, enable_nested_tensor=False)
    net = nn.ModuleDict({"online": layers, "average": nn.ModuleList([copy.deepcopy(layers)])})
    stepped = {id(weight) for weight in layers.parameters()}
    copies = copies_of(net, chosen(net, prunable_weights, stepped), stepped)
    assert len(copies) == 8
    assert all(name.removeprefix("average.0.") == source.removeprefix("online.") for name, source in copies.items())


def test_where_nothing_can_be_pruned_what_is_left_out_is_said() -> None:
    with pytest.raises(SettingError, match=r"nothing to prune: Embedding.*weight \(embeddings\).*lottery.prunable"):
        chosen(nn.Embedding(5, 4), prunable_weights)


# ------------------------------------------------------------------------------------- names


def test_a_shared_weight_has_one_name_whichever_is_given() -> None:
    net = LanguageModel()
    for rule in (
        lambda net: {"head.weight": net.head.weight},
        lambda net: {"embedding.weight": net.embedding.weight},
        lambda net: net.named_parameters(remove_duplicate=False),
    ):
        asked = chosen(net, rule)
        assert "embedding.weight" in asked
        assert "head.weight" not in asked
    assert parameters_by_name(net, ["head.weight", "embedding.weight"]) == {
        "head.weight": net.embedding.weight,
        "embedding.weight": net.embedding.weight,
    }


def test_names_that_the_module_does_not_have_are_refused_with_those_it_has() -> None:
    net = nn.ModuleDict({"net": LanguageModel()})
    with pytest.raises(SettingError, match=r"returned as 'body.weight'.*calls it 'net.body.weight'"):
        chosen(net, lambda module: prunable_weights(module["net"]))
    with pytest.raises(SettingError, match="'net.body.weight' is not a parameter of ModuleDict"):
        chosen(net, lambda module: {"net.body.weight": module["net"].body.weight.data})
    with pytest.raises(SettingError, match=r"returned as 'net.body.weight'.*calls it 'net.body.bias'"):
        chosen(net, lambda module: {"net.body.weight": module["net"].body.bias})
    with pytest.raises(SettingError, match=r"ModuleDict has no parameter body.weight, odd. Use the names in"):
        parameters_by_name(net, ["body.weight", "net.body.bias", "odd"])


def test_names_are_the_same_compiled_and_a_name_that_only_looks_compiled_stays() -> None:
    net = nn.ModuleDict({"my_orig_mod": nn.Linear(2, 2)})
    assert list(full_state(net)) == ["my_orig_mod.weight", "my_orig_mod.bias"]
    net["my_orig_mod"] = torch.compile(net["my_orig_mod"], backend="eager")
    assert list(chosen(net, prunable_weights)) == ["my_orig_mod.weight"]
    assert parameters_by_name(net, ["my_orig_mod.weight"]).keys() == {"my_orig_mod.weight"}
    assert stable_name("_orig_mod.a._orig_mod.b") == "a.b"


def test_parameters_in_lists_and_dicts_and_of_no_dimension_can_be_asked_for() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.several = nn.ParameterList([nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(()))])
            self.named = nn.ParameterDict({"a-b c/d": nn.Parameter(torch.randn(2, 2))})

    net = Bare()
    weights = chosen(net, lambda module: dict(module.named_parameters()))
    assert list(weights) == ["several.0", "several.1", "named.a-b c/d"]
    state = copied(full_state(net))
    masks = Pruning(rate=0.5).prune(dense_masks(weights), Evidence(state, state, torch.Generator()), 1)
    assert [int(mask.sum()) for mask in masks.values()] == [3, 1, 2]


# ------------------------------------------------------------------------------------- refused by name


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).mT


class Standardised(nn.Conv2d):
    def forward(self, inputs: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(inputs, weight, self.bias, self.stride, self.padding)


class Centred(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.weight - self.weight.mean(), self.bias)


def symmetric() -> nn.Module:
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


def shared_memory() -> nn.Module:
    net = LanguageModel()
    net.head.weight = nn.Parameter(net.embedding.weight.data)
    return net


def expanded() -> nn.Module:
    layer = nn.Linear(4, 3)
    layer.weight = nn.Parameter(torch.ones(3, 1).expand(3, 4))
    return layer


def with_buffer(convert: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layer = nn.Linear(4, 3)
        layer.register_buffer("adjacency", convert(torch.eye(3)))
        return layer

    return make


def everything(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters())


REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(4, 4)), prunable_weights, "weight: .*Orthogonal"),
    "orthogonal, its original": (lambda: parametrizations.orthogonal(nn.Linear(4, 4)), everything, "remove_param"),
    "own parametrization": (symmetric, prunable_weights, r"weight: .*\(Symmetric\).*leave it out by lottery.prunable"),
    "pruned by torch": (
        lambda: prune.l1_unstructured(nn.Linear(4, 3), "weight", 0.5),
        prunable_weights,
        r"weight: torch.nn.utils.prune keeps.*prune.remove",
    ),
    "standardised convolution": (lambda: Standardised(4, 3, 2), prunable_weights, "Standardised changes its weight"),
    "standardised linear": (lambda: Centred(4, 3), prunable_weights, "Centred changes its weight"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(3, 2)), prunable_weights, "0.weight: LazyConv2d takes its shape"),
    "meta": (lambda: nn.Linear(4, 3, device="meta"), prunable_weights, "weight is on the meta device"),
    "complex": (
        lambda: nn.Linear(4, 3, dtype=torch.cfloat),
        prunable_weights,
        "weight must be one of float16.* got complex64",
    ),
    "float8": (lambda: nn.Linear(4, 3).to(torch.float8_e4m3fn), prunable_weights, "weight must .* got float8"),
    "not trained": (lambda: nn.Linear(4, 3).requires_grad_(False), everything, "weight is not trained"),
    "sparse gradients": (
        lambda: nn.Embedding(5, 4, sparse=True),
        everything,
        "weight has sparse gradients.*sparse=Fal",
    ),
    "two in one memory": (shared_memory, prunable_weights, "embedding.weight and head.weight are two"),
    "expanded": (expanded, prunable_weights, "weight is expanded"),
    "no entries": (lambda: nn.LayerNorm(0), everything, "weight has no entries"),
    "sparse buffer": (with_buffer(Tensor.to_sparse), prunable_weights, "adjacency is sparse_coo"),
    "quantized buffer": (
        with_buffer(lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)),
        prunable_weights,
        "adjacency is quantized",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:Lazy modules", "ignore:.*quantized tensor creation")
def test_what_cannot_be_pruned_exactly_is_refused_by_name(name: str) -> None:
    make, rule, message = REFUSED[name]
    with pytest.raises(SettingError, match=message):
        chosen(make(), rule)


def test_a_rule_can_leave_out_what_is_refused() -> None:
    net = nn.ModuleDict({"stem": Standardised(4, 3, 2), "head": nn.Linear(4, 3)})
    weights = chosen(net, lambda m: {n: w for n, w in prunable_weights(m).items() if not n.startswith("stem")})
    assert list(weights) == ["head.weight"]
    assert left_out(net, weights) == {"stem.weight": "not chosen"}


def test_trying_a_layer_leaves_no_trace() -> None:
    net = nn.Sequential(Standardised(4, 3, 2), Centred(4, 3))
    before, random = fingerprint(full_state(net)), torch.get_rng_state()
    prunable_weights(net)
    assert (fingerprint(full_state(net)), net.training) == (before, True)
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("layer", "lost"),
    [
        (parametrizations.weight_norm(nn.Linear(4, 3)), (1, slice(None))),
        (parametrizations.weight_norm(nn.Linear(4, 3), dim=1), (slice(None), 2)),
        (parametrizations.spectral_norm(nn.Linear(4, 3)), (slice(None), slice(None))),
    ],
)
def test_masks_that_leave_nothing_to_divide_by_are_refused(layer: nn.Module, lost: Any) -> None:
    (name,) = prunable_weights(layer)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[lost] = False
    load_state(layer, masked(copied(full_state(layer)), {name: mask}))
    assert not layer(torch.ones(1, 4)).isfinite().all()  # what would become of it
    with pytest.raises(SettingError, match="weight: weight_norm or spectral_norm divides it by norms, and .* of 1"):
        check_norms(layer, {name: mask})
    mask[1, 2] = True
    check_norms(layer, {name: mask})


# ------------------------------------------------------------------------------------- layouts and types

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels_last": lambda weight: weight.contiguous(memory_format=torch.channels_last),
    "transposed": lambda weight: weight.mT.contiguous().mT,
    "every other": lambda weight: torch.stack([weight, weight], dim=-1)[..., 0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_are_the_same_however_weights_lie_in_memory(layout: str) -> None:
    """Ties too: the earlier position goes first, in the order of the shape."""
    plain = torch.randint(-3, 4, (4, 6, 3, 3)).float()
    strided = LAYOUTS[layout](plain)
    assert not strided.is_contiguous()
    found = []
    for weight in (plain, strided):
        masks = dense_masks({"w": weight})
        for round in (1, 2):
            evidence = Evidence({"w": weight}, {"w": weight}, torch.Generator())
            masks = Pruning(rate=0.3).prune(masks, evidence, round)
        found.append(masks["w"])
    assert torch.equal(*found)
    assert fingerprint({"w": plain}) == fingerprint({"w": strided})
    # A mask of somebody else's may be strided itself.
    again = Pruning(rate=0.3).prune({"w": LAYOUTS[layout](found[0])}, evidence, 3)["w"]
    assert torch.equal(again, Pruning(rate=0.3).prune({"w": found[0]}, evidence, 3)["w"])


def test_state_goes_into_strided_and_expanded_tensors_in_place() -> None:
    class Strided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 3, 2, 2).contiguous(memory_format=torch.channels_last))
            self.register_buffer("expanded", torch.zeros(3, 1).expand(3, 4))

    net = Strided()
    state = {"weight": torch.randn(2, 3, 2, 2), "expanded": torch.tensor([[1.0], [2.0], [3.0]]).expand(3, 4).clone()}
    load_state(net, state)
    assert all(torch.equal(value, state[name]) for name, value in full_state(net).items())
    assert net.expanded.stride() == (1, 0)
    assert net.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_and_double_weights_are_ranked_in_their_own_precision(dtype: torch.dtype) -> None:
    weight = torch.randperm(100).sub(50).to(dtype).view(10, 10)
    evidence = Evidence({"w": weight}, {"w": weight}, torch.Generator())
    mask = Pruning(rate=0.49).prune(dense_masks({"w": weight}), evidence, 1)["w"]
    assert weight[~mask].abs().max() <= weight[mask].abs().min()
    assert int(mask.sum()) == 51
