"""A compiled network as a file: safetensors, no pickle. Nothing in it is executed but operators of PyTorch by name.

A weight with many zeros is stored as its surviving values and, a byte each, the zeros before them in row-major order.
The
byte 255 stands for 255 zeros and no value. Selected channels are stored by the same gaps.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from lth_lightning.errors import SettingError
from lth_lightning.files import replace_file
from lth_lightning.pruning.state import fingerprint
from lth_lightning.sparse.dense import NUMBERS, operator_named
from lth_lightning.sparse.gaps import MARKER, as_bytes
from lth_lightning.sparse.graph import Graph, Step

KEY = "lth_lightning.sparse"
FORMAT = 1


def save(graph: Graph, path: str | Path) -> None:
    """Write a graph to `path` atomically.

    Raises:
        SettingError: the file cannot be written.
    """
    replace_file(Path(path), stored(graph))


def stored(graph: Graph) -> bytes:
    """Return the content of a graph's file."""
    tensors: dict[str, Tensor] = {f"constant.{name}": value for name, value in graph.constants.items()}
    steps = []
    for number, step in enumerate(graph.steps):
        shapes: dict[str, list[int]] = {}
        for name, value in step.tensors.items():
            packed = _packed(name, value)
            shapes |= {name: list(value.shape)} if len(packed) > 1 or name == "index" else {}
            tensors |= {f"{number}.{key}": part for key, part in packed.items()}
        steps.append([step.kind, list(step.inputs), step.output, _storable(step.settings), shapes])
    facts = {
        "format": FORMAT,
        "inputs": graph.inputs,
        "outputs": graph.outputs,
        "steps": steps,
        "shapes": {name: list(shape) for name, shape in graph.shapes.items() if _used(graph, name)},
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = json.dumps(facts, separators=(",", ":"))
    return to_bytes(tensors, {KEY: text, "hash": _hash(tensors, text)})


def read(path: str | Path) -> Graph:
    """Read a graph, and check every byte against the hash in the file.

    Raises:
        SettingError: the file does not exist, is not one of these, is truncated or changed, or needs another version.
    """
    path = Path(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError as error:
        raise SettingError(f"{path} does not exist.") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise SettingError(f"{path} is damaged, or is not a compiled network ({error}).") from error
    if KEY not in metadata:
        raise SettingError(f"{path} is a safetensors file, but not a compiled network (`train.py export --to torch`).")
    try:
        if metadata["hash"] != _hash(tensors, metadata[KEY]):
            raise ValueError("its content does not match the hash it was written with")
        facts = json.loads(metadata[KEY])
        if facts["format"] != FORMAT:
            raise ValueError(f"this version reads format {FORMAT}, got {facts['format']}")
        return _graph(facts, tensors)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        raise SettingError(f"{path} cannot be read: {error}.") from error


def _graph(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Graph:
    steps = []
    for number, (kind, inputs, output, settings, shapes) in enumerate(facts["steps"]):
        own = {
            name.removeprefix(f"{number}."): value for name, value in tensors.items() if name.startswith(f"{number}.")
        }
        for name, shape in shapes.items():
            own[name] = _unpacked(name, own, shape)
        step = Step(kind, tuple(inputs), output, _restored(settings), own)
        if kind == "torch":
            _check_operator(step.settings["target"])
        steps.append(step)
    shapes = {name: tuple(shape) for name, shape in facts["shapes"].items()}
    constants = {
        name.removeprefix("constant."): value for name, value in tensors.items() if name.startswith("constant.")
    }
    return Graph(facts["inputs"], facts["outputs"], steps, shapes, constants)


def _check_operator(target: str) -> None:
    """Refuse anything but a plain operator on tensors, whoever wrote the file."""
    if target in NUMBERS:
        return
    if not target.startswith("aten."):
        raise ValueError(f"it names {target}, which is not an operator of PyTorch")
    operator_named(target)


def _used(graph: Graph, name: str) -> bool:
    return name in graph.inputs or any(step.output == name or name in step.inputs for step in graph.steps)


def _packed(name: str, value: Tensor) -> dict[str, Tensor]:
    """A tensor as it is, or as survivors and gaps where that takes fewer bytes."""
    if name == "index":
        return {"index.gaps": _gaps(value.numpy())}
    if name == "weight":
        places = value.reshape(-1).nonzero()[:, 0]
        gaps = _gaps(places.numpy())
        size = value.element_size()
        if len(gaps) + size * len(places) < size * value.numel():
            return {"weight.gaps": gaps, "weight.values": value.reshape(-1)[places]}
    return {name: value}


def _gaps(places: np.ndarray) -> Tensor:
    return torch.from_numpy(as_bytes(np.diff(places, prepend=-1) - 1))


def _unpacked(name: str, own: dict[str, Tensor], shape: list[int]) -> Tensor:
    gaps = own.pop(f"{name}.gaps").numpy()
    steps = np.where(gaps == MARKER, MARKER, gaps.astype(np.int64) + 1)
    places = torch.from_numpy(steps.cumsum()[gaps != MARKER] - 1)
    if name == "index":
        return places
    values = own.pop(f"{name}.values")
    weight = torch.zeros(math.prod(shape), dtype=values.dtype)
    weight[places] = values
    return weight.reshape(shape)


def _storable(settings: Any) -> Any:
    """Settings as strict JSON, which has no infinity."""
    if isinstance(settings, float) and math.isinf(settings):
        return {"float": str(settings)}
    if isinstance(settings, Mapping):
        return {key: _storable(value) for key, value in settings.items()}
    return [_storable(value) for value in settings] if isinstance(settings, list | tuple) else settings


def _restored(settings: Any) -> Any:
    if isinstance(settings, Mapping):
        if settings.keys() == {"float"}:
            return float(settings["float"])
        return {key: _restored(value) for key, value in settings.items()}
    return [_restored(value) for value in settings] if isinstance(settings, list) else settings


def _hash(tensors: Mapping[str, Tensor], text: str) -> str:
    return hashlib.sha256(f"{fingerprint(tensors)} {text}".encode()).hexdigest()[:32]
