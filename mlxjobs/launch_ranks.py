"""`python -m mlxjobs.launch_ranks`: what scripts call, `mlxjobs.cluster.launch_ranks`."""

import sys

from mlxjobs.cluster.launch_ranks import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
