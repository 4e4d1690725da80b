"""Which weights may be pruned, which weight matrices are left out and why, and which cannot be pruned exactly."""

import functools
import itertools
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from lth_lightning.errors import SettingError
from lth_lightning.pruning.masks import Masks
from lth_lightning.pruning.matrices import LEAVE_OUT, ONE_NORM, matrices
from lth_lightning.pruning.state import aliases, check_state, full_state, stable_name

Rule = Callable[[nn.Module], Mapping[str, nn.Parameter]]
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def prunable_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the prunable weights: all trained weight matrices of layers that multiply by them.

    Those layers are Linear, Bilinear, convolutions, MultiheadAttention (with its in-projections), RNN, LSTM and GRU
    and their cells, transformers' Conv1D, torchvision's DeformConv2d, and subclasses. Biases, normalisation and
    embeddings are never prunable (Frankle & Carbin 2019, section 2), even if a head shares an embedding's weight. A
    weight shared by several layers counts once, under its first name in `module.named_parameters()`. Under weight_norm
    or spectral_norm the original weight is pruned, as both only scale it. `LotteryTicket(prunable=...)` takes any
    function of this signature, for example one that leaves out what `chosen` refuses.
    """
    names, embeddings = _names(module), _embeddings(module)
    weights = [matrix.parameter for matrix in matrices(module) if matrix.parameter is not None]
    return {
        names[id(weight)]: weight
        for weight in weights
        if weight.requires_grad and id(weight) not in embeddings and (is_lazy(weight) or weight.numel())
    }


def chosen(module: nn.Module, rule: Rule, stepped: Collection[int] | None = None) -> dict[str, nn.Parameter]:
    """Return the weights that `rule` selects, each once, by its name in `full_state(module)`.

    Args:
        module: the network.
        rule: selects weights.
        stepped: the `id` of each parameter that an optimizer trains; None if all are. Of `prunable_weights`, the others
            (an average, a target network) are left out, as they must follow the weights that they copy.

    Raises:
        SettingError: no weight is selected, one has a name that the module does not give it, or one cannot be pruned
            exactly; the error gives the reason and the fix.
    """
    check_state(module)
    given, names, own = dict(rule(module)), _names(module), aliases(module)
    if rule is prunable_weights and stepped is not None:
        given = {name: weight for name, weight in given.items() if id(weight) in stepped}
    for name, weight in given.items():
        if id(weight) not in names:
            raise SettingError(
                f"lottery.prunable: {name!r} is not a parameter of {type(module).__name__}. Return the parameters "
                "themselves, by their names in `module.named_parameters()`."
            )
        if own.get(stable_name(name)) is not weight:
            raise SettingError(
                f"lottery.prunable: a weight is returned as {name!r}, but {type(module).__name__} calls it "
                f"{names[id(weight)]!r}. Use the names in `module.named_parameters()`."
            )
    weights = {names[id(weight)]: weight for weight in given.values()}
    if not weights:
        without = ", ".join(f"{name} ({reason})" for name, reason in left_out(module, weights, stepped).items())
        raise SettingError(
            f"nothing to prune: {type(module).__name__} has no prunable weight. Left out: {without or 'none'}. Choose "
            "weights to prune by lottery.prunable."
        )
    for name, weight in weights.items():
        _check_weight(name, weight)
        if stepped is not None and id(weight) not in stepped:
            raise SettingError(
                f"{name} is trained by no optimizer of configure_optimizers, so it is a constant, or it follows other "
                f"weights and would need their mask. Give it to an optimizer, {LEAVE_OUT}."
            )
    pruned = {id(weight) for weight in weights.values()}
    for matrix in matrices(module):
        if id(matrix.parameter) in pruned and matrix.problem is not None:
            raise SettingError(f"{matrix.name}: {matrix.problem}")
    for weight_id, layer in _embeddings(module).items():
        if weight_id in pruned and layer.sparse:
            raise SettingError(
                f"{names[weight_id]} has sparse gradients, which cannot be masked. Build its {type(layer).__name__} "
                f"with sparse=False, {LEAVE_OUT}."
            )
    _refuse_shared_memory(module, weights)
    return weights


def left_out(
    module: nn.Module, weights: Mapping[str, nn.Parameter], stepped: Collection[int] | None = None
) -> dict[str, str]:
    """Return the weight matrices of `module` that are not in `weights`, each with the reason in words.

    Weight matrices are those of known layers, and any other parameter with two dimensions greater than 1; `stepped` as
    in `chosen`.
    """
    names, pruned, embeddings = _names(module), {id(weight) for weight in weights.values()}, _embeddings(module)
    found = list(matrices(module))
    known = {id(matrix.parameter) for matrix in found}

    def reason(weight: nn.Parameter) -> str:
        if not weight.requires_grad:
            return "not trained"
        if stepped is not None and id(weight) not in stepped:
            return "trained by no optimizer"
        if id(weight) in embeddings:
            return "embeddings, shared with a layer" if id(weight) in known else "embeddings"
        return "not chosen" if id(weight) in known else "of no layer whose weights are pruned"

    without = {
        names[id(weight)]: reason(weight)
        for weight in module.parameters()
        if id(weight) not in pruned
        and weight.numel()
        and (id(weight) in known or sum(size > 1 for size in weight.shape) > 1)
    }
    return without | {matrix.name: "computed elsewhere" for matrix in found if matrix.parameter is None}


def copies_of(module: nn.Module, weights: Mapping[str, nn.Parameter], stepped: Collection[int]) -> dict[str, str]:
    """Map each parameter or buffer that no optimizer trains and that equals a prunable weight to that one's name.

    Such a copy (an average, a target network, a teacher) starts as its source does, so it needs the source's mask.

    Args:
        module: the network as training starts.
        weights: its prunable weights.
        stepped: the `id` of each parameter that an optimizer trains.
    """
    trained = {stable_name(name) for name, weight in module.named_parameters() if id(weight) in stepped}
    others = {
        name: value
        for name, value in full_state(module).items()
        if name not in trained and value.is_floating_point() and value.numel()
    }
    sources: dict[tuple[object, ...], list[str]] = {}
    for name, weight in weights.items():
        if not bool((weight == weight.flatten()[0]).all()):  # a constant says nothing
            for dtype in {value.dtype for value in others.values()}:  # a teacher in half precision is a copy too
                sources.setdefault(_key(weight, dtype), []).append(name)
    found: dict[str, str] = {}
    for name, value in others.items():
        alike = sources.get(_key(value, value.dtype), [])
        equal = [one for one in alike if torch.equal(value, weights[one].to(value.device, value.dtype))]
        if equal:  # several if layers start equal, as those of a TransformerEncoder do
            found[name] = max(equal, key=functools.partial(_common_ending, name))
    return found


def _common_ending(one: str, other: str) -> int:
    """Count the parts at the end of two names that are equal."""
    pairs = zip(reversed(one.split(".")), reversed(other.split(".")), strict=False)
    return len([*itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)])


def _key(value: Tensor, dtype: torch.dtype) -> tuple[object, ...]:
    """Return a quick key that copies in this dtype have in common."""
    return dtype, tuple(value.shape), tuple(value.detach().flatten()[:8].to(dtype).tolist())


def check_norms(module: nn.Module, masks: Masks) -> None:
    """Refuse masks that prune everything a norm is taken over: dividing by it would give 0 / 0 = NaN.

    Raises:
        SettingError: weight_norm or spectral_norm would divide by 0; the error names the weight.
    """
    names = _names(module)
    for matrix in matrices(module):
        mask = masks.get(names.get(id(matrix.parameter), ""))
        if mask is None or matrix.norm_dim is None:
            continue
        parts = mask.flatten()[None] if matrix.norm_dim == ONE_NORM else mask.movedim(matrix.norm_dim, 0).flatten(1)
        if lost := int((~parts.any(dim=1)).sum()):
            raise SettingError(
                f"{matrix.name}: weight_norm or spectral_norm divides it by norms, and the masks prune every weight of "
                f"{lost} of them, which gives 0 / 0. Prune it less by lottery.pruning.rates, or remove the norm."
            )


# ------------------------------------------------------------------------------------- a module's parameters


def _names(module: nn.Module) -> dict[int, str]:
    """Map each parameter's id to its name in `full_state`."""
    return {id(parameter): stable_name(name) for name, parameter in module.named_parameters()}


def _embeddings(module: nn.Module) -> dict[int, nn.Embedding | nn.EmbeddingBag]:
    """Map the id of each embedding parameter to its layer."""
    found: dict[int, nn.Embedding | nn.EmbeddingBag] = {}
    for layer in module.modules():
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            own = [*layer.parameters(recurse=False)]
            if parametrize.is_parametrized(layer):
                own += layer.parametrizations.parameters()  # type: ignore[union-attr]
            found |= {id(parameter): layer for parameter in own}
    return found


# ------------------------------------------------------------------------------------- refusals


def _check_weight(name: str, weight: nn.Parameter) -> None:
    if not weight.requires_grad:
        raise SettingError(f"{name} is not trained (requires_grad is False). Train it, {LEAVE_OUT}.")
    if weight.dtype not in TYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in TYPES)
        raise SettingError(
            f"{name} must be one of {allowed} to be pruned, got {str(weight.dtype).removeprefix('torch.')}. Convert "
            f"it, {LEAVE_OUT}."
        )
    if weight.numel() == 0:
        raise SettingError(f"{name} has no entries, so there is nothing to prune; leave it out by lottery.prunable.")
    if any(stride == 0 and size > 1 for stride, size in zip(weight.stride(), weight.shape, strict=True)):
        raise SettingError(f"{name} is expanded: several entries share one number in memory. Clone it, {LEAVE_OUT}.")


def _refuse_shared_memory(module: nn.Module, weights: Mapping[str, nn.Parameter]) -> None:
    """Refuse two parameters in the same memory: both are stepped, so one moves what the other prunes."""
    spans = sorted(
        (str(weight.device), weight.data_ptr(), weight.data_ptr() + _extent(weight), stable_name(name))
        for name, weight in module.named_parameters()
        if weight.requires_grad and weight.numel()
    )
    for (device, _, end, name), (other_device, start, _, other) in itertools.pairwise(spans):
        if device == other_device and start < end and not weights.keys().isdisjoint((name, other)):
            raise SettingError(
                f"{name} and {other} are two parameters in the same memory. To share a weight, assign the parameter "
                "itself (`head.weight = embedding.weight`); otherwise clone one."
            )


def _extent(weight: Tensor) -> int:
    """Return the bytes from a tensor's first entry to its last."""
    last = sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride(), strict=True))
    return (last + 1) * weight.element_size()
