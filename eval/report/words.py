"""Numbers and verdicts as text, the same in every format of the report."""

from __future__ import annotations

from diffpolicy_spec.eval.comparison import POWER, Comparison
from diffpolicy_spec.eval.summary import Mean, Summary

__all__ = [
    "difference", "mean", "milliseconds", "number", "p_value", "percent", "round_up", "sentence", "success", "times",
    "verdict",
]  # fmt: skip

NONE = "-"


def number(value: float | None, form: str = ".1f") -> str:
    """A number in a format; "-" for None."""
    return NONE if value is None else format(value, form)


def milliseconds(value: float | None) -> str:
    """Three digits, no more than one of them behind the point."""
    return (
        NONE if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"
    )


def percent(value: float | None, digits: int = 0) -> str:
    """A share as percent."""
    return NONE if value is None else f"{100 * value:.{digits}f} %"


def times(value: float | None) -> str:
    """A factor."""
    return NONE if value is None else f"{value:.1f}x" if value < 100 else f"{value:.0f}x"


def _digits(episodes: int) -> int:
    """Tenths of a percent say something from a thousand episodes on."""
    return 1 if episodes >= 1000 else 0


def success(s: Summary) -> str:
    """Successes, episodes and the interval."""
    if not s.episodes:
        return NONE
    d = _digits(s.episodes)
    return f"{s.successes}/{s.episodes} [{100 * s.success_low:.{d}f}, {100 * s.success_high:.{d}f}] %"


def mean(m: Mean | None) -> str:
    """A mean with its interval."""
    if m is None:
        return NONE
    return f"{m.mean:.3f}" if m.low is None else f"{m.mean:.3f} [{m.low:.3f}, {m.high:.3f}]"


def _points(c: Comparison, low: float, high: float) -> str:
    d = max(1, _digits(c.pairs))
    return f"{100 * c.difference:+.{d}f} [{100 * low:+.{d}f}, {100 * high:+.{d}f}]"


def difference(c: Comparison | None, *, of_equality: bool = False) -> str:
    """Points by which b is better, with the interval at 1 - alpha, or at 1 - 2 alpha, the one equality is judged by."""
    if c is None or c.low == float("-inf"):
        return NONE
    return _points(c, c.equal_low, c.equal_high) if of_equality else _points(c, c.low, c.high)


def p_value(c: Comparison | None) -> str:
    """Three digits behind the point, or "<0.001"."""
    return NONE if c is None else "<0.001" if c.p_value < 0.001 else f"{c.p_value:.3f}"


def verdict(c: Comparison | None) -> str:
    """A few words for a table."""
    if c is None:
        return NONE
    within = f"±{100 * c.margin:g}"
    return {
        "equal": f"equal within {within}",
        "different": "better" if c.difference > 0 else "worse",
        "different, but within the margin": f"{'better' if c.difference > 0 else 'worse'}, within {within}",
        "undecided": f"undecided: needs ~{round_up(c.needed):,}" if c.needed else "undecided",
    }[c.verdict]


def sentence(c: Comparison, a: str, b: str) -> str:
    """What the comparison of b against a supports, in full."""
    rates = (f"{100 * v:.1f} %" if c.quantity == "success" else f"{v:.3f}" for v in (c.b, c.a))
    seen = f"{c.quantity.capitalize()} of {b} is {next(rates)}, of {a} {next(rates)} on the same {c.pairs:,} seeds"
    if c.low == float("-inf"):
        return f"{seen}; nothing varies between the seeds, so nothing can be concluded."
    level, level_equal = f"{100 * (1 - c.alpha):g} %", f"{100 * (1 - 2 * c.alpha):g} %"
    d = (
        f"the difference is {100 * c.difference:+.1f} points "
        f"({level} interval {100 * c.low:+.1f} to {100 * c.high:+.1f}, p = {p_value(c)})"
    ).replace("p = <", "p < ")
    margin = f"±{100 * c.margin:g} points"
    interval = f"the {level_equal} interval {100 * c.equal_low:+.1f} to {100 * c.equal_high:+.1f}"
    if c.verdict == "equal":
        return f"{seen}; {d}. Equal within {margin}: {interval} lies inside."
    if c.verdict == "different, but within the margin":
        return f"{seen}; {d}. They differ, but by less than {margin}: {interval} lies inside."
    if c.verdict == "different":
        return f"{seen}; {d}. They differ."
    return f"{seen}; {d}. Undecided: neither a difference nor equality within {margin} is shown. {_need(c, margin)}"


def round_up(episodes: int) -> int:
    """To two digits: the assumptions behind the number carry no more."""
    step = max(1, 10 ** (len(str(episodes)) - 2))
    return -(-episodes // step) * step


def _need(c: Comparison, margin: str) -> str:
    if c.needed is None:
        return (
            "More than ten million episodes would be needed."
            if c.needed_for
            else "It is close: more episodes will tell."
        )
    what = f"to say equal within {margin}" if c.needed_for == "equal" else "to show that they differ"
    truth = "there is no difference" if not c.assumed else f"the difference truly is {100 * c.assumed:+.1f} points"
    return (
        f"About {round_up(c.needed):,} episodes would be needed {what} (with probability {POWER:g}, if {truth} and "
        f"{_disagreement(c)})."
    )


def _disagreement(c: Comparison) -> str:
    if c.quantity == "score":
        return f"differences of one seed keep a standard deviation of {100 * c.disagreement:.1f} points"
    return f"{100 * c.disagreement:.1f} % of the seeds go on to end differently"
