"""The command line of the planted bugs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lab.sim.mutants import MOST, MUTANTS, hunt


def main(arguments: Sequence[str] | None = None) -> int:
    """Plant every bug; return 0 only if all are caught."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.sim.mutants",
        description="Plant bugs in the engine and the store, and see that each is caught.",
    )
    parser.add_argument("--most", type=int, default=MOST, help="seeds to try for each")
    parser.add_argument("--only", help="the name of one of them")
    options = parser.parse_args(arguments)
    chosen = [mutant for mutant in MUTANTS if options.only in (None, mutant.name)]
    survivors = 0
    for mutant in chosen:
        caught = hunt(mutant, options.most)
        survivors += caught is None
        how = "SURVIVED" if caught is None else f"{caught[1]} after {caught[0]:,} seeds"
        print(f"{mutant.name:26} {mutant.bug:62} {how}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} planted bugs caught")
    return 1 if survivors or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
