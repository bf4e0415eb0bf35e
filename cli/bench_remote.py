"""The program of a side that a device elsewhere measures: ``python -m bitfabric.cli.bench_remote``.

It takes a bundle, an address, and the work as JSON, and prints a round for each line that it reads.
"""

from __future__ import annotations

import json
import sys

from ..runtime.bundle import open_bundle
from ..runtime.measure import Work, answer
from ..runtime.remote.address import parse_address
from ..runtime.remote.measuring import RemoteMeasurement
from ..targets import FabricError


def main(bundle: str, address: str, work: str) -> None:
    """Measure until there are no more lines."""

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        opened = open_bundle(bundle, foreign=True)
        found = parse_address(address)
        answer(RemoteMeasurement(opened, found, Work(**json.loads(work)), tell).round)
    except FabricError as error:
        print(json.dumps({"error": error.cause, "remedy": error.remedy}), flush=True)
        sys.exit(2)


if __name__ == "__main__":
    main(*sys.argv[1:])
