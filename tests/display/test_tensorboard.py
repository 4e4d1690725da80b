"""What TensorBoard is given, read back from the event files; and the picture of what a ticket looks at."""

import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import Cut, Fit, digits, draw_plainly, fit, make_trainer, mlp, weekly
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as ServersAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lth_lightning import LotteryBoard, SettingError, Ticket
from lth_lightning.report.pictures import chosen, input_pictures, kept_per_pixel, looks_figure
from lth_lightning.runs.rows import read_curves
from lth_lightning.trainer.sub_runs import SubRunLogger

ROUNDS = (0, 1, 2)


def run_with_board(folder: Path, *callbacks: Any, draw: bool = False, **more: Any) -> Fit:
    """Two rounds of 10 steps, epochs of 7, so that one evaluation a network comes between two epochs."""
    logger = SubRunLogger(folder, name="tensorboard", version="", default_hp_metric=False)
    settings: dict[str, Any] = {
        "trainer": {"logger": logger},
        "callbacks": (LotteryBoard(draw_at_end=draw), *callbacks),
    }
    torch.manual_seed(3)
    return fit(mlp(), digits(), folder, rounds=2, controls=["random_mask"], control_replicates=2, **settings, **more)


def events(folder: Path, name: str) -> EventAccumulator:
    everything = dict.fromkeys(("scalars", "histograms", "images", "tensors"), 0)
    return EventAccumulator(str(folder / "tensorboard" / name), size_guidance=everything).Reload()


def everything(folder: Path) -> dict[tuple[str, str], list[tuple[int, Any]]]:
    """Each sub-run's and tag's steps and values, read as TensorBoard's server does; of figures, which say how long
    training took, the steps alone."""
    found = {}
    for name in sorted(path.name for path in (folder / "tensorboard").iterdir() if path.is_dir()):
        read = ServersAccumulator(str(folder / "tensorboard" / name), size_guidance={"tensors": 0}).Reload()
        for tag in read.Tags()["tensors"]:
            points = [(event.step, event.tensor_proto.SerializeToString()) for event in read.Tensors(tag)]
            found[name, tag] = [(step, None) for step, _ in points] if tag.startswith("figures/") else points
    return found


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    return run_with_board(tmp_path_factory.mktemp("board"), draw=True)


def test_a_figure_that_fails_ends_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lth_lightning.display.tensorboard.FIRST_DRAWING", 0.0)  # at each round's end
    draw_plainly(monkeypatch)

    class Vandal(L.Callback):
        def on_network_start(self, trainer: L.Trainer, *_: Any) -> None:
            for curve in (tmp_path / "curves").glob("*.csv"):
                curve.write_text("not a curve")

    with pytest.warns(UserWarning, match=r"No figures in TensorBoard for now: .*curves.*csv"):
        run = run_with_board(tmp_path, Vandal(), draw=True)
    assert [row.round for row in run.rows if row.variant == "ticket"] == [0, 1, 2]


def of(run: Fit, name: str) -> EventAccumulator:
    return events(run.lottery.folder.path, name)


def of_round(run: Fit, row: Any) -> EventAccumulator:
    return of(run, f"round {row.round:02d} {100 * row.density:.3g}%")


def name(row: Any) -> str:
    return row.variant + (" #2" if row.replicate else "")


def test_a_round_is_a_sub_run_and_a_network_a_tag(shown: Fit) -> None:
    folders = {path.name for path in (shown.lottery.folder.path / "tensorboard").iterdir()}
    assert folders == {"all rounds", "round 00 100%", "round 01 80%", "round 02 64%"}
    for row in shown.rows:
        points = of_round(shown, row).Scalars(f"test_acc/{name(row)}")
        curve = [one for one in read_curves(shown.lottery.folder.curves) if _same_network(one, row)]
        assert [one.step for one in curve] == [7, 10]
        assert [(one.step, one.value) for one in points] == [(one.step, pytest.approx(one.test_acc)) for one in curve]


def _same_network(one: Any, other: Any) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in ("round", "variant", "replicate"))


def test_hparams_have_a_row_a_round_with_its_density(shown: Fit) -> None:
    rows = []
    for path in (shown.lottery.folder.path / "tensorboard").glob("round *"):
        plugin = of(shown, path.name).PluginTagToContent("hparams")
        assert "_hparams_/session_end_info" in plugin
        content = plugin["_hparams_/session_start_info"]
        facts = HParamsPluginData.FromString(content).session_start_info.hparams
        rows.append(tuple(facts[name].number_value for name in ("round", "density")))
    assert sorted(rows) == sorted({(row.round, row.density) for row in shown.rows})


def test_histograms_hold_the_surviving_weights_alone(shown: Fit) -> None:
    read = of(shown, "all rounds")
    for layer, mask in shown.ticket(2).masks.items():
        points = read.Histograms(f"surviving weights/{layer}/ticket")
        assert [point.step for point in points] == list(ROUNDS)
        survivors = shown.ticket(2).trained[layer][mask]
        last = points[-1].histogram_value
        assert (last.num, sum(last.bucket)) == (len(survivors), len(survivors))
        assert last.sum == pytest.approx(float(survivors.sum()), rel=1e-4)


def test_over_rounds_there_are_points_and_no_curves_that_could_be_smoothed(shown: Fit) -> None:
    for row in shown.rows:
        read = of_round(shown, row)
        for column in ("test_acc", "val_acc", "early_stop_step", "density"):
            (point,) = read.Scalars(f"rounds/{column}/{name(row)}")
            assert (point.step, point.value) == (row.round, pytest.approx(getattr(row, column)))
    for number in ROUNDS:
        layers = {one.layer: one.density for one in shown.lottery.layers if one.round == number}
        row = next(row for row in shown.rows if row.round == number)
        for layer, density in layers.items():
            (point,) = of_round(shown, row).Scalars(f"layers/{layer}/ticket")
            assert (point.step, point.value) == (number, pytest.approx(density))


def test_figures_and_text_are_there_once_a_round_and_nothing_empty(shown: Fit) -> None:
    read = of(shown, "all rounds")
    figures = [read.Images(f"figures/{name}") for name in ("accuracy", "early_stop", "layers", "looks")]
    assert [[one.step for one in points] for points in figures] == [[2]] * 4  # so short a fit is drawn at its end
    assert [one.step for one in read.Tensors("results/text_summary")] == list(ROUNDS)
    (settings,) = read.Tensors("settings/text_summary")
    assert b"lottery.rounds | 2" in settings.tensor_proto.string_val[0]
    assert not any("hp_metric" in tag or tag == "epoch" for _, tag in everything(shown.lottery.folder.path))


@pytest.mark.parametrize("batch", [pytest.param(8, marks=weekly), 38, 68])
def test_a_resumed_run_shows_what_one_that_nobody_cut_shows(
    shown: Fit, batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 70 steps in 7 networks: cut in the second epoch of the first, of one within a round, and of the last."""
    whole = everything(shown.lottery.folder.path)
    with pytest.raises(RuntimeError, match="cut"):
        run_with_board(tmp_path, Cut(batch))
    go_on(tmp_path, monkeypatch)
    ours = everything(tmp_path)
    assert ours.keys() == {(name, tag) for name, tag in whole if not tag.startswith("figures/")}
    for key in ours:
        assert ours[key] == whole[key], key


def test_a_finished_run_that_is_resumed_shows_nothing_twice(shown: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shown.lottery.folder.path
    before = everything(folder)
    draw_plainly(monkeypatch)
    go_on(folder, monkeypatch, draw=True)
    assert everything(folder) == before


def go_on(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    now = time.time  # event files are read in the order of the seconds that they were opened in
    monkeypatch.setattr(time, "time", lambda: now() + 60)
    run_with_board(folder, ckpt_path=folder / "checkpoints" / "last.ckpt", **settings)


def test_a_board_without_a_lottery_or_a_logger(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="LotteryTicket"):
        make_trainer(max_epochs=1, callbacks=[LotteryBoard()]).fit(mlp(), digits())
    fit(mlp(), digits(), tmp_path, rounds=0, callbacks=(LotteryBoard(),))
    assert not list(tmp_path.rglob("*tfevents*"))


# ------------------------------------------------------------------------ what the ticket looks at


def test_kept_per_pixel_counts_over_units_and_channels() -> None:
    mask = torch.rand(5, 2 * 3 * 4, generator=torch.Generator().manual_seed(0)) < 0.4
    counts = np.zeros((3, 4))
    for unit in range(5):
        for channel in range(2):
            for y in range(3):
                for x in range(4):
                    counts[y, x] += bool(mask[unit, channel * 12 + y * 4 + x])
    assert np.array_equal(kept_per_pixel(mask.numpy(), (2, 3, 4)), counts)


def test_few_rounds_are_chosen_evenly_the_first_and_the_last_among_them() -> None:
    assert chosen([1, 2, 3]) == [1, 2, 3]
    assert chosen(list(range(1, 23))) == [1, 4, 7, 10, 13, 16, 19, 22]


def test_pictures_come_from_the_tickets_and_only_for_pixels(shown: Fit) -> None:
    folder, layers = shown.lottery.folder, shown.lottery.layers
    pictures = input_pictures(folder.path, layers)
    assert list(pictures) == [1, 2]
    for number, picture in pictures.items():
        mask = Ticket.load(folder.ticket(number)).masks[layers[0].layer]
        assert picture.shape == (8, 8) and picture.sum() == int(mask.sum())
    second = [row for row in layers if row.layer != layers[0].layer]  # hidden units are no pixels
    assert input_pictures(folder.path, second) == {}


def test_each_panel_says_its_round_and_density_and_has_a_scale(tmp_path: Path) -> None:
    figure = looks_figure({1: np.full((8, 8), 6), 2: np.eye(8)}, {0: 1.0, 1: 0.8, 2: 0.0345}, "MLP on Digits")
    assert figure is not None
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in panels] == ["round 1, 80 % kept", "round 2, 3.45 % kept"]
    assert [axes.images[0].get_clim() for axes in panels] == [(0, 6), (0, 1)]
    assert "weights kept per pixel" in figure.get_suptitle()
    figure.savefig(tmp_path / "looks.png")
    shades = imread(tmp_path / "looks.png")[..., :3]
    assert np.ptp(shades, axis=2).max() == 0, "reads the same in black and white"
    assert looks_figure({}, {}, "") is None
