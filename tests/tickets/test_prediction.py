"""After the ticket is found: its network, built again, takes images as the data set stores them."""

import functools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from conftest import Fit, ForeignData, ForeignModule, copies, digits, fit, mlp, resnet
from PIL import Image
from torch import Tensor, nn

from lth_lightning import ImageClassifier, SettingError, Ticket, TicketError, prunable_weights
from lth_lightning.data.datasets import read_images
from lth_lightning.models import LeNet5, LeNet300
from lth_lightning.tickets.prediction import Normalised, predictions

LETTERS = ["a", "b", "c"]
FACTS = {"mean": [100.0], "std": [50.0], "low": 0, "high": 255}


@pytest.fixture(scope="module", params=[mlp, resnet])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    return fit(request.param(), digits(), folder, rounds=1, train_for="30it")


@pytest.fixture
def ticket(run: Fit) -> Ticket:
    return run.ticket(1)


def test_the_module_takes_raw_images_and_is_as_accurate_as_the_results_say(run: Fit, ticket: Ticket) -> None:
    images, targets, names = read_images("Digits", "data", train=False, download=False)
    module = ticket.to_module()
    assert not module.training
    with torch.no_grad():
        scores = module(images)
        assert torch.equal(scores, run.module.eval()(next(iter(run.trainer.datamodule.test_dataloader()))[0]))
    assert (scores.argmax(1) == targets).float().mean().item() == run.rows[-1].test_acc
    found = ticket.predict(images)
    assert names is not None
    right = [one.label == names[target] for one, target in zip(found, targets.tolist(), strict=True)]
    assert np.mean(right) == pytest.approx(run.rows[-1].test_acc)
    np.testing.assert_allclose([one.probability for one in found], scores.softmax(1).amax(1), rtol=1e-6)


def test_the_weights_before_training_come_on_request(ticket: Ticket) -> None:
    module = ticket.to_module(weights="rewind_point")
    assert isinstance(module, Normalised)
    values = copies(module.net)
    assert all(torch.equal(value, values[name.removeprefix("net.")]) for name, value in ticket.rewind_point.items())
    with pytest.raises(TicketError, match="choose from 'rewind_point', 'trained'"):
        ticket.to_module(weights="final")


def test_building_a_network_changes_no_generator(ticket: Ticket) -> None:
    before = torch.get_rng_state()
    ticket.to_module()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_foreign_module_without_arguments_comes_back_and_takes_what_it_was_trained_on(tmp_path: Path) -> None:
    ticket = fit(ForeignModule(), ForeignData(), tmp_path, rounds=0, train_for="2it").ticket(0)
    module = ticket.to_module()
    assert isinstance(module, ForeignModule)
    assert ticket.trained is not None
    assert torch.equal(module.body[0].weight, ticket.trained["body.0.weight"])
    with pytest.raises(TicketError, match="does not record how its training images were normalised"):
        ticket.predict(np.zeros((1, 8, 8), np.uint8))


class TellingData(ForeignData):
    """Somebody's DataModule that tells what tickets record: here images of raw values around 8, divided by 4."""

    normalisation: ClassVar[dict[str, Any]] = {"mean": [8.0], "std": [4.0], "low": 0, "high": 16}
    input_shape = (1, 8, 8)
    class_names = tuple("abcdefghij")


def test_a_datamodule_of_any_kind_can_tell_how_its_images_were_normalised(tmp_path: Path) -> None:
    ticket = fit(mlp(), TellingData(), tmp_path, rounds=0, train_for="2it").ticket(0)
    module = ticket.to_module()
    assert isinstance(module, Normalised)
    raw = torch.arange(64.0).reshape(1, 1, 8, 8) / 4
    assert torch.equal(module(raw), module.net((raw - 8) / 4))
    assert ticket.predict(raw)[0].label == "abcdefghij"[int(module(raw).argmax())]


class WithArguments(nn.Module):
    """Somebody's network, whose width nothing tells."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layer = nn.Linear(64, features)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1))


def test_a_network_of_unknown_arguments_is_refused_with_the_way_out(tmp_path: Path) -> None:
    module = ImageClassifier(WithArguments(10), input_shape=(1, 8, 8))
    ticket = fit(module, digits(), tmp_path, rounds=0, train_for="2it").ticket(0)
    with pytest.raises(TicketError, match=r'WithArguments, is not recorded.*ticket.apply\(net, weights="trained"\)'):
        ticket.to_module()
    net = WithArguments(10)
    ticket.apply(net, weights="trained")
    facts = ticket.info
    found = predictions(Normalised(net, facts["normalisation"], facts["input_shape"]), np.zeros((3, 8, 8), np.uint8))
    assert len(found) == 3


def saved(net: nn.Module, path: Path, **info: Any) -> Ticket:
    state = copies(net)
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable_weights(net).items()}
    Ticket(masks, state, state, info).save(path)
    return Ticket.load(path)


def test_a_ticket_of_an_earlier_version_loads_and_says_what_it_does_not_record(tmp_path: Path) -> None:
    ticket = saved(LeNet300(), tmp_path / "old", architecture="LeNet300", input_shape=[1, 28, 28])
    with pytest.raises(TicketError, match=r"LeNet300, is not recorded with all its arguments.*ticket.apply"):
        ticket.to_module()
    ticket.apply(LeNet300(), weights="trained")


def test_a_network_that_does_not_fit_any_more_is_refused_with_the_reason(tmp_path: Path) -> None:
    recipe = {"class_path": "lth_lightning.models.LeNet5", "init_args": {"num_classes": 9}}
    ticket = saved(LeNet5(), tmp_path / "other", architecture="LeNet5", network=[recipe])
    with pytest.raises(TicketError, match=r"cannot be built here \(the ticket.*does not fit.*ticket.apply"):
        ticket.to_module()


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        ("os.mkdir", {"path": "made"}),
        ("subprocess.Popen", {"args": ["mkdir", "made"]}),
        ("nowhere.at.all", {}),
        ("torch.nn.Linear", {"in_feature": 3}),
        ("", {}),
    ],
)
def test_a_ticket_calls_only_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, arguments: dict[str, Any]
) -> None:
    """A ticket may come from anywhere."""
    monkeypatch.chdir(tmp_path)
    ticket = saved(nn.Linear(2, 2), tmp_path / "t", network=[{"class_path": path, "init_args": arguments}])
    with pytest.raises(TicketError, match="cannot be built"):
        ticket.to_module()
    assert not (tmp_path / "made").exists()


# Values and sizes


@functools.cache
def brightness() -> Normalised:
    """Scores by brightness alone: `a` is dark, `c` bright; for gray images of 2 x 3 pixels."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([-1.0, 0.0, 1.0])[:, None].expand(3, 6))
        net[1].bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    return Normalised(net, FACTS, (1, 2, 3), LETTERS).eval()


def labels(images: Any, **more: Any) -> str:
    return "".join(one.label for one in predictions(brightness(), images, **more))


THREE = np.stack([np.full((2, 3), value, np.uint8) for value in (0, 100, 200)])


@pytest.mark.parametrize(
    "images",
    [THREE, THREE[:, None], THREE[..., None], torch.from_numpy(THREE), THREE.astype(np.float64), THREE.astype(int)],
)
def test_arrays_of_any_layout_and_type_are_raw_images(images: Any) -> None:
    assert labels(images) == "abc"
    assert labels(images[2]) == "c"


@pytest.mark.parametrize(
    "images",
    [THREE / 255, (THREE - 100.0) / 50, THREE.astype(np.int32) * 257, THREE - 300.0],
    ids=["divided", "normalised", "16 bits", "negative"],
)
def test_values_on_another_scale_are_refused(images: np.ndarray) -> None:
    with pytest.raises(SettingError, match=r"raw values, 0 to 255, got .*Do not divide or normalise"):
        labels(images)


def test_a_size_that_the_network_does_not_take_is_refused_with_the_one_it_takes() -> None:
    with pytest.raises(SettingError, match=r"takes images of shape \(1, 2, 3\).*got an array of shape \(5, 3, 2\)"):
        labels(np.zeros((5, 3, 2), np.uint8))
    with pytest.raises(SettingError, match=r"shape \(images, 1, 2, 3\), got \(3, 2, 3\)"):
        brightness()(torch.from_numpy(THREE))


def test_a_normalised_network_can_be_exported_without_its_check_of_values() -> None:
    images = torch.from_numpy(THREE)[:, None].float()
    exported = torch.export.export(brightness(), (images,)).module()
    assert torch.equal(exported(images), brightness()(images))


# Files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, image in zip(("one.png", "two.png", "more/three.bmp"), THREE, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_is_classified_in_the_order_of_its_paths(folder: Path) -> None:
    assert [(one.file, one.label) for one in predictions(brightness(), folder)] == [
        ("more/three.bmp", "c"),
        ("one.png", "a"),
        ("two.png", "b"),
    ]
    assert [one.file for one in predictions(brightness(), str(folder / "two.png"))] == ["two.png"]
    np.save(folder / "images.npy", THREE)
    assert [one[:2] for one in predictions(brightness(), folder / "images.npy")] == [("0", "a"), ("1", "b"), ("2", "c")]


def test_colours_become_gray_as_pillow_converts_them_and_gray_becomes_colours(folder: Path) -> None:
    Image.new("RGB", (3, 2), (200, 200, 200)).save(folder / "two.png")
    assert labels(folder) == "cac"
    in_colour = Normalised(nn.Flatten(), {**FACTS, "mean": [100.0] * 3, "std": [50.0] * 3}, (3, 2, 3))
    assert [one.label for one in predictions(in_colour.eval(), folder / "one.png")] == ["0"]


def test_another_size_is_refused_unless_resizing_is_asked_for(folder: Path) -> None:
    Image.fromarray(np.full((20, 30), 200, np.uint8)).save(folder / "two.png")
    with pytest.raises(SettingError, match=r"two.png is 20 x 30 pixels \(height x width\), .* takes 2 x 3.*resize"):
        labels(folder)
    assert labels(folder, resize=True) == "cac"


def test_16_bit_files_keep_their_values(folder: Path) -> None:
    deep = Normalised(brightness().net, {"mean": [30000], "std": [9000], "low": 0, "high": 65535}, (1, 2, 3), LETTERS)
    for size in ((2, 3), (4, 6)):
        Image.fromarray(np.full(size, 60000, np.uint16)).save(folder / "one.png")
        assert [one.label for one in predictions(deep.eval(), folder / "one.png", resize=True)] == ["c"]
    with pytest.raises(SettingError, match="raw values, 0 to 255, got 60000"):
        labels(folder / "one.png", resize=True)


def cut(file: Path) -> None:
    Image.effect_noise((64, 64), 50).save(file)
    file.write_bytes(file.read_bytes()[:2000])


def transparent(file: Path) -> None:
    Image.new("RGBA", (3, 2), (0, 0, 0, 0)).save(file)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda file: file.write_bytes(b"no image"), "one.png is not an image, or is damaged"),
        (cut, "one.png is not an image, or is damaged"),
        (transparent, "one.png has transparent pixels"),
    ],
)
def test_a_file_that_is_no_plain_image_is_refused_by_name(folder: Path, make: Any, words: str) -> None:
    make(folder / "one.png")
    with pytest.raises(SettingError, match=words):
        labels(folder)


def test_nothing_to_classify_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images.npy").write_bytes(b"no array")
    for path, words in (
        (tmp_path / "no", "does not exist"),
        (tmp_path, "holds no image"),
        ("images.npy", "not a .npy"),
    ):
        with pytest.raises(SettingError, match=words):
            labels(tmp_path / path)
