"""Fewer steps for the same result: batch normalisation folds into weights, ReLUs and residual sums into layers."""

from collections.abc import Callable

from lth_lightning.sparse.graph import LAYERS, Graph, Step, planes


def simplified(graph: Graph) -> Graph:
    """Return a graph that computes the same in fewer steps; the steps given may change."""
    merges: tuple[Callable[[Graph, Step], bool], ...] = (
        _flatten_first,
        _scale_into_layer,
        _clamp_before_pool,
        _scale_into_next,
        _sum_into_layer,
        _clamp_into_step,
    )
    for merge in merges:
        changed = True
        while changed:
            merged = [merge(graph, step) for step in list(graph.steps) if _holds(graph, step)]
            changed = any(merged)
    return graph


def _holds(graph: Graph, step: Step) -> bool:
    return any(step is one for one in graph.steps)


def _only(graph: Graph, name: str) -> Step | None:
    """Return the step that takes a value, if it is the only use of it."""
    takers = graph.consumers().get(name, [])
    return takers[0] if len(takers) == 1 and name not in graph.returned() else None


def _maker(graph: Graph, name: str) -> Step | None:
    return next((step for step in graph.steps if step.output == name), None)


def _drop(graph: Graph, step: Step, into: Step) -> None:
    """Remove `step`, whose output `into` now gives, in its place."""
    place = next(i for i, one in enumerate(graph.steps) if one is step)
    graph.steps[place] = into
    del graph.steps[next(i for i, one in enumerate(graph.steps) if one is into)]
    into.output = step.output


def _clamps(step: Step) -> bool:
    return "low" in step.settings


def _flatten_first(graph: Graph, step: Step) -> bool:
    """Flatten an input before its normalisation: as features, each pixel that nothing reads can go."""
    before = _maker(graph, step.inputs[0]) if step.kind == "flatten" else None
    above: Step | None = before
    while above is not None and above.kind in ("affine", "unary"):
        source = above.inputs[0]
        above = _maker(graph, source)
    if before is None or before.kind not in ("affine", "unary") or above is not None:
        return False
    if _only(graph, before.output) is not step:
        return False
    pixels = planes(graph.shapes[before.output]).pixels
    before.tensors = {name: value.repeat_interleave(pixels) for name, value in before.tensors.items()}
    first, second = (i for i, one in enumerate(graph.steps) if one is before or one is step)
    graph.steps[first], graph.steps[second] = step, before
    graph.shapes[before.output] = graph.shapes[step.output]
    step.inputs, before.inputs = before.inputs, (before.output,)
    step.output, before.output = before.output, step.output
    return True


def _scale_into_layer(graph: Graph, step: Step) -> bool:
    """Batch normalisation after a layer: W' = scale · W, b' = scale · b + shift."""
    layer = _maker(graph, step.inputs[0]) if step.kind == "affine" else None
    if layer is None or layer.kind not in LAYERS or _clamps(layer) or _only(graph, layer.output) is not step:
        return False
    if len(layer.inputs) > 1 or (layer.kind == "linear" and len(graph.shapes[step.output]) > 2):
        return False
    scale, weight = step.tensors["scale"].double(), layer.tensors["weight"]
    by_row = scale.reshape(-1, *([1] * (weight.ndim - 1)))
    layer.tensors["weight"] = (weight.double() * by_row).to(weight.dtype)
    layer.tensors["bias"] = (layer.tensors["bias"].double() * scale + step.tensors["shift"]).to(weight.dtype)
    layer.settings |= {key: step.settings[key] for key in ("low", "high") if key in step.settings}
    _drop(graph, step, layer)
    return True


def _scale_into_next(graph: Graph, step: Step) -> bool:
    """A factor and a shift before layers without padding: W' = W · scale, b' = b + W · shift."""
    if step.kind != "affine" or _clamps(step) or step.output in graph.returned():
        return False
    takers = graph.consumers()[step.output]
    if not takers or not all(_unpadded(taker) and taker.inputs[1:] == () for taker in takers):
        return False
    if any(taker.kind == "linear" and len(graph.shapes[step.output]) > 2 for taker in takers):
        return False
    scale, shift = step.tensors["scale"].double(), step.tensors["shift"].double()
    for taker in takers:
        weight = taker.tensors["weight"].double()
        by_column = (1, -1, *([1] * (weight.ndim - 2)))
        more = (weight * shift.reshape(by_column)).flatten(1).sum(1)
        dtype = taker.tensors["weight"].dtype
        taker.tensors["weight"] = (weight * scale.reshape(by_column)).to(dtype)
        taker.tensors["bias"] = (taker.tensors["bias"].double() + more).to(dtype)
        taker.inputs = step.inputs
    graph.steps.remove(step)
    return True


def _unpadded(step: Step) -> bool:
    return step.kind == "linear" or (
        step.kind == "conv" and step.settings["padding"] == [0, 0] and step.settings["groups"] == 1
    )


def _clamp_before_pool(graph: Graph, step: Step) -> bool:
    """ReLU after max pooling equals ReLU before it, where it costs nothing: in the layer that gives the maxima."""
    if step.kind != "unary" or step.settings["function"] != "clamp":
        return False
    pool = _maker(graph, step.inputs[0])
    if pool is None or pool.kind != "pool" or pool.settings["function"] != "max":
        return False
    layer = _maker(graph, pool.inputs[0])
    if layer is None or layer.kind not in LAYERS or _clamps(layer):
        return False
    if _only(graph, pool.output) is not step or _only(graph, layer.output) is not pool:
        return False
    layer.settings |= {"low": step.settings["a"], "high": step.settings["b"]}
    _drop(graph, step, pool)
    return True


def _sum_into_layer(graph: Graph, step: Step) -> bool:
    """A residual sum starts the sums of the convolution that gives one of its terms."""
    if step.kind != "binary" or step.settings["function"] != "add" or step.inputs[0] == step.inputs[1]:
        return False
    for own, other in (step.inputs, step.inputs[::-1]):
        layer = _maker(graph, own)
        fits = graph.shapes[own] == graph.shapes.get(other)
        free = layer is not None and layer.kind in LAYERS and len(layer.inputs) == 1 and not _clamps(layer)
        if layer is not None and free and fits and _only(graph, own) is step:
            layer.inputs = (*layer.inputs, other)
            _drop(graph, step, layer)
            return True
    return False


def _clamp_into_step(graph: Graph, step: Step) -> bool:
    if step.kind != "unary" or step.settings["function"] != "clamp":
        return False
    before = _maker(graph, step.inputs[0])
    if before is None or before.kind not in (*LAYERS, "affine") or _only(graph, before.output) is not step:
        return False
    low, high = step.settings["a"], step.settings["b"]
    if _clamps(before):
        return False
    before.settings |= {"low": low, "high": high}
    _drop(graph, step, before)
    return True
