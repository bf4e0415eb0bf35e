"""`python -m bitfabric.cli` is `fabric`, for where the command itself is not on the PATH."""

from . import main

main(prog_name="fabric")
