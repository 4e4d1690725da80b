"""Memory that is freed is kept, so that the next tensor of its size needs no new pages."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from lth_lightning.trainer.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def use():
    for _ in range(3):
        np.ones(16 * 2**20)  # 128 MB
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    return int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone gives large tensors back at once")
def test_a_tensor_of_a_size_that_was_there_before_needs_no_new_pages() -> None:
    usual, kept = faults("usual"), faults("keep")
    assert usual >= 3 * 64  # of 2 MB at least
    assert kept < usual / 10
