"""`dps-report`: the report of what dps-eval has stored, in one folder or in several.

dps-report output=outputs/eval
dps-report 'stores=[runs/one,runs/two]' output=paper margin=2
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffpolicy_spec.command import command

__all__ = ["main", "margin_of", "stores_of"]


def stores_of(cfg: dict[str, Any]) -> Sequence[Path]:
    """The folders that `stores`, or else `output`, names.

    Raises:
        ValueError: not a list of folders.
    """
    given = [cfg["output"]] if cfg["stores"] is None else cfg["stores"]
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise ValueError(f"stores must be a list of folders such as [runs/one,runs/two], got {given!r}")
    return [Path(str(path)).expanduser() for path in given]


def margin_of(cfg: dict[str, Any]) -> float:
    """The margin as a share of 1.

    Raises:
        ValueError: not a number of points between 0 and 100.
    """
    margin = cfg["margin"]
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 < margin < 100:
        raise ValueError(f"margin must be points of success between 0 and 100, such as 5, got {margin!r}")
    return float(margin) / 100


def _run(cfg: dict[str, Any]) -> list[Path]:
    from diffpolicy_spec.eval.report import write_reports

    size = cfg["videos_mb"]
    if isinstance(size, bool) or not isinstance(size, int | float) or size < 0:
        raise ValueError(f"videos_mb must be a number of megabytes, got {size!r}")
    output = Path(cfg["output"]).expanduser()
    return write_reports(
        stores_of(cfg), output, margin=margin_of(cfg), title=str(cfg["title"]), videos_mb=float(size)
    )  # fmt: skip


def _say(paths: list[Path]) -> None:
    print(f"Written to {paths[0].parent}: {', '.join(p.name for p in paths)}.")


def main() -> None:
    """Entry point; the options are those of configs/report.yaml."""
    command("dps-report", "report", "eval", _run, _say)


if __name__ == "__main__":
    main()
