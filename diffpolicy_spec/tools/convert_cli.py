"""dps-convert: a checkpoint or dataset in another format.

    dps-convert epoch=0500.ckpt outputs/theirs          # diffusion_policy, LeRobot, robomimic -> native
    dps-convert outputs/train/lift/policy lerobot_lift --to lerobot
    dps-convert low_dim_v15.hdf5 lift.zarr              # robomimic's hdf5 <-> diffusion_policy's zarr, or .zarr.zip
    dps-convert image_v15.hdf5 small.hdf5 --drop next_obs --drop states
    dps-convert image_v15.hdf5 plain.hdf5 --uncompressed    # more images than memory: training maps them

What the target cannot hold is told before anything is written; where it would be missed, --allow-loss is needed. The
target appears whole or not at all, and nothing that is there is replaced without --overwrite.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from diffpolicy_spec.tools.convert import TARGETS, convert

__all__ = ["main", "run"]


def run(arguments: Sequence[str] | None = None) -> int:
    """Convert as the arguments say; returns the exit status: 0, or 1 with one line that says what was wrong."""
    parser = argparse.ArgumentParser(
        "dps-convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="a checkpoint (a file, a folder, or a shipped policy's name) or a dataset")
    parser.add_argument("target", help="what is written")
    parser.add_argument("--to", choices=TARGETS, help="default: what the target's name ends in, else native")
    parser.add_argument("--overwrite", action="store_true", help="replace a target that is there")
    parser.add_argument("--allow-loss", action="store_true", help="go on though something of weight is lost")
    parser.add_argument("--drop", action="append", default=[], metavar="NAME", help="leave out a dataset's column")
    parser.add_argument("--uncompressed", action="store_true", help="images of an hdf5 as they are: training maps them")
    parser.add_argument("--storage-dtype", default="float32", help="of a native checkpoint: float32 or float16")
    given = parser.parse_args(arguments)
    try:
        convert(
            given.source,
            given.target,
            given.to,
            overwrite=given.overwrite,
            allow_loss=given.allow_loss,
            drop=given.drop,
            storage_dtype=given.storage_dtype,
            compress=not given.uncompressed,
        )
    except (ValueError, OSError, ImportError) as error:
        print(f"dps-convert: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(given.target)
    return 0


def main() -> None:
    """Entry point of dps-convert."""
    sys.exit(run())


if __name__ == "__main__":
    main()
