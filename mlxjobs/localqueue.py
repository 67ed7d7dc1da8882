"""`python -m mlxjobs.localqueue`: the commands of `mlxjobs.local.queue`."""

import sys

from mlxjobs.local.queue import main

if __name__ == "__main__":
    sys.exit(main())
