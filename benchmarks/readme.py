"""Copy result tables into README.md, between `<!-- table: name -->` and `<!-- end -->`.

    python benchmarks/readme.py                 # after the commands that README names beside each table

The sources are benchmarks/results/<name>.md; reports of dps-eval are copied there first.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
REPORTS = {"demo": ROOT / "outputs" / "demo", "lift100": ROOT / "outputs" / "lift100"}


def tables_of(report: str) -> str:
    """The markdown tables of a text, without what stands around them."""
    tables = re.findall(r"(?:^\|.*\n)+", report + "\n", flags=re.MULTILINE)
    return "\n".join(tables)


def fill(readme: str, tables: dict[str, str]) -> str:
    """README with each named table replaced; a name without a table is an error."""

    def replace(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n\n{tables[match[1]].strip()}\n\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- end -->", replace, readme, flags=re.DOTALL)


def stored_tables() -> dict[str, str]:
    """Name -> markdown of every stored result."""
    return {path.stem: tables_of(path.read_text()) for path in RESULTS.glob("*.md")}


def main() -> None:
    """Take over new reports, redraw the picture, rewrite README."""
    RESULTS.mkdir(exist_ok=True)
    for name, folder in REPORTS.items():
        if (folder / "report.md").exists():
            shutil.copy(folder / "report.md", RESULTS / f"{name}.md")
            shutil.copy(folder / "eval_log.json", RESULTS / f"{name}.json")
    log = RESULTS / "demo.json"
    if log.exists():
        command = [sys.executable, "-m", "diffpolicy_spec.eval.picture", str(log), str(ROOT / "docs" / "cost.png")]
        subprocess.run(command, check=True)
    readme = ROOT / "README.md"
    readme.write_text(fill(readme.read_text(), stored_tables()))


if __name__ == "__main__":
    main()
