"""Pruning at initialisation: SNIP, GraSP and SynFlow against finite differences and closed forms in NumPy."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    FOREIGN_METRICS,
    Cut,
    Fit,
    ForeignData,
    ForeignModule,
    assert_equal_runs,
    assert_same,
    copies,
    digits,
    fit,
    mlp,
    train_by_hand,
)
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lth_lightning import (
    SNIP,
    Criterion,
    Evidence,
    GraSP,
    LotteryTicket,
    Magnitude,
    Movement,
    NetworkFunction,
    Pruning,
    Random,
    SettingError,
    SynFlow,
    Ticket,
)
from lth_lightning.cli.main import main
from lth_lightning.pruning.masks import Masks, dense_masks
from lth_lightning.pruning.network_function import Batch
from lth_lightning.pruning.prunable import prunable_weights
from lth_lightning.pruning.state import full_state
from lth_lightning.seeding import generators

Array = NDArray[np.float64]


def small_network(*sizes: int) -> nn.Sequential:
    """Fully connected, float64, tanh (smooth: finite differences are exact to their order), with biases."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out, dtype=torch.float64), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def batch_of(seed: int, count: int = 12, inputs: int = 5, classes: int = 4) -> Batch:
    draws = torch.Generator().manual_seed(seed)
    images = torch.randn(count, inputs, generator=draws, dtype=torch.float64)
    return images, torch.randint(classes, (count,), generator=draws)


def evidence_of(network: nn.Module, batches: list[Batch]) -> Evidence:
    weights = {name: weight.detach() for name, weight in prunable_weights(network).items()}
    probe = NetworkFunction(network, full_state(network), lambda count: batches[:count], seed=0)
    return Evidence(weights, weights, torch.Generator().manual_seed(0), probe)


def parts(network: nn.Module) -> tuple[list[Array], list[Array]]:
    """Weights and biases of the layers, in NumPy."""
    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    return [layer.weight.detach().numpy().copy() for layer in linear], [layer.bias.detach().numpy() for layer in linear]


def loss_and_gradients(
    weights: list[Array], biases: list[Array], batch: Batch, temperature: float = 1.0
) -> tuple[float, list[Array]]:
    """Mean cross-entropy of the tanh network, and its gradients by the weights, by hand."""
    x, targets = batch[0].numpy(), batch[1].numpy()
    activations = [x]
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        z = activations[-1] @ w.T + b
        activations.append(np.tanh(z) if i < len(weights) - 1 else z / temperature)
    logits = activations[-1]
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    back = (np.exp(log_p) - np.eye(logits.shape[1])[targets]) / len(x) / temperature
    gradients = []
    for i in range(len(weights) - 1, -1, -1):
        gradients.insert(0, back.T @ activations[i])
        back = (back @ weights[i]) * (1 - activations[i] ** 2)
    return float(-log_p[np.arange(len(x)), targets].mean()), gradients


# ------------------------------------------------------------------------ each criterion against its definition


@pytest.mark.parametrize("count", [1, 2])
def test_snip_is_the_losss_slope_by_each_connections_gate(count: int) -> None:
    """Central differences by c at c = 1, a gate on each connection, of a loss written in NumPy."""
    network, batches = small_network(5, 6, 4), [batch_of(1), batch_of(2)]
    weights, biases = parts(network)

    def loss(gates: list[Array]) -> float:
        gated = [w * c for w, c in zip(weights, gates, strict=True)]
        return float(np.mean([loss_and_gradients(gated, biases, batch)[0] for batch in batches[:count]]))

    scores = SNIP(batches=count).scores(evidence_of(network, batches))
    for layer, score in enumerate(scores.values()):
        for place in np.ndindex(*score.shape):
            up, down = ([np.ones_like(w) for w in weights] for _ in range(2))
            up[layer][place], down[layer][place] = 1 + 1e-5, 1 - 1e-5
            assert float(score[place]) == pytest.approx(abs(loss(up) - loss(down)) / 2e-5, abs=1e-9)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_grasp_is_weight_times_hessian_gradient_product(temperature: float, count: int) -> None:
    """Hg as the change of NumPy's gradient along itself, by central differences; the sign is that of w · Hg."""
    network, batches = small_network(5, 6, 4), [batch_of(1), batch_of(2)]
    weights, biases = parts(network)

    def gradients(at: list[Array]) -> list[Array]:
        each = [loss_and_gradients(at, biases, batch, temperature)[1] for batch in batches[:count]]
        return [np.mean(layer, axis=0) for layer in zip(*each, strict=True)]

    g = gradients(weights)
    step = 1e-4 / max(np.abs(layer).max() for layer in g)
    ahead = gradients([w + step * d for w, d in zip(weights, g, strict=True)])
    behind = gradients([w - step * d for w, d in zip(weights, g, strict=True)])
    expected = [w * (a - b) / (2 * step) for w, a, b in zip(weights, ahead, behind, strict=True)]
    scores = GraSP(batches=count, temperature=temperature).scores(evidence_of(network, batches))
    for score, reference in zip(scores.values(), expected, strict=True):
        np.testing.assert_allclose(score.numpy(), reference, rtol=1e-5, atol=1e-6 * np.abs(reference).max())


def test_grasp_lets_those_weights_go_without_which_gradient_flow_grows() -> None:
    """The paper removes the highest S(−w) = −w · Hg, the first-order growth of |g|² / 2 as w goes to 0."""
    network, batch = small_network(5, 6, 4), batch_of(1)
    weights, biases = parts(network)

    def flow(gate: float, layer: int, place: tuple[int, ...]) -> float:
        gated = [w.copy() for w in weights]
        gated[layer][place] *= gate
        return sum(float((g**2).sum()) for g in loss_and_gradients(gated, biases, batch)[1]) / 2

    evidence = evidence_of(network, [batch])
    masks = Pruning(rate=0.1, scope="global", prune_from="initialisation", criterion=GraSP(temperature=1.0)).prune(
        dense_masks(evidence.trained), evidence, 1
    )
    growth = {True: [], False: []}  # type: dict[bool, list[float]]
    for layer, mask in enumerate(masks.values()):
        for place in np.ndindex(*mask.shape):
            growth[bool(mask[place])].append((flow(1 - 1e-5, layer, place) - flow(1 + 1e-5, layer, place)) / 2e-5)
    assert min(growth[False]) > max(growth[True])


# ------------------------------------------------------------------------ networks that are hard to differentiate twice


class Attention(nn.Module):
    """Tokens of five numbers, four sequences in a batch, to four classes. Smooth, in float64."""

    def __init__(self, attend: nn.Module) -> None:
        super().__init__()
        self.inward, self.attend, self.outward = nn.Linear(5, 8), attend, nn.Linear(8, 4)
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        return self.outward(self.attend(self.inward(images).unflatten(0, (-1, len(images) // 4 or 1))).mean(1))


class Fused(nn.Module):
    """`scaled_dot_product_attention`, whose kernels on CPU and GPU have no second derivative."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.all = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.settings = settings

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = (part(tokens).unflatten(2, (2, 4)).transpose(1, 2) for part in self.all)
        return F.scaled_dot_product_attention(q, k, v, **self.settings).transpose(1, 2).flatten(2)


class MultiHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.heads(tokens, tokens, tokens, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cells = kind(8, 8, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.cells(tokens)[0]


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation=nn.Tanh(), batch_first=True)


ATTENTIONS = {
    "scaled dot product": Fused,
    "causal": lambda: Fused(is_causal=True),
    "MultiheadAttention": MultiHead,
    "TransformerEncoderLayer": encoder,
    "in evaluation mode": lambda: encoder().eval(),
    "LSTM": lambda: Recurrent(nn.LSTM),
    "GRU": lambda: Recurrent(nn.GRU),
}


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_grasp_of_attention_is_the_change_of_its_gradient_along_itself(kind: str) -> None:
    """Central differences of first derivatives, which the kernels that train have."""
    network = Attention(ATTENTIONS[kind]())
    images, targets = batch_of(1)
    targets = targets[:4]
    weights = prunable_weights(network)

    def gradient() -> list[Tensor]:
        loss = F.cross_entropy(network(images) / 2.0, targets)
        return [g.clone() for g in torch.autograd.grad(loss, list(weights.values()))]

    at, g = [weight.detach().clone() for weight in weights.values()], gradient()
    step, sides = 1e-4 / max(float(layer.abs().max()) for layer in g), []
    for sign in (1, -1):
        with torch.no_grad():
            for weight, w, d in zip(weights.values(), at, g, strict=True):
                weight.copy_(w + sign * step * d)
        sides.append(gradient())
    with torch.no_grad():
        for weight, w in zip(weights.values(), at, strict=True):
            weight.copy_(w)
    expected = [w * (a - b) / (2 * step) for w, a, b in zip(at, *sides, strict=True)]
    scores = GraSP(temperature=2.0).scores(evidence_of(network, [(images, targets)]))
    largest = max(float(layer.abs().max()) for layer in expected)
    for score, reference in zip(scores.values(), expected, strict=True):
        torch.testing.assert_close(score, reference, rtol=1e-4, atol=1e-5 * largest)


class Once(torch.autograd.Function):
    """A kernel of one's own, whose way back is not differentiable."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.save_for_backward(value)
        return value.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * (1 - ctx.saved_tensors[0].tanh() ** 2)


class Kernel(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return Once.apply(value)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.layer, self.reentrant = nn.Linear(8, 8), reentrant

    def forward(self, value: Tensor) -> Tensor:
        return checkpoint(self.layer, value, use_reentrant=self.reentrant)


def test_a_function_that_is_differentiable_once_has_snip_and_no_grasp() -> None:
    """PyTorch would leave what it adds to the second derivative out, without a word."""
    network, plain = Attention(Kernel()), Attention(nn.Tanh())
    plain.load_state_dict(network.state_dict())
    batch = batch_of(1)[0], batch_of(1)[1][:4]
    with pytest.raises(SettingError, match="GraSP differentiates twice, .*once_differentiable.*Choose SNIP"):
        GraSP().scores(evidence_of(network, [batch]))
    torch.testing.assert_close(SNIP().scores(evidence_of(network, [batch])), SNIP().scores(evidence_of(plain, [batch])))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("criterion", [SNIP(), GraSP(), SynFlow(steps=1)])
def test_activation_checkpointing_is_refused(criterion: Criterion, reentrant: bool) -> None:
    """Its second way forward would be with the module's own weights, not the criterion's."""
    batch = batch_of(1)[0], batch_of(1)[1][:4]
    with pytest.raises(SettingError, match="activation checkpointing would repeat the forward pass with other weights"):
        criterion.scores(evidence_of(Attention(Checkpointed(reentrant)), [batch]))


def synflow_by_hand(weights: list[Array], biases: list[Array]) -> list[Array]:
    """∂R/∂|w| · |w| of a network of ReLUs whose weights, biases and inputs are positive, so that it is linear."""
    forward = [np.ones(weights[0].shape[1])]
    for w, b in zip(weights, biases, strict=True):
        forward.append(np.abs(w) @ forward[-1] + np.abs(b))
    back, scores = np.ones(len(forward[-1])), []
    for w, a in zip(weights[::-1], forward[-2::-1], strict=True):
        scores.insert(0, back[:, None] * np.abs(w) * a[None, :])
        back = back @ np.abs(w)
    return scores


def relu_network(*sizes: int, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_synflow_is_the_product_of_the_layers_absolute_weights() -> None:
    network = relu_network(5, 7, 6, 4)
    scores = SynFlow().scores(evidence_of(network, [batch_of(1)]))
    for score, reference in zip(scores.values(), synflow_by_hand(*parts(network)), strict=True):
        assert score.dtype == torch.float64
        np.testing.assert_allclose(score.numpy(), reference, rtol=1e-6)


def test_synflow_is_conserved() -> None:
    """What flows into a hidden unit flows out of it, and through each layer flows all (Tanaka et al., theorem 1, 2)."""
    network = relu_network(5, 7, 6, 4, bias=False)
    layers = list(SynFlow().scores(evidence_of(network, [batch_of(1)])).values())
    for before, after in pairwise(layers):
        torch.testing.assert_close(before.sum(1), after.sum(0))
        torch.testing.assert_close(before.sum(), after.sum())


def test_a_hundred_steps_of_synflow_are_those_of_a_plain_loop_and_no_layer_dies() -> None:
    """Global, to 1.5 %, where one step and magnitude empty a layer. The loop is NumPy: k of n steps keep N ρ^(k/n)."""
    network = relu_network(30, 60, 60, 60, 60, 4)
    evidence, masks = evidence_of(network, [batch_of(1, inputs=30)]), dense_masks(prunable_weights(network))
    settings: dict[str, Any] = {"densities": [0.015], "scope": "global", "prune_from": "initialisation"}
    ours = Pruning(**settings, criterion=SynFlow(steps=100)).prune(masks, evidence, 1)

    weights, biases = ([part.astype(np.float64) for part in each] for each in parts(network))
    kept = [np.ones_like(w, dtype=bool) for w in weights]
    size = sum(w.size for w in weights)
    left = size - int(0.985 * size)
    for step in range(1, 101):
        scores = synflow_by_hand([w * k for w, k in zip(weights, kept, strict=True)], biases)
        flat = np.concatenate([np.where(k, s, -1).ravel() for s, k in zip(scores, kept, strict=True)])
        stay = np.zeros(size, dtype=bool)
        stay[np.argsort(flat, kind="stable")[size - round(size * (left / size) ** (step / 100)) :]] = True
        parts_ = np.split(stay, np.cumsum([w.size for w in weights])[:-1])
        kept = [part.reshape(w.shape) for part, w in zip(parts_, weights, strict=True)]
    for mask, reference in zip(ours.values(), kept, strict=True):
        np.testing.assert_array_equal(mask.numpy(), reference)

    def dead(masks: Masks) -> list[str]:
        return [name for name, mask in masks.items() if not mask.any()]

    assert not dead(ours)
    assert dead(Pruning(**settings, criterion=SynFlow(steps=1)).prune(masks, evidence, 1))


# ------------------------------------------------------------------------ what a network is asked, and what it keeps


class Eventful(nn.Module):
    """Batch norm, dropout, a tied weight, a part that is frozen in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Dropout(0.5)
        self.frozen, self.again, self.last = nn.BatchNorm1d(5), nn.Linear(5, 5), nn.Linear(5, 4)
        self.again.weight = self.first.weight
        self.frozen.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.again(self.frozen(self.drop(self.norm(self.first(x))).relu())))


CRITERIA = [SNIP(batches=2), GraSP(batches=2), SynFlow()]
BY_NAME = {"ids": lambda criterion: type(criterion).__name__}


@pytest.mark.parametrize("criterion", CRITERIA, **BY_NAME)
def test_scoring_leaves_no_trace(criterion: Criterion) -> None:
    """Nor do dropout's draws hang on where the global generator stands."""
    network = Eventful()
    batches = [(inputs.float(), targets) for inputs, targets in (batch_of(1), batch_of(2))]
    evidence = evidence_of(network, batches)
    before, modes = copies(network), [part.training for part in network.modules()]
    network.first.weight.register_post_accumulate_grad_hook(lambda _: pytest.fail("a gradient was accumulated"))
    torch.manual_seed(3)
    stand = generators()["torch"]
    scores = criterion.scores(evidence)
    assert torch.equal(generators()["torch"], stand)
    assert_same(copies(network), before)
    assert [part.training for part in network.modules()] == modes
    assert all(weight.grad is None for weight in network.parameters())
    torch.manual_seed(4)
    assert_same(criterion.scores(evidence), scores)
    assert all(score.abs().sum() > 0 for score in scores.values())


def test_a_probe_sees_the_weights_it_is_given_and_not_the_modules() -> None:
    network = Eventful()
    state = copies(network)
    probe, (inputs, _) = NetworkFunction(network, state, lambda count: [], seed=0), batch_of(1)
    inputs = inputs.float()
    network.eval()
    other = {"first.weight": torch.randn(5, 5)}  # tied: it is `again.weight` too
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
        seen = probe(other, inputs, evaluate=True)
        for name, value in {**state, **other}.items():
            network.state_dict()[name].copy_(value)
        torch.testing.assert_close(seen, network(inputs))


def test_a_compiled_network_scores_as_it_does_uncompiled() -> None:
    """GraSP differentiates twice, which compiled code refuses."""

    class Whole(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    network, batches = small_network(5, 6, 4), [batch_of(1), batch_of(2)]
    compiled = torch.compile(network, backend="aot_eager")
    scores = GraSP().scores(evidence_of(Whole(compiled), batches))  # type: ignore[arg-type]
    assert_same(scores, GraSP().scores(evidence_of(Whole(network), batches)))


@pytest.mark.parametrize("criterion", CRITERIA, **BY_NAME)
def test_scores_of_half_precision_weights_are_of_full_precision(criterion: Criterion) -> None:
    network = relu_network(5, 6, 4).bfloat16()
    batches = [(inputs.bfloat16(), targets) for inputs, targets in (batch_of(1), batch_of(2))]
    scores = criterion.scores(evidence_of(network, batches))
    full = criterion.scores(evidence_of(network.float(), batches))
    for name, score in scores.items():
        assert score.dtype in (torch.float32, torch.float64)
        torch.testing.assert_close(score, full[name])


def test_another_loss_is_one_method() -> None:
    class SquaredSNIP(SNIP):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return ((outputs - targets[:, None]) ** 2).mean()

    network, batch = nn.Linear(5, 1, dtype=torch.float64), batch_of(1)
    x, y = batch[0].numpy(), batch[1].numpy()
    (weight,), (bias,) = parts(network)
    by_hand = np.abs((2 * (x @ weight.T + bias - y[:, None]) * x).mean(0) * weight)
    np.testing.assert_allclose(SquaredSNIP().scores(evidence_of(network, [batch]))["weight"].numpy(), by_hand)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SNIP(batches=0), "criterion.batches must be at least 1, got 0"),
        (lambda: GraSP(batches=-1), "criterion.batches must be at least 1, got -1"),
        (lambda: GraSP(temperature=0), "criterion.temperature must be above 0, got 0"),
        (
            lambda: Pruning(criterion=SynFlow(steps=0), prune_from="initialisation"),
            r"criterion.steps \(SynFlow\) must be at",
        ),
        *(
            (
                lambda criterion=criterion: Pruning(criterion=criterion),
                "set --lottery.pruning.prune_from initialisation",
            )
            for criterion in CRITERIA
        ),
        (
            lambda: Pruning(criterion=Movement(), prune_from="initialisation"),
            "Movement prunes from last_round or dense",
        ),
    ],
)
def test_settings_that_cannot_be_honoured_are_named(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()


def test_without_a_network_gradients_are_refused() -> None:
    weights = {"w": torch.ones(3)}
    with pytest.raises(SettingError, match="SNIP scores by gradients"):
        SNIP().scores(Evidence(weights, weights, torch.Generator()))


# ------------------------------------------------------------------------ in a fit


def at_initialisation(criterion: Criterion, **settings: Any) -> Pruning:
    return Pruning(densities=[0.5, 0.2], scope="global", prune_from="initialisation", criterion=criterion, **settings)


class Whole(ForeignModule):
    """With a `forward`, so that gradients can be had."""

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)


@pytest.mark.parametrize(
    ("make", "data", "criterion", "settings"),
    [
        (mlp, digits, SynFlow(steps=10), {"controls": ["random_reinit"]}),
        (Whole, ForeignData, SNIP(batches=2), {"metrics": FOREIGN_METRICS, "rewind_to": "4it"}),
    ],
    ids=["SynFlow", "SNIP of stock loaders, late"],
)
def test_tickets_pruned_at_initialisation_train_as_if_they_had_always_been(
    tmp_path: Path, make: Any, data: Any, criterion: Criterion, settings: dict[str, Any]
) -> None:
    """Round by round a plain loop from the rewind point times the mask, bit for bit: scoring moves nothing. And a
    run that is cut and resumed ends the same."""

    def run(folder: str, **given: Any) -> Fit:
        torch.manual_seed(0)
        pruning = at_initialisation(criterion)
        return fit(make(), data(), tmp_path / folder, rounds=None, pruning=pruning, **{**settings, **given})

    done = run("whole")
    done.make_module, done.make_data = make, data
    first = done.lottery._lineage.rewind_step
    for round in range(3):
        ticket = done.ticket(round)
        start = ticket.rewind_point if round else done.start(0)
        assert_same(ticket.trained, train_by_hand(done, start, ticket.masks, first if round else 0, 10, order=round))
        assert ticket.density == pytest.approx([1, 0.5, 0.2][round], abs=1e-3)
    with pytest.raises(RuntimeError, match="cut"):
        run("cut", callbacks=(Cut(13),))
    run("cut", ckpt_path=tmp_path / "cut/checkpoints/last.ckpt")
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_masks_at_initialisation_are_of_the_rewind_points_weights(tmp_path: Path) -> None:
    """Magnitude there keeps the large initial weights; each round from the dense network, so that masks nest."""
    run = fit(mlp(), digits(), tmp_path / "m", rounds=None, pruning=at_initialisation(Magnitude()))
    initial = run.ticket(0).rewind_point
    for round in (1, 2):
        masks = run.ticket(round).masks
        kept = torch.cat([initial[name][mask].abs() for name, mask in masks.items()])
        gone = torch.cat([initial[name][~mask].abs() for name, mask in masks.items()])
        assert kept.min() >= gone.max()
    random = fit(mlp(), digits(), tmp_path / "r", rounds=None, pruning=at_initialisation(Random()))
    assert random.rows[-1].density == pytest.approx(0.2, abs=1e-3)


class Seen(SNIP):
    """Remembers the targets of the batches it scores by."""

    def __init__(self) -> None:
        super().__init__(batches=2)
        self._seen: list[list[int]] = []

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self._seen.append(targets.tolist())
        return super().loss(outputs, targets)


@pytest.mark.parametrize(("make", "data"), [(mlp, digits), (Whole, ForeignData)])
def test_batches_to_prune_by_are_a_function_of_seed_and_round(tmp_path: Path, make: Any, data: Any) -> None:
    def seen(folder: str, seed: int, train_for: str) -> list[list[int]]:
        criterion, metrics = Seen(), FOREIGN_METRICS if make is Whole else None
        pruning = at_initialisation(criterion)
        settings: dict[str, Any] = {"rounds": None, "pruning": pruning, "metrics": metrics, "train_for": train_for}
        torch.manual_seed(0)
        fit(make(), data(), tmp_path / folder, seed=seed, **settings)
        return criterion._seen

    once, again, other = seen("a", 7, "2it"), seen("b", 7, "3it"), seen("c", 8, "2it")
    assert once == again
    assert once[:2] == once[2:4], "the rehearsal is round 1's"
    assert len({tuple(batch) for batch in [*once, *other]}) == 8, "two batches in each round of each seed"


class Dictionaries(ForeignData):
    def train_dataloader(self) -> DataLoader:
        pairs = TensorDataset.__getitem__
        data = [dict(zip("xy", pairs(self.splits["train"], i), strict=True)) for i in range(250)]
        return DataLoader(data, batch_size=40)  # type: ignore[arg-type]


class TwoLoaders(ForeignData):
    def train_dataloader(self) -> Any:
        return [super(TwoLoaders, self).train_dataloader() for _ in range(2)]


class Regression(ForeignData):
    def train_dataloader(self) -> DataLoader:
        images, _ = self.splits["train"].tensors
        return DataLoader(TensorDataset(images, torch.zeros(len(images), 3)), batch_size=40)


class Bytes(ForeignData):
    def train_dataloader(self) -> DataLoader:
        images, targets = self.splits["train"].tensors
        return DataLoader(TensorDataset(images.byte(), targets), batch_size=40)


@pytest.mark.parametrize(
    ("module", "data", "criterion", "message"),
    [
        (ForeignModule, ForeignData, SNIP(), "ForeignModule must have a `forward`"),
        (Whole, Dictionaries, SNIP(), r"must be two tensors \(inputs, targets\), got dict"),
        (Whole, TwoLoaders, SynFlow(), "needs one training loader, got 2"),
        (Whole, Regression, GraSP(), "the loss of GraSP"),
        (Whole, Bytes, SynFlow(), "must be floating point, got torch.uint8"),
        (Whole, ForeignData, SNIP(batches=8), "criterion.batches must be at most 7, the batches of an epoch; got 8"),
    ],
)
def test_what_gives_no_gradients_is_refused_before_training(
    tmp_path: Path, module: Any, data: Any, criterion: Criterion, message: str
) -> None:
    settings: dict[str, Any] = {"metrics": FOREIGN_METRICS, "rounds": None, "pruning": at_initialisation(criterion)}
    with pytest.raises(SettingError, match=message):
        fit(module(), data(), tmp_path, callbacks=(Cut(1),), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rewind": "learning_rate"}, "lottery.rewind: learning_rate"),
        ({"rewind": "nothing"}, "lottery.rewind: nothing"),
        ({"controls": ["pruned_only"]}, "lottery.controls: pruned_only"),
    ],
)
def test_what_needs_trained_weights_is_refused_at_initialisation(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        LotteryTicket(train_for="10it", pruning=at_initialisation(SynFlow()), **settings)


@pytest.mark.usefixtures("plain_figures")
@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Path(__file__).parents[2] / "configs/quickstart.yaml"
    flags = [
        *("fit", "--config", str(config), "--run_dir", str(tmp_path / "run"), "--trainer.enable_progress_bar", "false"),
        *("--model.net", "MLP", "--model.net.hidden", "[20]", "--data.train_size", "300"),
        *("--lottery.rounds", "1", "--lottery.train_for", "4it", "--lottery.controls", "[]"),
        *("--lottery.pruning.criterion", "SNIP"),
    ]
    at_start = ("--lottery.pruning.prune_from", "initialisation")
    main([*flags, "--lottery.pruning.criterion.batches", "2", *at_start])
    assert Ticket.load(tmp_path / "run/tickets/round_01.safetensors").density < 1
    assert "batches: 2" in (tmp_path / "run/config.yaml").read_text()
    capsys.readouterr()
    assert main([*flags, "--run_dir", str(tmp_path / "other")]) != 0
    assert "SNIP prunes from initialisation, not from last_round; set --lottery.pruning" in capsys.readouterr().err
