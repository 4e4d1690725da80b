"""Which weights may be pruned, which matrices are left out and why, and which weights cannot be pruned exactly."""

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from lth_lightning.errors import SettingError
from lth_lightning.pruning.masks import Masks
from lth_lightning.pruning.matrices import LEAVE_OUT, ONE_NORM, matrices
from lth_lightning.pruning.state import aliases, check_state, stable_name

Rule = Callable[[nn.Module], Mapping[str, nn.Parameter]]
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def prunable_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that may be pruned: all trained weight matrices of layers that multiply by them.

    Those are Linear, Bilinear, convolutions, MultiheadAttention (its in-projections too), RNN, LSTM and GRU with their
    cells, transformers' Conv1D, torchvision's DeformConv2d, and subclasses. Never biases, never normalisation, never
    embeddings (Frankle & Carbin 2019, section 2), also where a head shares its weight with an embedding. A weight that
    several layers share counts once, under the first name that `module.named_parameters()` has for it. A weight under
    weight_norm or spectral_norm is pruned where it is trained, as both only scale it. Any function of this signature
    can take its place: `LotteryTicket(prunable=...)`, one that leaves out what `chosen` refuses, say.
    """
    names, embeddings = _names(module), _embeddings(module)
    weights = [matrix.parameter for matrix in matrices(module) if matrix.parameter is not None]
    return {
        names[id(weight)]: weight
        for weight in weights
        if weight.requires_grad and id(weight) not in embeddings and (is_lazy(weight) or weight.numel())
    }


def chosen(module: nn.Module, rule: Rule) -> dict[str, nn.Parameter]:
    """What `rule` says may be pruned, each weight once, by the name that `full_state(module)` has for it.

    Raises:
        SettingError: there is none, one goes by a name that the module does not have for it, or one cannot be pruned
            exactly; it says why and what to do.
    """
    check_state(module)
    given, names, own = dict(rule(module)), _names(module), aliases(module)
    for name, weight in given.items():
        if id(weight) not in names:
            raise SettingError(
                f"lottery.prunable: what it gives as {name!r} is not a parameter of {type(module).__name__}; give the "
                "parameters themselves, by their names in `module.named_parameters()`."
            )
        if own.get(stable_name(name)) is not weight:
            raise SettingError(
                f"lottery.prunable: it gives a weight the name {name!r}, but {type(module).__name__} calls it "
                f"{names[id(weight)]!r}; give names as in `module.named_parameters()`."
            )
    weights = {names[id(weight)]: weight for weight in given.values()}
    if not weights:
        without = ", ".join(f"{name} ({reason})" for name, reason in left_out(module, weights).items())
        raise SettingError(
            f"nothing to prune: {type(module).__name__} has no prunable weight. Left out: {without or 'none'}. Name "
            "weights to prune by lottery.prunable."
        )
    for name, weight in weights.items():
        _check_weight(name, weight)
    pruned = {id(weight) for weight in weights.values()}
    for matrix in matrices(module):
        if id(matrix.parameter) in pruned and matrix.problem is not None:
            raise SettingError(f"{matrix.name}: {matrix.problem}")
    for weight_id, layer in _embeddings(module).items():
        if weight_id in pruned and layer.sparse:
            raise SettingError(
                f"{names[weight_id]} has sparse gradients, which masks do not fit. Build its {type(layer).__name__} "
                f"with sparse=False, {LEAVE_OUT}."
            )
    _refuse_shared_memory(module, weights)
    return weights


def left_out(module: nn.Module, weights: Mapping[str, nn.Parameter]) -> dict[str, str]:
    """The weight matrices of `module` that are not among `weights`, and why, in words.

    Those are the matrices of known layers, and any other parameter with two dimensions greater than 1.
    """
    names, pruned, embeddings = _names(module), {id(weight) for weight in weights.values()}, _embeddings(module)
    found = list(matrices(module))
    known = {id(matrix.parameter) for matrix in found}

    def reason(weight: nn.Parameter) -> str:
        if not weight.requires_grad:
            return "not trained"
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


def check_norms(module: nn.Module, masks: Masks) -> None:
    """Refuse masks that leave nothing of what a weight is divided by the norm of: 0 / 0 is NaN.

    Raises:
        SettingError: weight_norm or spectral_norm would divide by 0; it names the weight.
    """
    names = _names(module)
    for matrix in matrices(module):
        mask = masks.get(names.get(id(matrix.parameter), ""))
        if mask is None or matrix.norm_dim is None:
            continue
        parts = mask.flatten()[None] if matrix.norm_dim == ONE_NORM else mask.movedim(matrix.norm_dim, 0).flatten(1)
        if lost := int((~parts.any(dim=1)).sum()):
            raise SettingError(
                f"{matrix.name}: weight_norm or spectral_norm divides it by norms, and of {lost} the masks prune every "
                "weight, which gives 0 / 0. Prune it less by lottery.pruning.rates, or take the norm off."
            )


# ------------------------------------------------------------------------------------- what there is in a module


def _names(module: nn.Module) -> dict[int, str]:
    """The name of each parameter in `full_state`, by its id."""
    return {id(parameter): stable_name(name) for name, parameter in module.named_parameters()}


def _embeddings(module: nn.Module) -> dict[int, nn.Embedding | nn.EmbeddingBag]:
    """The layer of each parameter of an embedding, by the parameter's id."""
    found: dict[int, nn.Embedding | nn.EmbeddingBag] = {}
    for layer in module.modules():
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            own = [*layer.parameters(recurse=False)]
            if parametrize.is_parametrized(layer):
                own += layer.parametrizations.parameters()  # type: ignore[union-attr]
            found |= {id(parameter): layer for parameter in own}
    return found


# ------------------------------------------------------------------------------------- what cannot be right


def _check_weight(name: str, weight: nn.Parameter) -> None:
    if not weight.requires_grad:
        raise SettingError(f"{name} is not trained (requires_grad is False). Train it, {LEAVE_OUT}.")
    if weight.dtype not in TYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in TYPES)
        raise SettingError(
            f"{name} is {str(weight.dtype).removeprefix('torch.')}; what is pruned must be one of {allowed}. Convert "
            f"it, {LEAVE_OUT}."
        )
    if weight.numel() == 0:
        raise SettingError(f"{name} has no entries, so there is nothing to prune; leave it out by lottery.prunable.")
    if any(stride == 0 and size > 1 for stride, size in zip(weight.stride(), weight.shape, strict=True)):
        raise SettingError(f"{name} is expanded: several entries are one number in memory. Clone it, {LEAVE_OUT}.")


def _refuse_shared_memory(module: nn.Module, weights: Mapping[str, nn.Parameter]) -> None:
    """Two parameters in the same memory are trained by two steps, and what one prunes the other moves."""
    spans = sorted(
        (str(weight.device), weight.data_ptr(), weight.data_ptr() + _extent(weight), stable_name(name))
        for name, weight in module.named_parameters()
        if weight.requires_grad and weight.numel()
    )
    for (device, _, end, name), (other_device, start, _, other) in pairwise(spans):
        if device == other_device and start < end and not weights.keys().isdisjoint((name, other)):
            raise SettingError(
                f"{name} and {other} are two parameters in the same memory. To share a weight, assign the parameter "
                "itself: `head.weight = embedding.weight`; otherwise clone one."
            )


def _extent(weight: Tensor) -> int:
    """The bytes from a tensor's first entry to its last."""
    last = sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride(), strict=True))
    return (last + 1) * weight.element_size()
