"""Copy result tables into README.md, between `<!-- table: name -->` and `<!-- end -->`.

`<!-- table: name: a, b -->` takes those tables of a report whose title has one of the words.

    python benchmarks/readme.py                 # after the commands that README names beside each table

The sources are benchmarks/results/<name>.md; reports of dps-eval are copied there first.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from systems_tables import markdown, number, percent

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
REPORTS = {name: ROOT / "outputs" / name for name in ("demo", "lift100", "suite", "realtime")}


def tables_of(report: str) -> str:
    """The markdown tables of a text, without what stands around them."""
    tables = re.findall(r"(?:^\|.*\n)+", report + "\n", flags=re.MULTILINE)
    return "\n".join(tables)


def titled_tables(report: str, words: list[str]) -> str:
    """The tables of dps-report's Markdown whose title has one of the words, with their titles."""
    found = re.findall(r"^(\*\*(.+)\*\*)\n\n((?:^\|.*\n)+)", report, flags=re.MULTILINE)
    return "\n".join(f"{title}\n\n{table}" for title, name, table in found if any(word in name for word in words))


def fill(readme: str, tables: dict[str, str]) -> str:
    """README with each named table replaced; a name without a table is an error."""

    def replace(match: re.Match[str]) -> str:
        name, _, words = match[1].partition(": ")
        report = RESULTS / f"{name}.md"
        table = titled_tables(report.read_text(), words.split(", ")) if words else tables[name]
        if not table:
            raise ValueError(f"there is no table {match[1]}")
        return f"<!-- table: {match[1]} -->\n\n{table.strip()}\n\n<!-- end -->"

    return re.sub(r"<!-- table: ([\w:, ]+) -->.*?<!-- end -->", replace, readme, flags=re.DOTALL)


def stored_tables() -> dict[str, str]:
    """Name -> markdown of every stored result, and of what README shows of runtime.py's."""
    whole = {path.stem: tables_of(path.read_text()) for path in RESULTS.glob("*.md")}
    return whole | {"runtime_summary": runtime_summary(RESULTS / "runtime_cpu.json")}


def runtime_summary(path: Path) -> str:
    """Two tables of a run of runtime.py: chunks of the trained policy, eager; each network's quickest, composed."""
    found = json.loads(path.read_text())
    chunks = [row for row in found["chunks"] if row["runtime"]["mode"] == "eager"]
    base = next(row["p50_ms"] for row in chunks if row["sampler"] == "DDPM-100")
    drawn = [
        [row["sampler"], str(row["window"] or "-"), "yes" if row["exact"] else "no", number(row["calls"], ".1f"),
         number(row["rows"], ".0f"), *(number(row[f"{p}_ms"], ".0f") for p in ("p50", "p95", "p99")),
         percent(row["overhead"]), f"{base / row['p50_ms']:.1f} x"]
        for row in chunks
    ]  # fmt: skip
    composed = []
    for network in dict.fromkeys(row["network"] for row in found["composed"]):
        rows = [r for r in found["composed"] if r["network"] == network and r["runtime"]["mode"] == "eager"]
        step = next(row for row in rows if row["sampler"] == "DDPM-100")
        best = min((row for row in rows if row["exact"] and row is not step), key=lambda row: row["ms"])
        as_it_is, laid_out = (
            next(c for c in found["calls"] if c["network"] == network and c["way"] == way)["ms"][0]
            for way in ("module as it is", "eager")
        )
        composed.append([
            network, number(as_it_is, ".1f"), number(laid_out, ".1f"), f"{best['sampler']}, {best['window']}",
            number(best["calls"], ".1f"), number(best["ms"], ".0f"), percent(best["overhead"]),
            *(f"{step[key] / best['ms']:.1f} x" for key in ("ms", "measured_ms")),
        ])  # fmt: skip
    heads = ["Lift, one core", "window", "exact", "calls", "rows", "p50 ms", "p95", "p99", "outside network",
             "faster than DDPM-100"]  # fmt: skip
    other = ["network, composed", "c(1) ms, module as it is", "laid out", "quickest sampler, window", "calls", "ms",
             "outside network", "faster than 100 c(1)", "than DDPM-100 as drawn"]  # fmt: skip
    return markdown(heads, drawn) + "\n" + markdown(other, composed)


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
