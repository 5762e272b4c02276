"""Run rows of the reliability matrix: ``python -m tests.reliability [--rows TR1,DA1]``."""

import argparse
import sys

from tests.reliability.campaign import (
    ROW_SECONDS,
    load_rows,
    open_failures,
    record,
    recorded_cases,
    run_case,
    run_row,
    splice_page,
)


def main() -> int:
    """Run what the command line asks for; 1 where a case failed."""
    rows = load_rows()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="", help="names with commas between; all by default")
    parser.add_argument("--case", type=int, help="run this one case and show its error")
    parser.add_argument("--cases", type=int, help="cases per row, instead of the row's own number")
    parser.add_argument("--minutes", type=float, default=ROW_SECONDS / 60, help="limit per row")
    parser.add_argument(
        "--more", action="store_true", help="the cases after those recorded for this commit"
    )
    parser.add_argument("--no-record", action="store_true", help="leave results.json alone")
    parser.add_argument("--list", action="store_true", help="show the rows")
    parser.add_argument("--splice", action="store_true", help="only write docs/reliability.md")
    args = parser.parse_args()
    if args.splice:
        splice_page()
        return 0
    names = [name for name in args.rows.split(",") if name] or list(rows)
    if unknown := [name for name in names if name not in rows]:
        parser.error(f"there is no row {', '.join(unknown)}; there are {', '.join(rows)}")
    if args.list:
        for chosen in rows.values():
            print(f"{chosen.name}  {chosen.nightly} cases  {chosen.what}")
        return 0
    if args.case is not None:
        for name in names:
            print(f"{name} case {args.case}: {run_case(rows[name], args.case)} events, right")
        return 0
    failed = 0
    for name in names:
        chosen = rows[name]
        count = chosen.nightly if args.cases is None else args.cases
        start = recorded_cases(name) if args.more else 0
        # What failed the last time comes first: a short run must not turn a red row green.
        seeds = dict.fromkeys([*([] if start else open_failures(name)), *range(start, count)])
        outcome = run_row(chosen, seeds, 60 * args.minutes)
        failed += len(outcome.failures)
        print(
            f"{name}: {outcome.cases} cases, {outcome.events} {chosen.unit}, "
            f"{len(outcome.failures)} failed, {outcome.seconds:.0f} s",
            flush=True,
        )
        if not args.no_record:
            record(outcome, more=args.more)
            splice_page()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
