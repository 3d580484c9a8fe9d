"""`python -m diffpolicy_spec.control FILE`: what a log of a control loop comes to."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from diffpolicy_spec.control.jsonl import summary_of
from diffpolicy_spec.control.lines import RecordError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the summary, or why there is none; the exit status."""
    parser = argparse.ArgumentParser("python -m diffpolicy_spec.control", description="Sum up a control loop's log.")
    parser.add_argument("file", help="that JsonLines wrote")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args(arguments)
    try:
        summary = summary_of(options.file)
    except (OSError, RecordError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(summary.data(), indent=1) if options.json else summary.text())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
