"""`make bench`: speed and memory of this machine, each figure beside what it must reach.

`python -m tests.benchmarks [--quick] [NAME ...]` runs all, or those named.
"""

import argparse
from collections.abc import Callable

from tests.benchmarks import collector, idle, judging, ray, scale, startup, tick, upkeep

BENCHMARKS: dict[str, Callable[[bool], None]] = {
    "startup": startup.main,
    "tick": tick.main,
    "idle": idle.main,
    "collector": collector.main,
    "judging": judging.main,
    "scale": scale.main,
    "ray": ray.main,
    "upkeep": upkeep.main,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="smaller and shorter")
    arguments = parser.parse_args()
    for name in arguments.names or BENCHMARKS:
        BENCHMARKS[name](arguments.quick)
        print()


if __name__ == "__main__":
    main()
