"""How a network can be built again, in the JSON values that a ticket records."""

import json
from typing import Any

import pytest
import torchvision
from conftest import ForeignModule, mlp
from lightning import LightningModule
from torch import nn

from lth_lightning.models import MLP, VGG, Conv2, Conv4, Conv6, LeNet5, LeNet300, ResNet
from lth_lightning.models.rebuild import recipes, shapes
from lth_lightning.tickets.rebuilding import built

SMALL: dict[str, Any] = {"input_shape": (2, 16, 20), "num_classes": 3}


@pytest.mark.parametrize(
    "net",
    [
        MLP([7, 5], **SMALL),
        LeNet300(**SMALL),
        LeNet5(**SMALL),
        Conv2(**SMALL),
        Conv4(**SMALL),
        Conv6(**SMALL),
        ResNet(14, 4, **SMALL),
        VGG(11, **SMALL),
        torchvision.models.resnet18(num_classes=7),
        ForeignModule(),
    ],
    ids=lambda net: type(net).__name__,
)
def test_a_network_is_built_again_from_json(net: nn.Module) -> None:
    (recipe,) = json.loads(json.dumps(recipes(net)))
    again = built(recipe)
    assert type(again) is type(net)
    assert shapes(again) == shapes(net)


class Saved(LightningModule):
    def __init__(self, width: int, activation: str = "relu") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(4, width)


class Options:
    width = 3


class Configured(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.Linear(4, 3)


def test_saved_hyperparameters_and_configurations_are_recorded_if_json_has_them() -> None:
    (recipe,) = recipes(Saved(5, activation="gelu"))
    assert recipe == {"class_path": "test_rebuild.Saved", "init_args": {"width": 5, "activation": "gelu"}}
    (recipe,) = recipes(Configured({"width": 3, "heads": [1, 2]}))
    assert recipe["init_args"] == {"config": {"width": 3, "heads": [1, 2]}}
    assert recipes(Configured(Options())) == []
    assert recipes(nn.Linear(3, 4)) == []
    assert recipes(mlp()) == [], "the network inside has its own recipe"


def test_a_class_that_nobody_can_import_has_no_recipe() -> None:
    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()

    assert recipes(Local()) == []


class Touchy(nn.Module):
    @property
    def hparams(self) -> Any:
        raise RuntimeError("not now")


def test_a_module_whose_attributes_fail_has_no_recipe() -> None:
    """Its ticket is saved all the same."""
    assert recipes(Touchy()) == []


def test_modules_among_the_arguments_are_built_and_other_mappings_left_alone() -> None:
    inner = {"class_path": "torch.nn.Flatten", "init_args": {"start_dim": 2}}
    other = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1}}
    module = built(
        {"class_path": "test_rebuild.Configured", "init_args": {"config": [inner, other, {"class_path": 1}]}}
    )
    assert isinstance(module, Configured)
    assert isinstance(module.config[0], nn.Flatten) and module.config[0].start_dim == 2
    assert module.config[1:] == [other, {"class_path": 1}]
