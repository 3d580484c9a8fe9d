"""dps-inspect: what a checkpoint or dataset is, and whether it can be accelerated exactly.

    dps-inspect lift                        # a shipped policy
    dps-inspect epoch=0500.ckpt             # of diffusion_policy; a LeRobot folder, a robomimic .pth
    dps-inspect image_v15.hdf5 --json       # a dataset, as JSON

Nothing in the file is run, and weights stay in it. Ends with 1 where something is wrong with the file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from diffpolicy_spec.tools.describe import describe

__all__ = ["main", "run"]


def run(arguments: Sequence[str] | None = None) -> int:
    """Print what is at a path; returns the exit status: 0, or 1 for a file that is damaged or not what it should be."""
    parser = argparse.ArgumentParser(
        "dps-inspect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", help="a file, a folder, or the name of a shipped policy")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--check", action="store_true", help="read all weights, and check that they are finite")
    given = parser.parse_args(arguments)
    try:
        report = describe(given.path, every_weight=given.check)
    except (ValueError, OSError, ImportError) as error:
        if given.json:
            print(json.dumps({"path": given.path, "error": str(error)}, indent=2))
        print(f"dps-inspect: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(json.dumps(report.data(), indent=2, allow_nan=False) if given.json else report.text())
    return 1 if report.problems else 0


def main() -> None:
    """Entry point of dps-inspect."""
    sys.exit(run())


if __name__ == "__main__":
    main()
