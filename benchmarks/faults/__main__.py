"""``python -m benchmarks.faults``: the campaign as tables and JSON; fails if a decoder hung or a file was not named."""

import argparse
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.faults import OUTCOMES, Case, campaign


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--seeds", type=int, default=4, help="how often each way of damage is tried (default 4)")
    parser.add_argument("--seconds", type=float, default=30, help="after which a decoder counts as hanging")
    parser.add_argument("--out", type=Path, default=Path("outputs/faults.json"), help="every case, as JSON")
    args = parser.parse_args()
    cases = campaign(args.seeds, args.seconds)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps([asdict(case) for case in cases], indent=1) + "\n")
    for key in ("container", "damage", "sense"):
        Console().print(table(cases, key))
    print(f"every case is in {args.out}")
    return int(any(case.outcome in ("hang", "foreign") for case in cases))


def table(cases: list[Case], key: str) -> Table:
    """Outcomes counted by ``container`` or ``damage``."""
    found = Table(key, *OUTCOMES, title=f"outcomes by {key}: {len(cases)} reads of damaged files")
    counts: dict[str, Counter] = {}
    for case in cases:
        counts.setdefault(getattr(case, key), Counter())[case.outcome] += 1
    for name, row in [*counts.items(), ("[bold]all", sum(counts.values(), Counter()))]:
        found.add_row(name, *(str(row[outcome] or "") for outcome in OUTCOMES))
    return found


if __name__ == "__main__":
    raise SystemExit(main())
