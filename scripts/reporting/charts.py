"""Line charts as inline SVG; colours come from the page's style sheet by class, so they follow light and dark."""

import math
from html import escape

WIDTH, HEIGHT = 380, 226
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 14, 38


def ticks(low, high, count=4):
    """Round values, at least two, that cover [low, high]."""
    if high - low < 1e-9:
        low, high = low - (0.1 * abs(low) or 0.5), high + (0.1 * abs(high) or 0.5)
    span = high - low
    step = 10 ** math.floor(math.log10(span / count))
    step *= min((m for m in (1, 2, 2.5, 5, 10) if span / (step * m) <= count), default=10)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def label(value, step):
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step < 1 else 0
    if abs(step * 10**digits - round(step * 10**digits)) > 1e-6:
        digits += 1
    return f"{value:.{digits}f}"


class Series:
    """A line: its style class, its name, and its points (x, y), y None where there is no value.

    dash: "", "dashed" or "dotted"; area: whether the ground under it is shaded.
    """

    def __init__(self, style, name, points, dash="", area=False):
        self.style, self.name, self.dash, self.area = style, name, dash, area
        self.points = [(x, y) for x, y in points if y is not None]


def line_chart(title, y_title, x_title, series, bounds=None, x_labels=None, bands=(), zero=False):
    """The chart, or an empty string without points.

    bounds: (low, high) of the y axis, else from the data; x_labels: {x: text} of the ticks of the x axis;
    bands: (from x, to x, text) to shade alternately; zero: the y axis starts at 0.
    """
    series = [s for s in series if s.points]
    if not series:
        return ""
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points]
    low, high = bounds or (min(ys), max(ys))
    if zero:
        low = min(0.0, low)
    y_ticks = ticks(low, high)
    low, high = min(y_ticks[0], low), max(y_ticks[-1], high)
    x_low, x_high = min(xs), max(xs)
    if bands:
        x_low, x_high = min(b[0] for b in bands), max(b[1] for b in bands)
    if x_high == x_low:
        x_low, x_high = x_low - 0.5, x_high + 0.5

    def px(x):
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def py(y):
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    out = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for i, (start, end, text) in enumerate(bands):
        out.append(f'<rect class="band{i % 2}" x="{px(start):.1f}" y="{TOP}" width="{px(end) - px(start):.1f}" '
                   f'height="{HEIGHT - TOP - BOTTOM}"/>')
        out.append(f'<text class="tick middle" x="{px((start + end) / 2):.1f}" y="{TOP - 3}">{escape(text)}</text>')
    step = y_ticks[1] - y_ticks[0]
    for value in y_ticks:
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(value):.1f}" y2="{py(value):.1f}"/>')
        out.append(f'<text class="tick end" x="{LEFT - 6}" y="{py(value) + 3.5:.1f}">{label(value, step)}</text>')
    for x, text in (x_labels or {}).items():
        out.append(f'<text class="tick middle" x="{px(x):.1f}" y="{HEIGHT - BOTTOM + 14}">{escape(text)}</text>')
    centre, middle = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    out.append(f'<text class="axis middle" x="{centre:.0f}" y="{HEIGHT - 5}">{escape(x_title)}</text>')
    out.append(f'<text class="axis middle" transform="translate(11 {middle:.0f}) rotate(-90)">{escape(y_title)}</text>')
    for s in series:
        out.append(_line(s, px, py, py(max(low, 0.0)), (x_labels or {})))
    out.append("</svg>")
    return "".join(out)


def _line(series, px, py, floor, names):
    at = [(px(x), py(y)) for x, y in series.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    out = [f'<g class="{series.style}">']
    if series.area:
        out.append(f'<polygon class="area" points="{at[0][0]:.1f},{floor:.1f} {path} {at[-1][0]:.1f},{floor:.1f}"/>')
    out.append(f'<polyline class="line {series.dash}" points="{path}"/>')
    radius = 2.4 if len(at) > 1 else 3.6
    for (x, y), (epoch, value) in zip(at, series.points):
        text = f"{series.name}, epoch {names.get(epoch, f'{epoch:g}')}: {value:.3f}"
        # The wide invisible circle is what the pointer finds.
        out.append(f'<g><title>{escape(text)}</title><circle class="hit" cx="{x:.1f}" cy="{y:.1f}" r="8"/>'
                   f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/></g>')
    out.append("</g>")
    return "".join(out)


def legend(entries):
    """[(style class, name, dash)] as a row of swatches."""
    items = "".join(f'<span class="key {style}"><i class="swatch {dash}"></i>{escape(name)}</span>'
                    for style, name, dash in entries)
    return f'<p class="legend">{items}</p>'
