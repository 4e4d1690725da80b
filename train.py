"""The command line: `python train.py fit --config configs/quickstart.yaml`."""

import sys

from lth_lightning.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
