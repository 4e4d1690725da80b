"""`python -m lth_lightning`: the command line, as `lth`."""

import sys

from lth_lightning.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
