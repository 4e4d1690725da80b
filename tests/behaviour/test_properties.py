"""What must hold whatever the input: drawn widely, against NumPy, fractions and plain Python."""

import json
import math
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import astuple, fields
from fnmatch import fnmatchcase
from fractions import Fraction
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import THOROUGH
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lth_lightning import Criterion, Evidence, MaskHooks, Pruning, SettingError, Ticket, TicketError
from lth_lightning.data.loader import TensorLoader, crop_and_flip, rank_share
from lth_lightning.lottery.plan import CONTROLS, Length, TrainedNetwork, plan_networks
from lth_lightning.pruning.masks import Masks, dense_masks, density, masked, shuffled
from lth_lightning.pruning.state import State, fingerprint
from lth_lightning.runs.rows import VARIANTS, LayerRow, Row, read_layers, read_rows, write_layers, write_rows
from lth_lightning.runs.settings import MAY_DIFFER, check_same
from lth_lightning.seeding import derive_seed, generators, restore_generators

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DTYPES = (*FLOATS, torch.int64, torch.int16, torch.uint8, torch.bool)
ODD = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-310, -1e-40, 6e-8, 1e38, 1.0]
SEEDS = st.integers(0, 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def examples(count: int) -> settings:
    """A third of `count` in the usual run."""
    return settings(max_examples=count if THOROUGH else count // 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("properties")


def outcome(call: Callable[[], Any], refusal: type[SettingError] = SettingError) -> tuple[Any, str]:
    """What `call` returns, or what its refusal says; another exception passes."""
    try:
        return call(), ""
    except refusal as error:
        return None, str(error)


def bits(value: Tensor) -> bytes:
    """The bytes of the entries, in the order of positions, whatever the memory's order."""
    return (
        torch.empty(value.shape, dtype=value.dtype).copy_(value.detach()).view(-1).view(torch.uint8).numpy().tobytes()
    )


def same_bits(ours: State, theirs: State) -> bool:
    return {n: (v.dtype, v.shape, bits(v)) for n, v in ours.items()} == {
        n: (v.dtype, v.shape, bits(v)) for n, v in theirs.items()
    }


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Normal numbers, and among them zeros of either sign, infinite, NaN and subnormal ones."""
    generator = np.random.default_rng(seed)
    values = np.where(generator.random(shape) < 0.3, generator.choice(ODD, shape), generator.normal(size=shape))
    if not dtype.is_floating_point:
        values = generator.integers(0, 100, shape)
    return torch.tensor(values).to(dtype)


def some(shape: tuple[int, ...], kept: float, seed: int) -> Tensor:
    return torch.tensor(np.random.default_rng(seed).random(shape) < kept)


def laid_out(value: Tensor, layout: str) -> Tensor:
    """The same entries, otherwise in memory."""
    if layout == "strided":
        return torch.stack([value, torch.full_like(value, 7.0)], dim=-1)[..., 0]
    if layout == "transposed":
        return value.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "channels_last" and value.dim() == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value


SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)
LAYOUTS = st.sampled_from(["contiguous", "strided", "transposed", "channels_last"])
KEPT = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])

# ------------------------------------------------------------------------------------- masks


@examples(150)
@given(SHAPES, st.sampled_from(FLOATS), LAYOUTS, LAYOUTS, KEPT, SEEDS)
def test_masked_is_the_state_with_plus_0_where_the_mask_prunes(
    shape: tuple[int, ...], dtype: torch.dtype, layout: str, mask_layout: str, kept: float, seed: int
) -> None:
    value, mask = laid_out(numbers(shape, dtype, seed), layout), laid_out(some(shape, kept, seed), mask_layout)
    before, width = bits(value), dtype.itemsize
    expected = np.frombuffer(before, np.uint8).reshape(-1, width) * mask.contiguous().numpy().reshape(-1, 1)
    out = masked({"w": value, "b": value}, {"w": mask})
    assert bits(out["w"]) == expected.astype(np.uint8).tobytes()
    assert bits(out["b"]) == before == bits(value)
    out["b"].fill_(3.0)
    assert bits(value) == before, "copies, not references"


@examples(100)
@given(st.dictionaries(TEXT, st.tuples(SHAPES, KEPT), min_size=1, max_size=5), SEEDS, st.randoms())
def test_shuffled_hangs_on_the_generator_names_and_sizes_alone(
    layers: dict[str, tuple[tuple[int, ...], float]], seed: int, order: random.Random
) -> None:
    masks = {name: some(shape, kept, seed) for name, (shape, kept) in layers.items()}
    names = order.sample(list(masks), len(masks))
    torch.manual_seed(order.randrange(2**60))
    ours = shuffled(masks, torch.Generator().manual_seed(seed))
    again = shuffled({name: masks[name] for name in names}, torch.Generator().manual_seed(seed))
    places = shuffled(
        {name: torch.arange(mask.numel()).view(mask.shape) for name, mask in masks.items()},
        torch.Generator().manual_seed(seed),
    )
    assert list(ours) == list(masks) and list(again) == names
    for name, mask in masks.items():
        assert sorted(places[name].flatten().tolist()) == list(range(mask.numel()))
        np.testing.assert_array_equal(ours[name].numpy(), mask.numpy().reshape(-1)[places[name].numpy()])
        assert torch.equal(ours[name], again[name])


@st.composite
def small_states(draw: st.DrawFn) -> State:
    """Tensors of few types, shapes and bytes, so that two draws are often alike, and often in all but one thing."""
    state = {}
    for name in draw(st.lists(st.sampled_from(["a", "a.b", "b", "ä"]), unique=True, max_size=3)):
        dtype = draw(st.sampled_from([torch.float32, torch.int32, torch.bfloat16, torch.int16, torch.bool]))
        shape = draw(st.sampled_from([(), (1,), (2,), (1, 2), (2, 1), (0,), (0, 2)]))
        size = dtype.itemsize * math.prod(shape)
        entry = st.sampled_from([0, 1]) if dtype == torch.bool else st.sampled_from([0, 1, 0x80, 0x7F, 0xC0, 0xFF])
        raw = bytes(draw(st.lists(entry, min_size=size, max_size=size)))
        state[name] = torch.frombuffer(bytearray(raw), dtype=dtype).view(shape) if raw else torch.empty(shape).to(dtype)
    return state


def content(state: State) -> dict[str, Any]:
    return {name: (str(value.dtype), tuple(value.shape), bits(value)) for name, value in state.items()}


@st.composite
def nearly_equal_states(draw: st.DrawFn) -> tuple[State, State]:
    one = draw(small_states())
    other = {name: value.clone() for name, value in reversed(one.items())}
    for name in draw(st.sets(st.sampled_from(sorted(one)), max_size=1)) if one else ():
        value = other.pop(name)
        kind = draw(st.sampled_from(["bit", "name", "shape", "dtype", "gone"]))
        if kind == "bit" and value.numel() and value.dtype != torch.bool:
            raw = bytearray(bits(value))
            raw[draw(st.integers(0, len(raw) - 1))] ^= 1 << draw(st.integers(0, 7))
            other[name] = torch.frombuffer(raw, dtype=value.dtype).view(value.shape)
        elif kind == "shape":
            other[name] = value[None]
        elif kind == "dtype" and value.element_size() == 4:
            other[name] = value.view(torch.float32 if value.dtype == torch.int32 else torch.int32)
        elif kind != "gone":
            other[f"{name}." if kind == "name" else name] = value
    return one, other


@examples(300)
@given(st.one_of(nearly_equal_states(), st.tuples(small_states(), small_states())))
def test_fingerprints_are_equal_exactly_if_all_bits_are(pair: tuple[State, State]) -> None:
    one, other = pair
    assert (fingerprint(one) == fingerprint(other)) == (content(one) == content(other))
    strided = {name: laid_out(value, "strided") if value.numel() else value for name, value in one.items()}
    assert fingerprint(strided) == fingerprint(one)


class Drift(torch.optim.Optimizer):
    """Moves every weight, whatever its gradient."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                weight.sub_(group["lr"])


OPTIMIZERS: list[Callable[[Any], torch.optim.Optimizer]] = [
    lambda p: torch.optim.SGD(p, lr=0.1),
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    lambda p: Drift(p, lr=0.01),
]


@st.composite
def weights_and_masks(draw: st.DrawFn) -> tuple[State, Masks]:
    weights, masks = {}, {}
    for i in range(draw(st.integers(1, 4))):
        shape, seed = draw(SHAPES), draw(SEEDS)
        masks[f"w{i}"] = laid_out(some(shape, draw(KEPT), seed), draw(LAYOUTS))
        weights[f"w{i}"] = laid_out(numbers(shape, draw(st.sampled_from(FLOATS)), seed), draw(LAYOUTS))
    return weights, masks


@examples(150)
@given(weights_and_masks(), st.data())
def test_steps_under_a_mask_are_those_of_a_network_whose_gradients_are_zeroed_by_hand(
    drawn: tuple[State, Masks], data: st.DataObject
) -> None:
    """Bit for bit where weights are kept; +0.0 where they are pruned, in weights and gradients, and 0 in state."""
    start, masks = drawn
    ours, theirs = ({name: nn.Parameter(value.clone()) for name, value in start.items()} for _ in range(2))
    owners = data.draw(
        st.lists(
            st.tuples(st.sampled_from(OPTIMIZERS), st.sets(st.sampled_from(list(start)), min_size=1)),
            min_size=1,
            max_size=3,
        )
    )
    cut = data.draw(st.integers(0, 3))

    def optimizers(weights: dict[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
        grouped = ([sorted(names)[:cut], sorted(names)[cut:]] for _, names in owners)
        groups = ([{"params": [weights[n] for n in part], "lr": 0.01 * (i + 1)} for i, part in enumerate(parts) if part]
                  for parts in grouped)  # fmt: skip
        return [make(group) for (make, _), group in zip(owners, groups, strict=True)]

    our_optimizers, their_optimizers = optimizers(ours), optimizers(theirs)
    hooks = MaskHooks(ours, our_optimizers)
    hooks.enforce(masks)
    zero_by_hand(theirs, masks)
    for seed in data.draw(st.lists(SEEDS, min_size=1, max_size=3)):
        for weights in (ours, theirs):
            for weight in weights.values():
                weight.grad = None
                for half in range(2):  # accumulated over two batches
                    gradient = numbers(tuple(weight.shape), weight.dtype, seed + half)
                    torch.autograd.backward([weight], [laid_out(gradient, "strided" if half else "contiguous")])
        zero_by_hand({name: weight.grad for name, weight in theirs.items()}, masks)
        for our, their in zip(our_optimizers, their_optimizers, strict=True):
            our.step()
            their.step()
            zero_by_hand(theirs, masks)
            assert same_bits(ours, theirs)
        assert same_bits({n: w.grad for n, w in ours.items()}, {n: w.grad for n, w in theirs.items()})
        for our, their in zip(our_optimizers, their_optimizers, strict=True):
            for name in ours:
                state, expected = our.state[ours[name]], their.state[theirs[name]]
                entries = {k: v for k, v in state.items() if torch.is_tensor(v) and v.shape == ours[name].shape}
                wanted = {key: expected[key].clone() for key in entries}
                # Of float16 the ε of 1e-8 is 0, and RMSprop's momentum by hand 0 / 0; Rprop's step sizes are rates.
                for key in wanted.keys() - {"step", "step_size"}:
                    zero_by_hand({name: wanted[key]}, masks)
                    assert not entries[key][~masks[name]].any()
                assert same_bits(entries, wanted)


@torch.no_grad()
def zero_by_hand(values: Any, masks: Masks) -> None:
    for name, value in values.items():
        value[~masks[name]] = 0.0


# ------------------------------------------------------------------------------------- pruning

RATES = st.one_of(
    st.sampled_from([0.0, 0.1, 0.2, 0.29, 0.1 + 0.2, 1 / 3, 0.57, 0.999999, 1e-9, np.float64(0.58), np.float64(0.07)]),
    st.integers(1, 99).map(lambda n: n / 100),
    st.floats(0, 1, exclude_max=True),
)
GLOBS = ["*", "net.*", "*.conv?", "*.output", "net.fc"]
NAMES = ["net.conv1", "net.conv2", "net.fc", "net.output", "head"]


@st.composite
def plans(draw: st.DrawFn) -> tuple[Pruning, dict[str, int], int]:
    """Settings, layer sizes and a number of rounds."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    sizes = {
        name: draw(st.one_of(st.integers(1, 4), st.integers(1, 90), st.sampled_from([50, 100, 200]))) for name in names
    }
    globs = [glob for glob in GLOBS if any(fnmatchcase(name, glob) for name in names)]
    given = {"scope": draw(st.sampled_from(["layerwise", "global"]))}
    chosen = draw(st.lists(st.sampled_from(globs), max_size=3, unique=True))
    rounds = draw(st.integers(1, 4))
    if draw(st.booleans()):
        rates = draw(st.one_of(st.just([0.2, 0.5]), st.lists(RATES, min_size=1, max_size=3)))
        choice = st.sampled_from(rates)
        pruning = Pruning(rate=draw(choice), rates={glob: draw(choice) for glob in chosen}, **given)
    else:
        density_of = st.one_of(st.integers(1, 99).map(lambda n: n / 100), st.floats(1e-6, 1, exclude_max=True))
        densities = sorted(draw(st.lists(density_of, min_size=rounds, max_size=rounds, unique=True)), reverse=True)
        pruning = Pruning(densities=densities, rates=dict.fromkeys(chosen, 0.0), **given)
    return pruning, sizes, rounds


def exact(number: float) -> Fraction:
    """What the shortest decimal that is this number says."""
    return Fraction(str(float(number)))


def competitors(pruning: Pruning, names: list[str]) -> dict[Any, list[str]]:
    """Names by what they are ranked with: rate (None: the densities' share) and, layer by layer, the name."""
    found: dict[Any, list[str]] = {}
    for name in names:
        matching = [rate for glob, rate in pruning.rates.items() if fnmatchcase(name, glob)]
        rate = matching[0] if matching else None if pruning.densities is not None else pruning.rate
        found.setdefault((rate, name if pruning.scope == "layerwise" else ""), []).append(name)
    return found


def survivors(pruning: Pruning, rate: float | None, size: int, rounds: int) -> list[int]:
    """How many of `size` weights are left after 0, 1, … prunings."""
    left = [size]
    for round in range(rounds):
        if rate is None:
            assert pruning.densities is not None
            left.append(max(1, math.ceil(exact(pruning.densities[round]) * size)))
        else:
            left.append(left[-1] - math.floor(left[-1] * exact(rate)))
    return left


class Given(Criterion):
    """The trained weights themselves are the scores."""

    def scores(self, evidence: Evidence) -> State:
        return dict(evidence.trained)


@examples(200)
@given(plans(), st.booleans(), st.sampled_from(FLOATS), SEEDS)
@example((Pruning(rate=0.29), {"head": 100}, 2), False, torch.float32, 0)
def test_prunings_take_the_lowest_of_those_that_compete_and_exactly_as_many_as_fractions_say(
    plan: tuple[Pruning, dict[str, int], int], one_shot: bool, dtype: torch.dtype, seed: int
) -> None:
    pruning, sizes, rounds = plan
    pruning = Pruning(**{f.name: getattr(pruning, f.name) for f in fields(pruning)} | {"criterion": Given()})
    generator = np.random.default_rng(seed)
    values = generator.choice([-math.inf, -1.5, -0.0, 0.0, 0.25, 1.0, math.inf, *generator.normal(size=6)], size=1000)
    weights = {name: torch.tensor(generator.choice(values, size)).to(dtype) for name, size in sizes.items()}
    masks = dense_masks(weights)
    groups = competitors(pruning, list(sizes))
    left = {key: survivors(pruning, key[0], sum(sizes[n] for n in names), rounds) for key, names in groups.items()}
    for round in range(1, rounds + 1):
        if not one_shot:
            weights = {name: torch.tensor(generator.choice(values, size)).to(dtype) for name, size in sizes.items()}
        before = dense_masks(weights) if one_shot else masks
        pruned = pruning.prune(before, Evidence(weights, weights, torch.Generator()), round)
        for key, names in groups.items():
            scores = np.concatenate([weights[name].double().numpy() for name in names])
            alive = np.concatenate([before[name].numpy() for name in names])
            ranked = [i for i in np.argsort(scores, kind="stable") if alive[i]]
            expected = alive.copy()
            expected[ranked[: len(ranked) - left[key][round]]] = False
            np.testing.assert_array_equal(np.concatenate([pruned[name].numpy() for name in names]), expected)
        assert not any((pruned[name] & ~masks[name]).any() for name in masks), "pruned once, pruned for good"
        assert pruning.scope == "global" or all(mask.any() for mask in pruned.values())
        masks = pruned
        assert density(masks) == pruning.density_after(sizes, round)
        assert density(masks) == float(Fraction(sum(counts[round] for counts in left.values()), sum(sizes.values())))


@examples(300)
@given(plans())
def test_a_plan_is_refused_exactly_if_a_round_of_it_prunes_nothing(plan: tuple[Pruning, dict[str, int], int]) -> None:
    pruning, sizes, rounds = plan
    groups = competitors(pruning, list(sizes))
    counts = [survivors(pruning, key[0], sum(sizes[n] for n in names), rounds) for key, names in groups.items()]
    totals = [sum(column) for column in zip(*counts, strict=True)]
    idle = [round for round in range(1, rounds + 1) if totals[round] == totals[round - 1]]
    pruning.check(sizes, idle[0] - 1 if idle else rounds)
    if idle:
        with pytest.raises(SettingError, match="nothing to prune" if idle[0] == 1 else f"round {idle[0]}:"):
            pruning.check(sizes, rounds)


# ------------------------------------------------------------------------------------- lengths

UNITS = ("it", "ep", "%")
AMOUNTS = st.one_of(st.integers(0, 10**15 - 1), st.integers(0, 200), st.integers(0, 14).map(lambda n: 10**n)).map(str)


@st.composite
def written_lengths(draw: st.DrawFn) -> tuple[str, str, str, str]:
    """A text, its whole digits, those after the point, and the unit."""
    whole, unit = draw(AMOUNTS), draw(st.sampled_from(UNITS))
    part = draw(st.text("0123456789", min_size=1, max_size=12)) if unit == "%" and draw(st.booleans()) else ""
    space = st.sampled_from(["", " ", "\t", "\n  "])
    return f"{draw(space)}{whole}{'.' if part else ''}{part}{unit}{draw(space)}", whole, part, unit


@examples(300)
@given(written_lengths(), st.integers(1, 10**7), st.integers(1, 10**9))
def test_lengths_are_read_exactly_rounded_down_and_written_as_they_are_read(
    written: tuple[str, str, str, str], per_epoch: int, round_steps: int
) -> None:
    text, whole, part, unit = written
    length = Length.parse(text, "lottery.rewind_to", UNITS)
    ten_to = 10 ** len(part)
    scaled = int(whole + part)  # the amount in units of 1 / ten_to
    expected = {
        "it": int(whole),
        "ep": int(whole) * per_epoch,
        "%": scaled * round_steps // (100 * ten_to),
    }[unit]
    assert length.steps(lambda epochs: epochs * per_epoch, round_steps) == expected
    assert (length.amount * ten_to, length.unit) == (scaled, unit)
    assert Length.parse(str(length), "lottery.rewind_to", UNITS) == length
    assert str(Length.parse(f"{int(whole)}{unit}", "", UNITS)) == f"{int(whole)}{unit}"


NO_LENGTHS = st.one_of(
    st.text(),
    st.text("0123456789.it ep%-+e_,²٣", max_size=8),
    st.integers(16, 6000).map(lambda n: "9" * n + "it"),
    st.one_of(st.none(), st.integers(), st.floats(), st.binary()),
)


@examples(400)
@given(NO_LENGTHS, st.sets(st.sampled_from(UNITS), min_size=1))
def test_what_is_no_length_is_refused_by_the_settings_name(text: Any, units: set[str]) -> None:
    length, refusal = outcome(lambda: Length.parse(text, "lottery.train_for", tuple(units)))
    if length is None:
        assert refusal.startswith("lottery.train_for must be ") and repr(text) in refusal
    else:
        assert length.unit in units and length.amount >= 0
        assert Length.parse(str(length), "", UNITS) == length


# ------------------------------------------------------------------------------------- files

TENSOR_NAMES = st.one_of(
    TEXT, st.sampled_from(["", ".", "a..b.", "mask.w", "rewind_point.w", "__metadata__", "x" * 3000])
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=6,
)


@st.composite
def tickets(draw: st.DrawFn) -> Ticket:
    seed = draw(SEEDS)
    shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
    kinds = draw(st.dictionaries(TENSOR_NAMES, st.tuples(shapes, st.sampled_from(DTYPES)), max_size=5))
    kinds["net.w"] = (draw(SHAPES), draw(st.sampled_from(FLOATS)))
    prunable = [
        name for name, (_, dtype) in kinds.items() if name == "net.w" or (dtype in FLOATS and draw(st.booleans()))
    ]
    masks = {name: some(kinds[name][0], draw(KEPT), seed) for name in prunable}
    states = [
        masked({name: numbers(*kind, seed + i) for name, kind in kinds.items()}, masks) if i < 2 else None
        for i in (0, draw(st.sampled_from([1, 2])))
    ]
    info = draw(st.dictionaries(st.text(), JSON, max_size=3)) | {"round": 3}
    assert states[0] is not None
    states[0] |= dict.fromkeys(["tied", "to"], laid_out(numbers((2, 3), torch.float32, seed), "transposed"))
    return Ticket(masks, states[0], states[1], info)


@examples(120)
@given(tickets())
def test_tickets_of_any_names_shapes_and_types_come_back_bit_for_bit(folder: Path, ticket: Ticket) -> None:
    ticket.save(folder / "ticket")
    back = Ticket.load(folder / "ticket")
    assert same_bits(back.masks, ticket.masks)
    assert same_bits(back.rewind_point, ticket.rewind_point)
    assert (back.trained is None) == (ticket.trained is None)
    assert same_bits(back.trained or {}, ticket.trained or {})
    reserved = dict.fromkeys(("format", "hash", "shapes"))
    assert as_json(back.info | reserved) == as_json(ticket.info | reserved | {"density": ticket.density})


def as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


@pytest.fixture(scope="module")
def whole_ticket(folder: Path) -> Path:
    masks = {"net.w": torch.tensor([[True, False, True]] * 3), "é": torch.ones(100, 0, dtype=torch.bool)}
    state = {"net.w": numbers((3, 3), torch.float32, 1), "é": torch.ones(100, 0), "seen": torch.tensor(3)}
    Ticket(masks, masked(state, masks), None, {"round": 1, "seed": 7, "data": "Digits"}).save(folder / "whole")
    return folder / "whole"


def load_damaged(folder: Path, raw: bytes) -> Ticket | None:
    """The ticket with these bytes; None if it is refused by a TicketError."""
    (folder / "damaged").write_bytes(raw)
    ticket, refusal = outcome(lambda: Ticket.load(folder / "damaged"), TicketError)
    assert ticket or str(folder / "damaged") in refusal
    return ticket


def test_any_changed_byte_of_a_ticket_is_noticed(folder: Path, whole_ticket: Path) -> None:
    """Every byte, in two ways. Only the spaces between header and tensors say nothing, and may be other spaces."""
    whole, draws = whole_ticket.read_bytes(), random.Random(0)
    for position, byte in enumerate(whole):
        for flip in (1 << draws.randrange(8), draws.randrange(1, 256)):
            back = load_damaged(folder, whole[:position] + bytes([byte ^ flip]) + whole[position + 1 :])
            assert back is None or (chr(byte).isspace() and chr(byte ^ flip).isspace()), (position, flip)


def test_a_plausible_change_of_what_a_ticket_says_of_itself_is_noticed(folder: Path, whole_ticket: Path) -> None:
    whole = whole_ticket.read_bytes()
    for old, new in [
        (b'seed\\": 7', b'seed\\": 8'),
        (b"Digits", b"digits"),
        (b"[100, 0]", b"[-00, 0]"),
        (b"[100, 0]", b"[1.0, 0]"),
        (b"[3, 3]", b"[3, 4]"),
    ]:
        assert old in whole
        assert load_damaged(folder, whole.replace(old, new)) is None, new


@examples(150)
@given(st.data())
def test_a_ticket_that_is_cut_or_lengthened_is_refused(folder: Path, whole_ticket: Path, data: st.DataObject) -> None:
    whole = whole_ticket.read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    inserted = data.draw(st.binary(min_size=1, max_size=20))
    assert load_damaged(folder, whole[:position]) is None
    assert load_damaged(folder, whole + inserted) is None
    assert load_damaged(folder, inserted + whole) is None
    assert load_damaged(folder, inserted * data.draw(st.integers(0, 20))) is None


NUMBERS = {int: st.integers(-(10**40), 10**40), float: st.floats(), str: TEXT.filter(lambda text: "\r" not in text)}


def rows_of(kind: type) -> st.SearchStrategy[Any]:
    """Rows of any values that their fields' types allow."""
    values = {}
    for field in fields(kind):
        plain: Any = next(part for part in (int, float, str) if part.__name__ in str(field.type))
        values[field.name] = st.one_of(st.none(), NUMBERS[plain]) if "None" in str(field.type) else NUMBERS[plain]
    if "engine" in values:
        values["engine"] = st.sampled_from((None, "dense", "sparse"))
    return st.builds(kind, **values | {"variant": st.sampled_from(VARIANTS)})


FILES: dict[str, tuple[Any, Any, Any]] = {
    "results": (
        partial(write_rows, score="f1"),
        read_rows,
        Row(0, "ticket", 0, 1.0, 9, 9, 5, 0.5, *[None, 2.5, 0.9] * 2, 0.25, 0.75),
    ),
    "layers": (write_layers, read_layers, LayerRow(0, "ticket", 0, "net.fc", 3, 4, 0.75)),
}


@pytest.mark.parametrize("name", FILES)
def test_any_rows_read_back_equal(name: str, folder: Path) -> None:
    write, read, good = FILES[name]

    @examples(80)
    @given(st.lists(rows_of(type(good)), max_size=4))
    def reads_back(rows: list[Any]) -> None:
        write(folder / name, rows)
        assert [repr(astuple(row)) for row in read(folder / name)] == [repr(astuple(row)) for row in rows]

    reads_back()


@pytest.mark.parametrize("name", FILES)
def test_any_text_is_read_as_rows_or_refused(name: str, folder: Path) -> None:
    write, read, good = FILES[name]
    path = folder / f"{name}.csv"
    write(path, [good] * 2)
    whole = path.read_bytes()
    edits = st.tuples(
        st.integers(0, len(whole)),
        st.integers(0, 20),
        st.one_of(st.binary(max_size=6), st.text(max_size=6).map(lambda t: t.encode("utf-8", "surrogatepass")),
                  st.sampled_from([b"", b",", b'"', b',"', b'\n"', b"\n", b"nan", b"1e999", b"-", b"9" * 5000,
                         b"\xff", b"\0"])),
    )  # fmt: skip

    @examples(200)
    @given(st.lists(edits, max_size=3), st.one_of(st.just(whole), st.binary()))
    def reads_or_refuses(edits: list[tuple[int, int, bytes]], raw: bytes) -> None:
        for start, length, new in edits:
            raw = raw[:start] + new + raw[start + length :]
        path.write_bytes(raw)
        rows, refusal = outcome(lambda: read(path))
        assert str(path) in refusal or rows is not None
        assert all(type(row) is type(good) and row.variant in VARIANTS and type(row.round) is int for row in rows or ())

    reads_or_refuses()


# ------------------------------------------------------------------------------------- chance


WORDS = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12)
PURPOSES = st.tuples(st.integers(0, 2**63 - 1), WORDS, st.lists(st.integers(0, 10**6), max_size=3).map(tuple))


@examples(200)
@given(PURPOSES, PURPOSES)
def test_purposes_share_a_seed_only_if_they_are_the_same(one: Any, other: Any) -> None:
    """Words hold no "/", which joins them, so that ("a", 11) and ("a", 1, 1) stay apart."""
    ours, theirs = (derive_seed(seed, word, *counts) for seed, word, counts in (one, other))
    assert 0 <= ours < 2**63
    assert (ours == theirs) == (one == other)
    seed, word, counts = one
    assert derive_seed(seed, word, 1, 1) != derive_seed(seed, word, 11)
    near = [(seed + 1, word, *counts), (seed, word + "_", *counts), (seed, word, *counts, 0), (seed, word, 1, *counts)]
    assert ours not in [derive_seed(*purpose) for purpose in near]


def test_neighbouring_seeds_rounds_and_epochs_share_nothing() -> None:
    words = ["order", "epoch", "augment", "random_mask", "random_reinit", "pruning", "sampler", "loader"]
    seeds = [derive_seed(s, w, r, e) for s in range(15) for w in words for r in range(12) for e in range(12)]
    assert len(set(seeds)) == len(seeds)
    differing = [(a ^ b).bit_count() for a, b in pairwise(seeds)]
    assert np.mean(differing) == pytest.approx(31.5, abs=0.2)
    set_bits = np.array([[seed >> i & 1 for i in range(63)] for seed in seeds]).mean(axis=0)
    assert np.abs(set_bits - 0.5).max() < 0.02


USES: dict[str, Callable[[], Any]] = {
    "python": random.random,
    "python normal": lambda: random.gauss(0, 1),
    "numpy": lambda: float(np.random.random()),
    "numpy normal": lambda: float(np.random.standard_normal()),
    "numpy integer": lambda: int(np.random.randint(0, 2**31)),
    "torch": lambda: torch.rand(3).tolist(),
    "torch normal": lambda: torch.randn(1).item(),
    "torch normals": lambda: torch.randn(17).tolist(),
    "torch order": lambda: torch.randperm(9).tolist(),
}
DRAWS = st.lists(st.tuples(st.sampled_from(sorted(USES)), st.integers(1, 700)), max_size=4)


@examples(80)
@given(st.integers(0, 2**32 - 1), DRAWS)
def test_generators_go_on_from_where_they_were_kept(folder: Path, seed: int, used: list[tuple[str, int]]) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    for name, times in used:
        for _ in range(times):
            USES[name]()
    torch.save(generators(), folder / "moment.ckpt")
    expected = [USES[name]() for name in [*USES, *USES]]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    restore_generators(torch.load(folder / "moment.ckpt", weights_only=True))
    assert [USES[name]() for name in [*USES, *USES]] == expected


def test_generators_that_an_earlier_version_kept_go_on_too() -> None:
    kept = {**generators(), "python": random.getstate()}
    expected = random.random()
    restore_generators(kept)
    assert random.random() == expected


# ------------------------------------------------------------------------------------- loaders


@examples(300)
@given(st.integers(0, 300), st.integers(1, 20), st.integers(1, 9), st.booleans(), SEEDS)
def test_the_shares_of_all_ranks_are_each_global_batch(
    count: int, batch_size: int, world_size: int, training: bool, seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(count).tolist()
    shares = [
        rank_share(torch.tensor(order, dtype=torch.long), batch_size, rank, world_size, equal_batches=training).tolist()
        for rank in range(world_size)
    ]
    steps = -(-count // (batch_size * world_size))
    for step in range(steps):
        whole = order[step * batch_size * world_size : (step + 1) * batch_size * world_size]
        parts = [share[step * batch_size : (step + 1) * batch_size] for share in shares]
        together = list(chain(*parts))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        if training and len(whole) < world_size:
            assert together[: len(whole)] == whole and set(together) == set(whole)
            assert all(len(part) == 1 for part in parts)
        else:
            assert together == whole, "each example once, in the order of the ranks"
    lengths = [-(-len(share) // batch_size) for share in shares]
    assert max(lengths, default=0) <= steps
    assert not training or set(lengths) == {steps}


@examples(100)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 3), st.booleans(), st.booleans(), st.data())
def test_a_loader_goes_on_exactly_from_any_batch_of_any_epoch(
    count: int, batch_size: int, world_size: int, shuffle: bool, augment: bool, data: st.DataObject
) -> None:
    images = torch.from_numpy(np.random.default_rng(count).integers(0, 256, (count, 2, 3, 5), dtype=np.uint8))
    rank, seed, epoch = data.draw(st.integers(0, world_size - 1)), data.draw(SEEDS), data.draw(st.integers(0, 10**6))

    def make(seed: int) -> TensorLoader:
        return TensorLoader(images, torch.arange(count), batch_size, normalise=(torch.zeros(2), torch.ones(2)),
                            shuffle=shuffle, augment=augment, seed=seed, rank=rank, world_size=world_size)  # fmt: skip

    loader = make(seed)
    loader.seek(epoch)
    first, second = (raw(loader) for _ in range(2))
    assert len(first) == len(loader)
    for position in range(len(first) + 1):
        stopped = make(0)
        stopped.seek(epoch, seed=seed)
        iterator = iter(stopped)
        assert [as_raw(next(iterator)) for _ in range(position)] == first[:position]
        resumed = make(data.draw(SEEDS))
        resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
        rest = first[position:] or second  # nothing left: the next epoch
        assert raw(resumed) == rest
        if position < len(first):
            resumed.seek(epoch, position, seed)
            assert raw(resumed) + raw(resumed) == first[position:] + second


def raw(loader: TensorLoader) -> list[bytes]:
    return [as_raw(batch) for batch in loader]


def as_raw(batch: tuple[Tensor, Tensor]) -> bytes:
    return struct.pack("i", len(batch[0])) + bits(batch[0]) + bits(batch[1])


@examples(150)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    st.integers(0, 5),
    st.sampled_from(DTYPES),
    SEEDS,
)
def test_crops_and_mirrorings_of_any_size_are_numpys(
    shape: tuple[int, int, int, int], padding: int, dtype: torch.dtype, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    images, (batch, _, height, width) = numbers(shape, dtype, seed), shape
    top, left = generator.integers(0, 2 * padding + 1, (2, batch))
    flip = generator.random(batch) < 0.5
    made = crop_and_flip(images, *map(torch.from_numpy, (top, left, flip)), padding=padding)
    for image, y, x, mirrored, result in zip(images, top, left, flip, made, strict=True):
        padded = np.pad(image.double().numpy(), ((0, 0), (padding, padding), (padding, padding)))
        expected = padded[:, y : y + height, x : x + width]
        np.testing.assert_array_equal(result.double().numpy(), expected[:, :, ::-1] if mirrored else expected)
    assert made.dtype == dtype


# ------------------------------------------------------------------------------------- plans


@examples(200)
@given(
    st.lists(st.integers(0, 120), min_size=1, max_size=8, unique=True).map(sorted),
    st.lists(st.sampled_from(CONTROLS), unique=True),
    st.integers(1, 4),
    st.booleans(),
    st.data(),
)
def test_a_plan_has_each_network_once_the_ticket_before_what_is_compared_with_it(
    rounds: list[int], controls: list[str], replicates: int, found: bool, data: st.DataObject
) -> None:
    assume(found or "pruned_only" not in controls)
    possible = [round for round in rounds if round or not found]
    control_rounds = data.draw(st.one_of(st.none(), st.lists(st.sampled_from(possible)) if possible else st.just([])))
    plan = plan_networks(rounds, controls, control_rounds, replicates, found=found)
    chosen = possible if control_rounds is None else control_rounds
    expected = [TrainedNetwork(round, "ticket") for round in rounds]
    for round, control in ((r, c) for r in set(chosen) for c in controls):
        expected += [TrainedNetwork(round, control, i) for i in range(1 if control == "pruned_only" else replicates)]
    assert len(plan) == len(expected) and set(plan) == set(expected)
    assert [network.round for network in plan] == sorted(network.round for network in plan)
    for network in plan:
        ticket = plan.index(TrainedNetwork(network.round, "ticket"))
        if network.variant != "ticket":
            assert (plan.index(network) < ticket) == (network.variant == "pruned_only")
    titles = [network.title(0.8**network.round) for network in plan]
    assert len(set(titles)) == len(titles)


# ------------------------------------------------------------------------------------- same settings

KEYS = st.text("abcdefghij_", min_size=1, max_size=6)
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=3)
    ),
    lambda inner: st.one_of(
        st.dictionaries(KEYS, inner, max_size=3),
        st.fixed_dictionaries(
            {"class_path": st.just("torch.optim.SGD"), "init_args": st.dictionaries(KEYS, inner, max_size=2)}
        ),
        st.lists(
            st.fixed_dictionaries({"class_path": st.just("torch.nn.Linear"), "init_args": inner}),
            min_size=1,
            max_size=2,
        ),
    ),
    max_leaves=8,
)


@st.composite
def run_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Settings of the shape that train.py saves, filled with anything."""
    parts = st.dictionaries(KEYS, VALUES, max_size=3)
    rates = draw(st.dictionaries(st.text(max_size=4), st.floats(0, 0.9), max_size=3))
    callback = st.fixed_dictionaries(
        {"class_path": st.just("lightning.pytorch.callbacks.EarlyStopping"), "init_args": parts}
    )
    return {
        "seed_everything": draw(st.integers()),
        "data": draw(parts),
        "model": draw(parts),
        "trainer": draw(parts) | {"callbacks": draw(st.one_of(st.none(), callback, st.lists(callback, max_size=2)))},
        "lottery": draw(parts) | {"pruning": draw(parts) | {"rates": rates}},
    }


def leaves(value: Any, path: tuple[Any, ...] = (), name: str = "") -> Iterator[tuple[tuple[Any, ...], str]]:
    """Where single values stand, and how a message names them."""
    if path == ("trainer", "callbacks") and isinstance(value, dict):
        name += "[0]"
    objects = isinstance(value, list) and value and all(isinstance(v, dict) and "class_path" in v for v in value)
    if isinstance(value, dict) and value and path[-1:] != ("rates",):
        for key, inner in value.items():
            if key != "class_path":
                yield from leaves(inner, (*path, key), f"{name}.{key}" if name else key)
    elif objects:
        for i, inner in enumerate(value):
            yield from leaves(inner, (*path, i), f"{name}[{i}]")
    elif path[-1:] != ("callbacks",):
        yield path, name


def put(tree: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree[key]
    tree[path[-1]] = value


def reordered(value: Any, order: random.Random) -> Any:
    """The same settings in another order; that of `rates` counts."""
    if isinstance(value, dict):
        return {
            k: value[k] if k == "rates" else reordered(value[k], order) for k in order.sample(list(value), len(value))
        }
    return [reordered(inner, order) for inner in value] if isinstance(value, list) else value


@examples(80)
@given(run_settings(), st.randoms(), st.data())
def test_a_changed_setting_is_named_unless_it_is_one_that_may_differ(
    then: dict[str, Any], order: random.Random, data: st.DataObject
) -> None:
    now = reordered(json.loads(json.dumps(then)), order)
    for pattern in chain(*MAY_DIFFER.values()):
        path = tuple(pattern.replace("*", "anything").split("."))
        if order.random() < 0.7:
            put(now, path, data.draw(st.sampled_from([None, 3, "x", {"y": 1}])))
    if isinstance(callback := now["trainer"]["callbacks"], dict):
        now["trainer"]["callbacks"] = [callback]
    if isinstance(now["trainer"]["callbacks"], list):
        onlooker = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_top_k": 3}}
        now["trainer"]["callbacks"].insert(order.randint(0, len(now["trainer"]["callbacks"])), onlooker)
    check_same(json.dumps(then), json.dumps(now))

    rates = then["lottery"]["pruning"]["rates"]
    if len(rates) > 1:
        put(now, ("lottery", "pruning", "rates"), dict(reversed(rates.items())))
        with pytest.raises(SettingError, match="lottery.pruning.rates was "):
            check_same(json.dumps(then), json.dumps(now))

    now = reordered(json.loads(json.dumps(then)), order)
    path, name = data.draw(st.sampled_from(list(leaves(then))))
    value = data.draw(st.one_of(st.integers(), st.text(max_size=5), st.booleans(), st.floats()))
    before: Any = then
    for key in path:
        before = before[key]
    if isinstance(before, int) and abs(before) < 2**53 and order.random() < 0.5:
        value = float(before)  # 1 is not 1.0, nor is true
    put(now, path, value)
    if json.dumps(before) == json.dumps(value):
        check_same(json.dumps(then), json.dumps(now))
    else:
        with pytest.raises(SettingError) as error:
            check_same(json.dumps(then), json.dumps(now))
        assert f" {name} was " in str(error.value)
        assert str(error.value).count(" was ") == 1
