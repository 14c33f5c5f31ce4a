"""Random histories in the long form.

python -m tests.faults.protocol --steps 20000          # the code as it is: must hold
python -m tests.faults.protocol --mutants --tries 100  # each rule broken: must be noticed
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

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


def told(length: int, seed: int) -> tuple[Tally, str | None]:
    """What one history came to, and what it found wrong."""
    tally = Tally()
    try:
        run_history(seed, length, tally)
    except Exception as error:  # noqa: BLE001 -- whatever a history ends with is what it found
        return tally, f"{type(error).__name__}: {error} ({'; '.join(getattr(error, '__notes__', ()))})"
    return tally, None


def run(seeds: Sequence[int], length: int, workers: int) -> int:
    """Many histories in processes of their own; those that found something are told as they end."""
    whole, wrong, began = Tally(), 0, time.monotonic()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for seed, (tally, violation) in zip(seeds, pool.map(partial(told, length), seeds), strict=True):
            whole.counts += tally.counts
            if violation is not None:
                wrong += 1
                sys.stdout.write(f"seed {seed}: {violation}\n")
                sys.stdout.flush()
    said = "no violation" if not wrong else f"{wrong} violations"
    sys.stdout.write(f"{said} in {whole}; {time.monotonic() - began:.0f} s\n")
    return min(wrong, 1)


def main() -> int:
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of a set of texts: a seed is to tell the whole history.
        arguments = [sys.executable, "-m", "tests.faults.protocol", *sys.argv[1:]]
        os.execve(sys.executable, arguments, {**os.environ, "PYTHONHASHSEED": "0"})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000, help="in all")
    parser.add_argument("--length", type=int, default=200, help="steps of one history")
    parser.add_argument("--seed", type=int, default=0, help="of the first history")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="histories at once")
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
            said = "NOT NOTICED" if found is None else f"seed {found[0]}: {found[1]:.150}"
            sys.stdout.write(f"{name}: {said} ({time.monotonic() - began:.0f} s)\n")
            sys.stdout.flush()
        return min(missed, 1)
    count = -(-arguments.steps // arguments.length)
    return run(range(arguments.seed, arguments.seed + count), arguments.length, arguments.workers)


if __name__ == "__main__":
    sys.exit(main())
