"""ImageClassifier: a network handed over in Python keeps its weights; on the command line it is drawn."""

import pytest
import torch
from conftest import DIGITS, copies

from lth_lightning import ImageClassifier
from lth_lightning.models import MLP, initialise


def test_a_network_that_is_handed_over_keeps_its_weights() -> None:
    net = MLP([40, 20], **DIGITS)
    before = copies(net)
    assert all(torch.equal(before[name], value) for name, value in copies(ImageClassifier(net).net).items())


@pytest.mark.parametrize("init", ["glorot_normal", "kaiming_normal"])
def test_its_weights_are_drawn_where_that_is_asked_for(init: str) -> None:
    net, drawn = MLP([40, 20], **DIGITS), MLP([40, 20], **DIGITS)
    torch.manual_seed(5)
    initialise(drawn, init)
    torch.manual_seed(5)
    ours = copies(ImageClassifier(net, init=init).net)
    assert all(torch.equal(value, ours[name]) for name, value in copies(drawn).items())
