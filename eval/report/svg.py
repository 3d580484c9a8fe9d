"""Small pictures as SVG text: axes, lines, marks, bars. Colours are the page's (classes c0 to c7), so they follow its
theme, and text keeps a readable size on a phone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

__all__ = ["COLOURS", "Axis", "Picture", "category", "linear", "logarithmic"]

COLOURS = 8
"""Colours of the page; samplers beyond them share."""


def _text(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".") if math.isfinite(value) else "0"


class Axis:
    """A map from values to pixels, with its ticks.

    Args:
        low, high: of the values.
        ticks: (value, label) of each.
        log: whether distances are ratios.
    """

    def __init__(self, low: float, high: float, ticks: Sequence[tuple[float, str]], *, log: bool = False) -> None:
        self.low, self.high, self.ticks, self.log = low, high, tuple(ticks), log

    def place(self, values: np.ndarray | float, start: float, end: float) -> np.ndarray:
        """Pixels of values, with `low` at `start` and `high` at `end`."""
        x = np.asarray(values, dtype=float)
        low, high = self.low, self.high
        if self.log:
            x, low, high = np.log(np.maximum(x, 1e-12)), math.log(low), math.log(high)
        return start + (x - low) / (high - low) * (end - start)


def linear(low: float, high: float, count: int = 5, unit: str = "") -> Axis:
    """Ticks at multiples of 1, 2, 2.5 or 5 times a power of ten."""
    if not high > low:
        low, high = low - 0.5, low + 0.5
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    values = [step * k for k in range(first, math.floor(high / step + 1e-9) + 1)]
    return Axis(low, high, [(v, f"{v:g}{unit}" if abs(v) > 1e-12 else f"0{unit}") for v in values])


def logarithmic(low: float, high: float, unit: str = "") -> Axis:
    """Ticks such as 5, 10, 20, 50; of every decade only the first where there are many."""
    low, high = min(low, high) / 1.08, max(low, high) * 1.08
    if high / low < 1.5:
        low, high = low / 1.25, high * 1.25
    steps = (1, 2, 5) if high / low < 2000 else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]
    if len(values) < 2:
        values = [float(f"{low * 1.08:.2g}"), float(f"{high / 1.08:.2g}")]
    return Axis(low, high, [(v, f"{v:g}{unit}") for v in values], log=True)


def category(names: Sequence[str]) -> Axis:
    """The k-th name at k."""
    return Axis(-0.5, len(names) - 0.5, list(enumerate(names)))


class Picture:
    """An SVG being drawn; values go in, pixels come out.

    Args:
        title: said aloud by a screen reader; it should tell what is seen.
        x, y: axes; y runs upwards, categories downwards.
        x_label, y_label: with units.
        size: of the picture in pixels.
        margin: left, right, top, bottom around the axes.
    """

    def __init__(
        self,
        title: str,
        x: Axis,
        y: Axis,
        x_label: str,
        y_label: str = "",
        *,
        size: tuple[int, int] = (460, 300),
        margin: tuple[int, int, int, int] = (52, 14, 14, 46),
        downwards: bool = False,
    ) -> None:
        self.size, self.x, self.y = size, x, y
        left, right, top, bottom = margin
        self.box = (left, size[0] - right, top, size[1] - bottom)
        self._downwards = downwards
        self._title = title
        self._parts: list[str] = []
        self._axes(x_label, y_label)

    def _px(self, values: np.ndarray | float) -> np.ndarray:
        return self.x.place(values, self.box[0], self.box[1])

    def _py(self, values: np.ndarray | float) -> np.ndarray:
        start, end = (self.box[2], self.box[3]) if self._downwards else (self.box[3], self.box[2])
        return self.y.place(values, start, end)

    def _axes(self, x_label: str, y_label: str) -> None:
        left, right, top, bottom = self.box
        for value, name in self.x.ticks:
            at = _text(float(self._px(value)))
            self._parts.append(f'<path class="grid" d="M{at} {top}V{bottom}"/>')
            self._parts.append(
                f'<text class="tick" x="{at}" y="{bottom + 17}" text-anchor="middle">{escape(name)}</text>'
            )
        for value, name in self.y.ticks:
            if not name:
                continue
            at = _text(float(self._py(value)))
            self._parts.append(f'<path class="grid" d="M{left} {at}H{right}"/>')
            self._parts.append(
                f'<text class="tick" x="{left - 7}" y="{at}" dy="4.5" text-anchor="end">{escape(name)}</text>'
            )
        self._parts.append(f'<path class="axis" d="M{left} {bottom}H{right}"/>')
        middle = (left + right) / 2
        self._say("label", f'x="{_text(middle)}" y="{self.size[1] - 8}"', x_label, "middle")
        if y_label:
            at = _text((top + bottom) / 2)
            self._say("label", f'transform="translate(14 {at}) rotate(-90)"', y_label, "middle")

    def _say(self, kind: str, place: str, text: str, anchor: str) -> None:
        self._parts.append(f'<text class="{kind}" {place} text-anchor="{anchor}">{escape(text)}</text>')

    def line(self, x: np.ndarray, y: np.ndarray, colour: int, *, step: bool = False, dashed: bool = False) -> None:
        """A line through points; as stairs where `step`."""
        px, py = self._px(np.asarray(x)), self._py(np.asarray(y))
        path = f"M{_text(px[0])} {_text(py[0])}"
        for a, b in zip(px[1:].tolist(), py[1:].tolist(), strict=True):
            path += f"H{_text(a)}V{_text(b)}" if step else f"L{_text(a)} {_text(b)}"
        more = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(f'<path class="line c{colour % COLOURS}"{more} d="{path}"/>')

    def point(self, x: float, y: float, colour: int, title: str, *, filled: bool = True) -> None:
        """A round mark that tells its values when it is pointed at."""
        kind = "dot" if filled else "ring"
        self._parts.append(
            f'<circle class="{kind} c{colour % COLOURS}" cx="{_text(float(self._px(x)))}" '
            f'cy="{_text(float(self._py(y)))}" r="5.5"><title>{escape(title)}</title></circle>'
        )

    def bar(self, x: tuple[float, float], y: tuple[float, float], colour: int) -> None:
        """A thin line between two points: an interval, or a gap."""
        (x0, x1), (y0, y1) = self._px(np.array(x)).tolist(), self._py(np.array(y)).tolist()
        path = f"M{_text(x0)} {_text(y0)}L{_text(x1)} {_text(y1)}"
        self._parts.append(f'<path class="bar c{colour % COLOURS}" d="{path}"/>')

    def block(self, x: tuple[float, float], y: tuple[float, float], kind: str, title: str = "") -> None:
        """A filled rectangle of a class of the page."""
        (x0, x1), (y0, y1) = self._px(np.array(x)).tolist(), self._py(np.array(y)).tolist()
        inside = f"<title>{escape(title)}</title>" if title else ""
        self._parts.append(
            f'<rect class="{kind}" x="{_text(min(x0, x1))}" y="{_text(min(y0, y1))}" width="{_text(abs(x1 - x0))}" '
            f'height="{_text(abs(y1 - y0))}">{inside}</rect>'
        )

    def rule(self, x: float, name: str) -> None:
        """A vertical dashed line with its name at the top; nothing where x lies outside."""
        if not self.x.low <= x <= self.x.high:
            return
        at = float(self._px(x))
        near_end = at > (self.box[0] + self.box[1]) / 2
        anchor, shift = ("end", -5) if near_end else ("start", 5)
        self._parts.append(f'<path class="rule" d="M{_text(at)} {self.box[2]}V{self.box[3]}"/>')
        if name:
            self._say(
                "note", f'x="{_text(at + shift)}" y="{_text(0.35 * self.box[2] + 0.65 * self.box[3])}"', name, anchor
            )

    def heading(self, y: float, text: str) -> None:
        """Text at the left edge of the picture, above the rows it belongs to."""
        self._say("heading", f'x="6" y="{_text(float(self._py(y)))}" dy="4.5"', text, "start")

    def note(
        self, x: float, y: float, text: str, *, anchor: str = "start", shift: tuple[float, float] = (6, 4.5)
    ) -> None:
        """Text beside a point."""
        px, py = float(self._px(x)) + shift[0], float(self._py(y)) + shift[1]
        self._say("note", f'x="{_text(px)}" y="{_text(py)}"', text, anchor)

    def __str__(self) -> str:
        width, height = self.size
        inside = "".join(self._parts)
        return (
            f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
            f'aria-label="{escape(self._title)}"><title>{escape(self._title)}</title>{inside}</svg>'
        )
