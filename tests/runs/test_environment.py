"""environment.json and what a report says of it."""

from pathlib import Path

import pytest

from lth_lightning import SettingError
from lth_lightning.runs.environment import Stretch, changes, described, read_environment, write_environment

ONE = {"threads": "1", "processor": "AMD EPYC", "torch": "2.15.0", "python": "3.11.7"}
TWO = {**ONE, "threads": "2"}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    stretches = [Stretch(0, ONE), Stretch(3, TWO)]
    write_environment(tmp_path / "environment.json", stretches)
    assert read_environment(tmp_path / "environment.json") == stretches


def test_a_run_of_an_older_version_has_none(tmp_path: Path) -> None:
    assert read_environment(tmp_path / "environment.json") == []


@pytest.mark.parametrize(
    "content", ["", "[1]", '[{"facts": {}}]', '{"from_round": 0}', '[{"from_round": 0, "facts": 1}]']
)
def test_another_content_is_an_error_that_names_the_file(content: str, tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text(content)
    with pytest.raises(SettingError, match=r"environment\.json.*Restore it or remove it"):
        read_environment(tmp_path / "environment.json")


def test_changes_name_both_values() -> None:
    assert changes(ONE, ONE) == ""
    assert changes(ONE, TWO) == "threads was 1, is 2"
    assert changes({"threads": "1"}, {"torch": "2"}) == ("threads was 1, is not recorded; torch was not recorded, is 2")


COMMON = "processor AMD EPYC; torch 2.15.0"


@pytest.mark.parametrize(
    ("environments", "line"),
    [
        ({"a": []}, None),
        ({"a": [Stretch(0, ONE)]}, f"threads 1; {COMMON}"),
        ({"a": [Stretch(0, ONE)], "b": [Stretch(0, ONE)]}, f"threads 1; {COMMON}"),
        ({"a": [Stretch(0, ONE), Stretch(3, TWO)]}, f"threads 1, from round 3 on 2; {COMMON}"),
        (
            {"a": [Stretch(0, ONE)], "b": [Stretch(0, TWO)], "c": [Stretch(0, ONE)]},
            f"threads 1 (a, c) or 2 (b); {COMMON}",
        ),
        (
            {name: [Stretch(0, ONE if name < "e" else TWO)] for name in "abcdef"},
            f"threads 1 (4 runs) or 2 (e, f); {COMMON}",
        ),
        (
            {"a": [Stretch(0, ONE)], "b": [Stretch(0, {**ONE, "python": "3.12.0"})]},
            f"threads 1; {COMMON}; python 3.11.7 (a) or 3.12.0 (b)",
        ),
        ({"a": [Stretch(0, {}), Stretch(2, {"threads": "1"})]}, "threads not recorded, from round 2 on 1"),
        ({"a": [Stretch(0, {"threads": "1"})], "b": []}, "threads 1 (a) or not recorded (b)"),
    ],
)
def test_a_report_says_it_in_one_line(environments: dict[str, list[Stretch]], line: str | None) -> None:
    assert described(list(environments.items())) == line
