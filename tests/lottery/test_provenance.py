"""A run says what it was computed on, and a resumed one says what has changed.

What was tried: 24 steps of LeNet-300-100 and of a ResNet-8 (Adam, float32), on an AMD EPYC with AVX2 and torch 2.15.
"other": the weights were not those of a plain run on one thread.

| what                                        | LeNet | ResNet | recorded as  |
|---------------------------------------------|-------|--------|--------------|
| the same again                              | same  | same   |              |
| 2 or 3 threads (OMP_NUM_THREADS)            | other | other  | threads      |
| 2 threads (MKL_NUM_THREADS)                 | other | other  | threads      |
| 2 threads on one core, not on two           | as on two      ||              |
| ATEN_CPU_CAPABILITY=default                 | other | other  | instructions |
| MKL_CBWR=COMPATIBLE (an old processor's)    | other | other  | variables    |
| MKL_CBWR=AVX2                               | same  | same   | variables    |
| MKL_ENABLE_INSTRUCTIONS=SSE4_2 (Intel only) | same  | same   | variables    |
| ONEDNN_MAX_CPU_ISA=SSE41 or AVX             | same  | other  | variables    |
| ONEDNN_DEFAULT_FPMATH_MODE=BF16             | same  | same   | variables    |
| set_float32_matmul_precision medium or high | same  | same   | arithmetic   |
| use_deterministic_algorithms                | same  | same   | arithmetic   |
| backends.mkldnn.enabled = False             | same  | other  | arithmetic   |
| set_flush_denormal                          | same  | same   | arithmetic   |
| set_num_interop_threads(1)                  | same  | same   | not recorded |
"""

import json
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import pytest
import torch
from conftest import Cut, digits, fit, mlp

from lth_lightning.lottery.provenance import processor
from lth_lightning.runs.environment import read_environment
from lth_lightning.runs.run import RunFiles, facts


def recorded(run: Path) -> list[tuple[int, str]]:
    """From which round on, with how many threads."""
    return [(stretch.from_round, stretch.facts["threads"]) for stretch in read_environment(run / "environment.json")]


def cut_in_round_1(run: Path) -> None:
    """7 steps an epoch and 10 a round: the cut comes in the second epoch of round 1."""
    with pytest.raises(RuntimeError, match="cut"):
        fit(mlp(), digits(), run, callbacks=(Cut(19),))


def resume(run: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is said of the environment."""
    caplog.clear()
    fit(mlp(), digits(), run, ckpt_path=run / "checkpoints/last.ckpt")
    return [message for message in caplog.messages if "environment" in message]


def test_a_run_says_what_it_was_computed_on(tmp_path: Path) -> None:
    fit(mlp(), digits(), tmp_path, rounds=0)
    (stretch,) = read_environment(tmp_path / "environment.json")
    assert stretch.from_round == 0
    assert stretch.facts["threads"] == "1"
    assert stretch.facts["device"] == "cpu"
    assert stretch.facts["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert (stretch.facts["torch"], stretch.facts["lightning"]) == (torch.__version__, L.__version__)
    assert facts([RunFiles.read(tmp_path)])["computed on"].startswith("threads 1; processor ")


def test_equal_runs_leave_equal_files(tmp_path: Path) -> None:
    for name in ("one", "other"):
        fit(mlp(), digits(), tmp_path / name, rounds=0)
    one, other = ((tmp_path / name / "environment.json").read_bytes() for name in ("one", "other"))
    assert one == other


def test_a_resume_on_other_threads_says_so_in_one_line_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cut_in_round_1(tmp_path)
    torch.set_num_threads(2)
    assert resume(tmp_path, caplog) == [
        "Resumed in another environment; from round 1 on the last digits may differ: threads was 1, is 2."
    ]
    assert recorded(tmp_path) == [(0, "1"), (1, "2")]
    assert len(RunFiles.read(tmp_path).rows) == 3
    assert facts([RunFiles.read(tmp_path)])["computed on"].startswith("threads 1, from round 1 on 2; ")


def test_a_resume_in_the_same_environment_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cut_in_round_1(tmp_path)
    before = (tmp_path / "environment.json").read_bytes()
    assert resume(tmp_path, caplog) == []
    assert (tmp_path / "environment.json").read_bytes() == before


def test_a_finished_run_that_is_resumed_was_computed_where_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(mlp(), digits(), tmp_path)
    torch.set_num_threads(2)
    assert resume(tmp_path, caplog) == []
    assert recorded(tmp_path) == [(0, "1")]


def test_the_beginning_of_an_older_run_is_not_made_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cut_in_round_1(tmp_path)
    (tmp_path / "environment.json").unlink()
    assert resume(tmp_path, caplog) == []
    beginning, rest = json.loads((tmp_path / "environment.json").read_text())
    assert beginning == {"from_round": 0, "facts": {}}
    assert (rest["from_round"], rest["facts"]["threads"]) == (1, "1")


@pytest.fixture
def _torch_as_it_was() -> Iterator[None]:
    yield
    torch.set_flush_denormal(False)
    torch.backends.mkldnn.matmul.fp32_precision = "none"
    torch.backends.mkldnn.enabled = True


@pytest.mark.usefixtures("_torch_as_it_was")
def test_switches_of_torch_and_its_libraries_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newer of two ways to set a precision makes torch refuse to read it by the older."""
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    torch.backends.mkldnn.enabled = False
    torch.set_flush_denormal(True)
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    fit(mlp(), digits(), tmp_path, rounds=0)
    (stretch,) = read_environment(tmp_path / "environment.json")
    assert stretch.facts["arithmetic"] == ("float32 products bf16, deterministic False, oneDNN False, denormals False")
    assert stretch.facts["variables"] == "MKL_CBWR=COMPATIBLE"


@pytest.mark.parametrize(
    ("cpuinfo", "said"),
    [
        (
            "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\nmodel\t: 7\n",
            "AMD EPYC, cpu family 25, model 1",
        ),
        (
            "processor\t: 0\nBogoMIPS\t: 243.75\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n\nprocessor\t: 1\n",
            "CPU implementer 0x41, CPU part 0xd40",
        ),
    ],
)
def test_a_processor_is_named_as_linux_names_it(cpuinfo: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert processor(tmp_path / "cpuinfo") == said


def test_a_processor_without_cpuinfo_has_a_name(tmp_path: Path) -> None:
    assert processor(tmp_path / "nothing")
