"""Charts as SVG, drawn here: a page needs no library and no network. Colours are the page's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 340
LEFT, TOP, BOTTOM = 64, 16, 48
MARGIN, LEGEND = 20, 140  # at the right: without and with a legend
COLOURS = 8  # classes s0 to s7 of the page


@dataclass(frozen=True)
class ChartSeries:
    """A line: its name, its points, and whether they are marked."""

    name: str
    points: tuple[tuple[float, float], ...]
    marked: bool = True
    dashed: bool = False


@dataclass(frozen=True)
class ChartAxis:
    """An axis: its title and its scale."""

    title: str
    log: bool = False
    binary: bool = False  # 1,024 is 1K

    def number(self, value: float) -> str:
        """A tick's number."""
        if self.binary and value >= 1024 and value % 1024 == 0:
            return f"{value / 1024:g}K"
        return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"

    def place(self, value: float, low: float, high: float) -> float:
        """Where a value lies between the ends: 0 to 1."""
        if self.log:
            value, low, high = (math.log2(each) for each in (value, low, high))
        return (value - low) / (high - low) if high > low else 0.5

    def ends(self, values: Sequence[float]) -> tuple[float, float]:
        """The axis' ends: powers of 2, or 0 and a round number above."""
        if self.log:
            low = 2.0 ** math.floor(math.log2(min(values)))
            high = 2.0 ** math.ceil(math.log2(max(values)))
            return low, high if high > low else 2 * low
        return 0.0, _next_round_number(max(values))

    def ticks(self, low: float, high: float) -> list[float]:
        """Values with a grid line."""
        if not self.log:
            return [low + (high - low) * part / 4 for part in range(5)]
        powers = range(round(math.log2(low)), round(math.log2(high)) + 1)
        step = max(len(powers) // 9 + 1, 1)
        return [2.0**power for power in powers[::step]]


def _next_round_number(value: float) -> float:
    """The next round number."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return next(part * unit for part in (1, 2, 4, 5, 8, 10, 20) if part * unit >= value)


@dataclass(frozen=True)
class PlotArea:
    """Where things are: axes with their ends, and the right edge."""

    across: ChartAxis
    up: ChartAxis
    xs: tuple[float, float]
    ys: tuple[float, float]
    right: int

    def at(self, x: float, y: float) -> tuple[float, float]:
        """A point's place in the picture."""
        left = LEFT + self.across.place(x, *self.xs) * (self.right - LEFT)
        top = HEIGHT - BOTTOM - self.up.place(y, *self.ys) * (HEIGHT - TOP - BOTTOM)
        return round(left, 1), round(top, 1)


def lines(series: Sequence[ChartSeries], across: ChartAxis, up: ChartAxis) -> str:
    """A line chart; empty if there is nothing to draw."""
    drawn = [
        ChartSeries(
            one.name,
            tuple(p for p in one.points if _is_drawable(p, across, up)),
            one.marked,
            one.dashed,
        )
        for one in series
    ]
    drawn = [one for one in drawn if one.points]
    if not drawn:
        return ""
    plot = PlotArea(
        across,
        up,
        across.ends([x for one in drawn for x, _ in one.points]),
        up.ends([y for one in drawn for _, y in one.points]),
        WIDTH - (LEGEND if len(drawn) > 1 else MARGIN),
    )
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="{escape(up.title)} against {escape(across.title)}">'
    ]
    parts += _grid(plot)
    for place, one in enumerate(drawn):
        parts += _svg_line(one, place % COLOURS, plot)
    parts += _legend(drawn, plot.right + 12) if len(drawn) > 1 else []
    return "\n".join([*parts, "</svg>"])


def _is_drawable(point: tuple[float, float], across: ChartAxis, up: ChartAxis) -> bool:
    return all(
        math.isfinite(value) and (value > 0 or not axis.log)
        for value, axis in zip(point, (across, up), strict=True)
    )


def _grid(plot: PlotArea) -> list[str]:
    parts, right, bottom = [], plot.right, HEIGHT - BOTTOM
    for tick in plot.up.ticks(*plot.ys):
        y = plot.at(plot.xs[0], tick)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(_tick(LEFT - 8, y + 4, "end", plot.up.number(tick)))
    for tick in plot.across.ticks(*plot.xs):
        x = plot.at(tick, plot.ys[0])[0]
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(_tick(x, bottom + 16, "middle", plot.across.number(tick)))
    middle, centre = (LEFT + right) / 2, (TOP + bottom) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escape(plot.across.title)}</text>"
    )
    parts.append(
        f'<text transform="translate(14 {centre}) rotate(-90)" text-anchor="middle">'
        f"{escape(plot.up.title)}</text>"
    )
    return parts


def _tick(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'


def _svg_line(one: ChartSeries, colour: int, plot: PlotArea) -> list[str]:
    places = [plot.at(*point) for point in one.points]
    path = " ".join(f"{x},{y}" for x, y in places)
    dash = " dashed" if one.dashed else ""
    parts = [f'<polyline class="line s{colour}{dash}" points="{path}"/>']
    if one.marked:
        for (x, y), (real_x, real_y) in zip(places, one.points, strict=True):
            said = escape(f"{one.name}: {plot.across.number(real_x)}, {real_y:,.4g}")
            parts.append(
                f'<circle class="dot s{colour}" cx="{x}" cy="{y}" r="4">'
                f"<title>{said}</title></circle>"
            )
    return parts


def _legend(drawn: Sequence[ChartSeries], x: int) -> list[str]:
    parts = []
    for place, one in enumerate(drawn):
        y = TOP + 12 + 20 * place
        dash = " dashed" if one.dashed else ""
        parts.append(
            f'<line class="line s{place % COLOURS}{dash}" x1="{x}" x2="{x + 16}" y1="{y}"'
            f' y2="{y}"/><text x="{x + 22}" y="{y + 4}">{escape(one.name)}</text>'
        )
    return parts
