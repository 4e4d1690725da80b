"""Import paths in the config.yaml of earlier runs lead to today's classes, and each class has one path.

Tried: what could stand in a config of the layout with sixty modules in one folder (version 0.1.0, November 2026).
"""

from pydoc import locate

import pytest

from lth_lightning.runs.class_paths import named_as_today

OLD = {
    "lth_lightning.pruning.Magnitude": "lth_lightning.Magnitude",
    "lth_lightning.pruning.MagnitudeIncrease": "lth_lightning.MagnitudeIncrease",
    "lth_lightning.pruning.Movement": "lth_lightning.Movement",
    "lth_lightning.pruning.Random": "lth_lightning.Random",
    "lth_lightning.saliency.SNIP": "lth_lightning.SNIP",
    "lth_lightning.saliency.GraSP": "lth_lightning.GraSP",
    "lth_lightning.saliency.SynFlow": "lth_lightning.SynFlow",
    "lth_lightning.masks.prunable_weights": "lth_lightning.prunable_weights",
    "lth_lightning.board.LotteryBoard": "lth_lightning.LotteryBoard",
    "lth_lightning.progress.LotteryProgress": "lth_lightning.LotteryProgress",
    "lth_lightning.module.ImageClassifier": "lth_lightning.ImageClassifier",
    "lth_lightning.data.ImageDataModule": "lth_lightning.ImageDataModule",
    "lth_lightning.lottery.LotteryTicket": "lth_lightning.LotteryTicket",
    "lth_lightning.tensorboard.SubRunLogger": "lth_lightning.trainer.sub_runs.SubRunLogger",
    "lth_lightning.datasets.Digits": "lth_lightning.data.datasets.Digits",
    "lth_lightning.models.mlp.MLP": "lth_lightning.models.MLP",
    "lth_lightning.models.lenet.LeNet300": "lth_lightning.models.LeNet300",
    "lth_lightning.models.resnet.ResNet": "lth_lightning.models.ResNet",
}
TODAY = [
    "lth_lightning.Magnitude",
    "lth_lightning.models.LeNet300",
    "lth_lightning.data.datasets.Digits",
    "lth_lightning.models.initialise.initialise",
]
NOT_OURS = [
    "torch.optim.Adam",
    "my.lth_lightning.pruning.Random",
    "runs/lth_lightning.pruning.Random/0",
    "lth_lightning",
    "not_lth_lightning.saliency.SNIP",
]


@pytest.mark.parametrize("old", OLD)
def test_an_old_path_leads_to_todays(old: str) -> None:
    assert named_as_today(old) == OLD[old]
    found = locate(OLD[old])
    assert found is not None and found.__name__ == old.rpartition(".")[2]
    assert named_as_today(f"{found.__module__}.{found.__name__}") == OLD[old]


@pytest.mark.parametrize("text", [*TODAY, *NOT_OURS])
def test_what_needs_no_change_stays(text: str) -> None:
    assert named_as_today(text) == text


def test_texts_of_many_settings_change_only_in_paths() -> None:
    config = "a: {class_path: lth_lightning.saliency.SNIP, init_args: {batches: 2}}  # lth_lightning.SNIP\nb: 'x'\n"
    assert named_as_today(config) == config.replace("saliency.", "")
    assert named_as_today('{"class_path": "lth_lightning.board.LotteryBoard"}') == (
        '{"class_path": "lth_lightning.LotteryBoard"}'
    )
