"""Time series as one plain SVG: panels below each other, with spans of time shaded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

WIDTH, HEIGHT, LEFT, GAP = 800, 150, 70, 45
COLOURS = ("#1f5fa8", "#c4501b", "#2c8a4b", "#7a4fa3", "#8a8a2c")


@dataclass(frozen=True)
class Panel:
    """Lines over the same seconds; the scale begins at zero."""

    title: str
    lines: Mapping[str, Sequence[float]]


def draw(
    path: Path, seconds: Sequence[float], panels: Sequence[Panel], *, spans: Mapping[str, tuple[float, float]]
) -> None:
    """Write the file; `spans` are labels with their first and last second."""
    height = len(panels) * (HEIGHT + GAP) + GAP
    body = [_rect(0, 0, "100%", "100%", "#fff")]
    for number, panel in enumerate(panels):
        body += _panel(panel, GAP + number * (HEIGHT + GAP), seconds, spans)
    size = f'width="{LEFT + WIDTH + 20}" height="{height}" font-family="sans-serif" font-size="12"'
    path.write_text("\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', *body, "</svg>\n"]))


def _panel(panel: Panel, top: int, seconds: Sequence[float], spans: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    longest = max(*seconds, 1e-9)
    highest = max((value for line in panel.lines.values() for value in line), default=0.0) or 1.0

    def x(at: float) -> float:
        return LEFT + WIDTH * at / longest

    def y(value: float) -> float:
        return top + HEIGHT * (1 - value / highest)

    for label, (first, last) in spans.items():
        yield _rect(x(first), top, f"{x(last) - x(first):.1f}", str(HEIGHT), "#eee")
        yield _text(x(first) + 4, top + 14, label, "#888")
    yield _text(LEFT, top - 8, panel.title, "#000")
    for share in (0, 0.5, 1):
        yield _text(LEFT - 6, y(share * highest) + 4, f"{share * highest:,.4g}", "#000", anchor="end")
        yield f'<path d="M{LEFT} {y(share * highest):.1f}h{WIDTH}" stroke="#ccc"/>'
    for share in (0, 0.25, 0.5, 0.75, 1):
        yield _text(x(share * longest), top + HEIGHT + 15, f"{share * longest:.0f} s", "#000", anchor="middle")
    for number, (name, values) in enumerate(panel.lines.items()):
        points = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in zip(seconds, values, strict=True))
        colour = COLOURS[number % len(COLOURS)]
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        yield _text(LEFT + WIDTH - 150 * (len(panel.lines) - number) + 60, top - 8, name, colour)


def _rect(x: float, y: float, width: str, height: str, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width}" height="{height}" fill="{colour}"/>'


def _text(x: float, y: float, text: str, colour: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}">{text}</text>'
