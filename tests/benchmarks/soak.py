"""Two hundred kills in one run: workers, nannies, the scheduler, the flow's process, all at once.

    python tests/benchmarks/soak.py [--kills 200] [--seed 1] [--minutes N]

The run is begun again whenever it ended, and given new work when it got complete too soon. At the end its
bytes must be those of an undisturbed run, and `verify` must find it sound. Takes about half an hour; after
`--minutes` it kills no more, and says how many it were.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from killing import PATIENCE, Running, make_inputs, prefect_server, segment_command, soak, voxels

from flows.inspection import verify


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_inputs(root)
        with prefect_server(root / "prefect") as environment:
            whole = Running.start(segment_command(root, root / "whole"), **environment)
            code, _, errors = whole.end(PATIENCE)
            if code != 0:
                raise SystemExit(errors)
            began = time.monotonic()

            def show(hits: dict[str, int], done: int) -> None:
                kills = sum(hits.values())
                left = (time.monotonic() - began) / kills * (options.kills - kills)
                line = f"{kills} of {options.kills} kills, {done} blocks done, about {left / 60:.0f} min left"
                print(line, file=sys.stderr, flush=True)

            kills, seed, seconds = options.kills, options.seed, options.minutes * 60
            told = soak(root, root / "soaked", kills, seed, environment, show, seconds)
        found = verify(str(root / "soaked"))
        document = {
            "kills": sum(told["kills"].values()),
            "victims": told["kills"],
            "commands_begun": told["begun"],
            "seconds": round(time.monotonic() - began),
            "bytes_equal": voxels(root / "soaked") == voxels(root / "whole"),
            "sound": found.sound,
            "leftovers": len(found.leftovers),
        }
    print(json.dumps(document, indent=1))
    if not (document["bytes_equal"] and document["sound"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
