"""How much faster is a sweep than its fits one after the other? One command, from the folder that holds configs/:

    uv run python tests/benchmarks/sweep.py                          # the quickstart with both controls, five seeds
    uv run python tests/benchmarks/sweep.py --seeds 2 --rounds 2     # to see that it works

Both as whole processes, imports and Ray's start included: `sweep` as it is started by default, and `fit` with PyTorch's
own number of threads. Then the overhead of a training in a worker that has imported everything: its wall time without
the seconds that networks were trained and evaluated (the column `seconds`), for a run and for a control apart.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from lth_lightning.runs.rows import read_rows

OVERHEAD = """
import gc, json, os, sys, time
from pathlib import Path
from lth_lightning.runs.rows import read_rows
from lth_lightning.sweeps.worker import Worker

flags, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
worker = Worker(os.getcwd(), "lth", threads=1, sees_gpus=False)

def overhead(run, splits=None):
    rows = run / "results.csv"
    before = sum(row.seconds for row in read_rows(rows)) if rows.exists() else 0
    start = time.monotonic()
    outcome = worker.train([*flags, "--run_dir", str(run), "--ckpt_path", "last"], str(run / "log.txt"), splits)
    assert outcome.error is None, outcome
    last = read_rows(rows)
    trained = last[-1].seconds if run.parent.name == "controls" else sum(row.seconds for row in last) - before
    return time.monotonic() - start - trained

overhead(folder / "first")  # which still imports matplotlib
found = {"run": [overhead(folder / f"run_{i}") for i in range(2)]}
split = folder / "split"
overhead(split, splits=sys.executable)  # any file that exists
found["control"] = [overhead(path) for path in sorted((split / "controls").iterdir())]
found["gathering"] = [overhead(split)]
print(json.dumps(found))
gc.unfreeze()  # or extensions tell at the exit what they take for leaks
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--config", default="configs/quickstart.yaml")
    given = parser.parse_args()
    flags = ["--config", given.config, "--lottery.rounds", str(given.rounds)]
    seeds = [str(seed) for seed in range(1, given.seeds + 1)]
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        sweep = seconds(["sweep", *flags, "--seeds", ",".join(seeds), "--sweep_dir", str(base / "sweep")])
        fits = [seconds(["fit", *flags, "--seed_everything", n, "--run_dir", str(base / n)]) for n in seeds]
        print(
            f"{os.cpu_count()} cores: sweep {sweep:.0f} s, {len(fits)} fits {sum(fits):.0f} s: {sum(fits) / sweep:.2f}x"
        )
        trained = sum(row.seconds for path in base.glob("sweep/*/results.csv") for row in read_rows(path))
        print(f"networks of the sweep were trained and evaluated for {trained:.0f} s in all")
        few = ["--config", given.config, "--lottery.rounds", "1"]
        command = [sys.executable, "-c", OVERHEAD, json.dumps(few), str(base)]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        for what, each in json.loads(out.splitlines()[-1]).items():
            print(f"overhead of a {what}: {median(each):.1f} s ({', '.join(f'{one:.1f}' for one in each)})")


def seconds(args: Sequence[str]) -> float:
    """The wall time of a command; it fails if the command does."""
    start = time.monotonic()
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    subprocess.run(
        [sys.executable, "-m", "lth_lightning", *args], check=True, stdout=subprocess.DEVNULL, env=environment
    )
    return time.monotonic() - start


if __name__ == "__main__":
    main()
