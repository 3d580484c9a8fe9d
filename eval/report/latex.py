"""report.tex: two tables for a paper, with booktabs, and what they were measured on."""

from __future__ import annotations

from collections.abc import Sequence

from diffpolicy_spec.eval.report.data import Group, Line, Report
from diffpolicy_spec.eval.report.machines import facts

__all__ = ["escape", "latex_report"]

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": "$<$", ">": "$>$",
}  # fmt: skip


def escape(text: str) -> str:
    """Text as LaTeX shows it."""
    return "".join(_SPECIAL.get(c, c) for c in text)


def _interval(value: float, low: float, high: float, form: str = ".1f") -> str:
    return f"${value:{form}}$ {{\\scriptsize $[{low:{form}}, {high:{form}}]$}}"


def _success(line: Line) -> str:
    s = line.summary
    return _interval(100 * (s.success_rate or 0.0), 100 * s.success_low, 100 * s.success_high)


def _difference(group: Group, line: Line) -> str:
    found = group.pair_of(line)
    if found is None:
        return "--"
    c = found.success
    mark = r"$^{=}$" if c.equal else r"$^{\ast}$" if c.different else ""
    return _interval(100 * c.difference, 100 * c.low, 100 * c.high, "+.1f") + mark


def _score(line: Line) -> str:
    m = line.summary.score
    if m is None:
        return "--"
    return f"${m.mean:.3f}$" if m.low is None or m.high is None else _interval(m.mean, m.low, m.high, ".3f")


def _number(value: float | None, form: str = ".1f") -> str:
    return "--" if value is None else f"${value:{form}}$"


def _times(value: float | None) -> str:
    return "--" if value is None else f"${value:.1f}\\times$"


def _percent(value: float | None) -> str:
    return "--" if value is None else f"${100 * value:.0f}$"


def _table(header: Sequence[str], blocks: Sequence[Sequence[Sequence[str]]], caption: str, label: str) -> str:
    """Columns without any number are left out; blocks are parted by a rule."""
    keep = [i for i in range(len(header)) if i == 0 or any(row[i] != "--" for rows in blocks for row in rows)]
    lines = [" & ".join(header[i] for i in keep) + r" \\", r"\midrule"]
    for k, rows in enumerate(blocks):
        lines += [r"\addlinespace"] if k else []
        lines += [" & ".join(row[i] for i in keep) + r" \\" for row in rows]
    body = "\n".join(lines)
    return (
        f"\\begin{{table*}}\n\\centering\n\\small\n\\setlength{{\\tabcolsep}}{{4pt}}\n\\caption{{{caption}}}\n\\label{{{label}}}\n"
        f"\\begin{{tabular}}{{l{'r' * (len(keep) - 1)}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
        "\\end{table*}\n"
    )


def _head(group: Group, columns: int) -> list[str]:
    return [f"\\emph{{{escape(group.title)}}}", *["--"] * (columns - 1)]


def _block(group: Group, rows: Sequence[Sequence[str]], *, named: bool) -> list[list[str]]:
    head = [["" if i else text for i, text in enumerate(_head(group, len(rows[0])))]] if named else []
    return [*head, *(list(row) for row in rows)]


def latex_report(report: Report) -> str:
    """Needs \\usepackage{booktabs}. Comments say what was measured on what."""
    named = len(report.groups) > 1
    outcome, cost = [], []
    for group in report.groups:
        first, second = [], []
        for line in group.lines:
            s, t, c = line.summary, line.summary.latency, line.summary.shares
            name = escape(line.label) + ("" if line.cell.exact else r"$^{\dagger}$")
            ms = [_number(v) for v in ((t.p50, t.p95, t.p99) if t else (None,) * 3)]
            late = _percent(s.deadlines.missed) if s.deadlines else "--"
            first.append([name, _success(line), _difference(group, line), _score(line), *ms, late,
                          _times(s.wall_clock_speedup)])  # fmt: skip
            parts = [_number(v) for v in ((c.network, c.draft, c.verify, c.other) if c else (None,) * 4)]
            second.append([name, _number(s.calls_mean), _number(s.rows_mean, ".0f"), _percent(s.acceptance_rate),
                           _percent(s.rejection_waste), _times(s.algorithmic_speedup), *parts])  # fmt: skip
        outcome.append(_block(group, first, named=named))
        cost.append(_block(group, second, named=named))
    episodes = sorted({line.summary.episodes for g in report.groups for line in g.lines})
    many = f"{episodes[0]:,}" if len(episodes) == 1 else f"{episodes[0]:,} to {episodes[-1]:,}"
    about = [f"% {name}: {text}" for m in report.machines for name, text in facts(m).items() if name != "summary"]
    device = "; ".join(dict.fromkeys(escape(str(m.environment.get("device"))) for m in report.machines))
    outcome_caption = (
        f"Success (\\%, {many} episodes, 95\\,\\% Wilson interval), difference to the first row of a block on the same "
        "seeds (points, 95\\,\\% Tango interval; $^{=}$: equal within $\\pm" + f"{100 * report.margin:g}" + "$ points, "
        "two one-sided tests at 5\\,\\%; $^{\\ast}$: McNemar's exact test, Holm-adjusted $p < 0.05$) and latency of a "
        f"policy call (ms, {device}). $^{{\\dagger}}$: approximates the law of the full chain."
    )
    cost_caption = (
        "Cost of a chunk: sequential network calls, rows evaluated, drafted steps accepted (\\%), rows wasted on "
        "rejected drafts (\\%), and mean milliseconds of a policy call."
    )
    heads = ["Sampler", "Success", "Difference", "Score", "p50", "p95", "p99", "Late (\\%)", "Speed-up"]
    more = ["Sampler", "Calls", "Rows", "Accepted", "Wasted", "Fewer calls", "Network", "Draft", "Verify", "Other"]
    return "\n".join([
        "% Needs \\usepackage{booktabs}. Written by dps-report.",
        *("% " + line for text in about for line in text.removeprefix("% ").splitlines()),
        "",
        _table(heads, outcome, outcome_caption, "tab:success"),
        _table(more, cost, cost_caption, "tab:cost"),
    ])  # fmt: skip
