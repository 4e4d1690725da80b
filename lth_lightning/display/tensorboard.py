"""LotteryBoard: the pages of TensorBoard beyond the curves that the lottery itself writes."""

import struct
import time
from collections.abc import Mapping

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import Summary, hparams

from lth_lightning.errors import SettingError
from lth_lightning.lottery.callback import LotteryTicket
from lth_lightning.lottery.plan import TrainedNetwork
from lth_lightning.lottery.provenance import architecture, data_name
from lth_lightning.lottery.summary_curves import WEIGHTS
from lth_lightning.report.aggregate import PooledRuns
from lth_lightning.report.charts import charts_of
from lth_lightning.report.conclusion import summary
from lth_lightning.report.tables import results_table
from lth_lightning.report.writer import figures_of
from lth_lightning.runs.folder import CONFIG
from lth_lightning.runs.rows import Row, in_order
from lth_lightning.runs.run import RunFiles
from lth_lightning.runs.score import ACCURACY
from lth_lightning.trainer.sub_runs import network_writer

BINS = 60  # of a histogram; TensorBoard shows 30
DRAWING_SHARE = 1 / 30  # of the fit's time, at most
FIRST_DRAWING = 3.0  # seconds, including the import of matplotlib


class LotteryBoard(L.Callback):
    """Fills the pages of TensorBoard beyond the curves of `LotteryTicket`: `callbacks=[lottery, LotteryBoard()]`.

    - time series: the report's figures, and a point per round for the density of each layer;
    - hparams: a row per round, with the last values of its networks' curves;
    - histograms: each layer's surviving weights at the end of training, over rounds;
    - images: the report's figures, at the end of a round, as long as drawing takes at most 1/30 of the time;
    - text: settings, results and a conclusion.

    A resumed run writes nothing twice. Without a TensorBoardLogger nothing is written.

    Args:
        draw_at_end: whether to draw at the end of the fit, even of a short one.

    Raises:
        SettingError: when a fit starts, if the Trainer has no `LotteryTicket`.
    """

    def __init__(self, draw_at_end: bool = True) -> None:
        self.draw_at_end = draw_at_end

    # ------------------------------------------------------------------------ when

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        lottery = next((one for one in trainer.callbacks if isinstance(one, LotteryTicket)), None)
        if lottery is None:
            raise SettingError("trainer.callbacks: a LotteryBoard needs a LotteryTicket; add one.")
        self._lottery, plan = lottery, lottery.plan
        self._write_from(plan[min(lottery.position, len(plan) - 1)].round)
        self._facts = {
            "seed": lottery.seed_in_use,
            "network": architecture(pl_module),
            "data": data_name(trainer),
        }
        self._told_rows = self._drawn_rows = 0
        self._drawn_at, self._drawing_took = time.monotonic(), FIRST_DRAWING

    def _write_from(self, round: int) -> None:
        """Write from a round on. Text and figures over all rounds use the round as step, and an incomplete round is
        written again."""
        self._void_from = round
        self._settings_missing = round == self._lottery.plan[0].round

    def on_network_start(
        self, trainer: L.Trainer, module: L.LightningModule, network: TrainedNetwork, density: float
    ) -> None:
        """Start the round's row of hyperparameters."""
        if (writer := network_writer(trainer)) is None or not self._lottery.experiment.begins_round:
            return
        _, start, _ = hparams({"round": network.round, "density": density, **self._facts}, {})
        _add(writer, start)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._tell_settings()

    def on_network_end(self, trainer: L.Trainer, module: L.LightningModule, row: Row) -> None:
        """Add the network's histograms, and at the end of a round the results of all rounds."""
        if row.replicate == 0:  # of several replicates only the first
            self._add_weights(trainer, row)
        plan, following = self._lottery.plan, self._lottery.position + 1
        # Otherwise each round ends when all controls have been gathered.
        if self._lottery.is_whole and (following == len(plan) or plan[following].round != row.round):
            self._end_round(trainer, row.round)
            if time.monotonic() - self._drawn_at > self._drawing_took / DRAWING_SHARE:
                self.draw()

    def on_controls_gathered(self, trainer: L.Trainer, module: L.LightningModule, round: int) -> None:
        """End a round after controls that were trained apart, in the order of rounds."""
        if round < self._void_from:
            self._write_from(round)
        self._tell_settings()
        self._end_round(trainer, round)

    def _end_round(self, trainer: L.Trainer, round: int) -> None:
        """End the round's row of hyperparameters, and write the results up to it."""
        if (writer := network_writer(trainer)) is not None:
            _, _, end = hparams({}, {})
            _add(writer, end)
        self._tell_results(round)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what is new since the last full round; for a run that had already ended, rewrite its last round."""
        done = len(self._lottery.results)
        if done and self._lottery.is_whole and self._lottery.results[-1].round >= self._void_from:
            if self._told_rows < done:
                self._tell_settings()
                self._tell_results(self._lottery.results[-1].round)
            if self.draw_at_end and self._drawn_rows < done:
                self.draw()

    # ------------------------------------------------------------------------ what

    def _writer(self) -> SummaryWriter | None:
        """The writer for text and figures over all rounds; None if nothing is to be written."""
        curves = self._lottery.summary
        return curves.of_all(self._void_from) if curves else None

    def _tell_settings(self) -> None:
        """Write config.yaml as text if the command line has made one, else the lottery's own settings."""
        if not self._settings_missing or (writer := self._writer()) is None:
            return
        config = self._lottery.folder.path / CONFIG
        if config.is_file():
            text = f"```yaml\n{config.read_text(encoding='utf-8')}\n```"
        else:
            lines = [f"| {name} | {value} |" for name, value in self._lottery.settings.items()]
            text = "\n".join(["| setting | |", "| --- | --- |", *lines])
        writer.add_text("settings", text, self._lottery.plan[0].round)
        _add(writer, self._columns())
        writer.flush()
        self._settings_missing = False

    def _columns(self) -> Summary:
        """What the hparams page shows of each round: its facts, and for each network of a round its score and stop."""
        names = dict.fromkeys(network.name for network in self._lottery.plan)
        score = (self._lottery.score or ACCURACY).columns[1]
        figures = [f"rounds/{column}/{name}" for column in (score, "early_stop_step") for name in names]
        columns, _, _ = hparams({"round": 0, "density": 1.0, **self._facts}, dict.fromkeys(figures, 0.0))
        return columns

    def _tell_results(self, until: int) -> None:
        """Write the results table up to a round, and its conclusion."""
        if (writer := self._writer()) is None:
            return
        rows = [row for row in in_order(self._lottery.results) if row.round <= until]
        experiment = PooledRuns([RunFiles(self._lottery.folder.path, rows, given_score=self._lottery.score)])
        writer.add_text("results", f"{summary(experiment)}\n\n{results_table(experiment).markdown()}", rows[-1].round)
        writer.flush()
        self._told_rows = len(rows)

    def _add_weights(self, trainer: L.Trainer, row: Row) -> None:
        """Write each layer's surviving weights, and for a ticket its density."""
        masks, writer, of_round = self._lottery.masks_in_force, self._writer(), network_writer(trainer)
        if writer is None or of_round is None:
            return
        for name, weight in self._lottery.experiment.weights.items():
            survivors = weight.detach()[masks[name].to(weight.device)]
            if len(survivors):  # pruning may remove a layer's last weight
                values = survivors.float().cpu().numpy()
                writer.add_histogram(f"{WEIGHTS}/{name}/{row.variant}", values, row.round, bins=BINS)
            if row.variant == "ticket":
                of_round.add_scalar(f"layers/{name}/ticket", len(survivors) / weight.numel(), row.round)
        writer.flush()

    def draw(self) -> None:
        """Draw the report's figures from the run's files, at the size of a card; also works after the fit."""
        if self._writer() is None:
            return
        start = time.monotonic()
        from lth_lightning.report.figures import image_bytes  # matplotlib is slow to import

        try:
            experiment = PooledRuns([RunFiles.read(self._lottery.folder.path)])
            figures = figures_of(experiment, charts_of(experiment), card=True)
            pictures = {name: image_bytes(figure, "png") for name, figure in figures.items()}
        except Exception as error:  # any: a failed picture must not end hours of training
            rank_zero_warn(f"No figures in TensorBoard for now: {error}")
            pictures = {}
        self._show(pictures)
        self._drawn_rows, self._drawn_at = len(self._lottery.results), time.monotonic()
        self._drawing_took = self._drawn_at - start

    def _show(self, pictures: Mapping[str, bytes]) -> None:
        """Put pictures on the images page, at the last round with a result.

        Args:
            pictures: the contents of PNG files by name.
        """
        if (writer := self._writer()) is None:
            return
        for name, png in pictures.items():
            _add(writer, image(f"figures/{name}", png), self._lottery.results[-1].round)
        writer.flush()

    def close(self) -> None:
        """Close the writers that `draw` opened after the fit."""
        if self._lottery.summary is not None:
            self._lottery.summary.close()


def image(tag: str, png: bytes) -> Summary:
    """A PNG file as an image summary of TensorBoard; its first chunk holds the size."""
    width, height = struct.unpack(">II", png[16:24])
    content = Summary.Image(encoded_image_string=png, width=width, height=height, colorspace=4)
    return Summary(value=[Summary.Value(tag=tag, image=content)])


def _add(writer: SummaryWriter, content: Summary, step: int | None = None) -> None:
    writer._get_file_writer().add_summary(content, step)
