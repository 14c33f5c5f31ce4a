"""Random histories in the long form.

python -m tests.faults.protocol --steps 20000          # the code as it is: must hold
python -m tests.faults.protocol --mutants --tries 100  # each rule broken: must be noticed
"""

import argparse
import sys
import time

from tests.faults.history import Tally, run_history
from tests.faults.mutants import MUTANTS, UNRACED, mutated


def caught(name: str, tries: int, steps: int, first: int = 0) -> tuple[int, str] | None:
    """The first seed whose history notices a mutant, and what it noticed; None when none does."""
    for seed in range(first, first + tries):
        try:
            with mutated(name):
                run_history(seed, steps, Tally(), race=name not in UNRACED)
        except Exception as error:  # noqa: BLE001 -- whatever the mutant brings about is what shows it
            return seed, f"{type(error).__name__}: {error}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000, help="in all")
    parser.add_argument("--length", type=int, default=200, help="steps of one history")
    parser.add_argument("--seed", type=int, default=0, help="of the first history")
    parser.add_argument(
        "--mutants", nargs="*", choices=sorted(MUTANTS), help="only these; all without a name"
    )
    parser.add_argument("--tries", type=int, default=100, help="histories for each mutant")
    arguments = parser.parse_args()
    if arguments.mutants is not None:
        missed = 0
        for name in arguments.mutants or MUTANTS:
            began = time.monotonic()
            found = caught(name, arguments.tries, arguments.length, arguments.seed)
            missed += found is None
            told = "NOT NOTICED" if found is None else f"seed {found[0]}: {found[1]:.150}"
            sys.stdout.write(f"{name}: {told} ({time.monotonic() - began:.0f} s)\n")
            sys.stdout.flush()
        return min(missed, 1)
    tally = Tally()
    for seed in range(arguments.seed, arguments.seed + -(-arguments.steps // arguments.length)):
        run_history(seed, arguments.length, tally)
    sys.stdout.write(f"no violation in {tally}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
