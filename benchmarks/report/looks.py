"""How methods look: colours by family, markers and dashes that tell forty methods apart."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable
from dataclasses import dataclass

from featemb.errors import ConfigError
from featemb.layer import MethodConfig
from featemb.spec import Spec, parse

# Okabe and Ito's palette (2008), readable with every kind of colour vision; black turns with the
# page. Enough for a small report; beyond it, the hue tells the family.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#8b8f97"
# What a method decides, in the order of a composition, and the hues (degrees) of its methods.
_HUES = {"address": (185.0, 310.0), "shape": (75.0, 165.0), "format": (-30.0, 45.0)}
TITLES = {
    "address": "which rows an id reads",
    "shape": "how many numbers a row has",
    "format": "in which format rows are stored",
    "other": "other",
}
_SYMBOLS = (
    "circle", "square", "triangle-up", "diamond", "triangle-down", "pentagon", "hexagon", "cross",
    "star-triangle-up", "hourglass", "bowtie",
)  # fmt: skip
_MARKERS = ("o", "s", "^", "D", "v", "p", "h", "P", "*", "X", "d")
_DASHES = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True)
class Look:
    """How a method is drawn.

    Attributes:
        family: what the method decides: address, shape, format or other.
        light: colour on a light page.
        dark: colour on a dark page.
        symbol: plotly's marker.
        marker: matplotlib's marker.
        dash: of the line.
    """

    family: str
    light: str
    dark: str
    symbol: str
    marker: str
    dash: str


def family_of(text: str) -> str:
    """Return what a method decides; a codec on a full table decides the format.

    A method that is not installed here is "other".
    """
    try:
        spec: Spec = parse(text)
    except ConfigError:
        return "other"
    method: MethodConfig = spec.method
    return "format" if spec.codec is not None and method.knob is None else method.axis


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """Return the looks of a report's methods, by family and then by name."""
    families: dict[str, list[str]] = {family: [] for family in TITLES}
    for method in sorted(set(methods)):
        families[family_of(method)].append(method)
    ordered = [(family, method) for family, members in families.items() for method in members]
    found = {}
    for number, (family, method) in enumerate(ordered):
        place = families[family].index(method)
        if len(ordered) <= len(PALETTE):
            light = PALETTE[number]
            dark = "#e8e8e8" if light == "#000000" else light
        else:
            light, dark = (_shade(family, place, len(families[family]), up) for up in (0.0, 0.22))
        found[method] = Look(
            family,
            light,
            dark,
            _SYMBOLS[number % len(_SYMBOLS)],
            _MARKERS[number % len(_MARKERS)],
            _DASHES[place // len(_SYMBOLS) % len(_DASHES)],
        )
    return found


def _shade(family: str, place: int, count: int, up: float) -> str:
    """Return one of a family's colours: neighbours differ in lightness too."""
    if family not in _HUES:
        return GREY
    low, high = _HUES[family]
    hue = (low + (high - low) * (place + 0.5) / count) % 360 / 360
    rgb = colorsys.hls_to_rgb(hue, (0.30, 0.52, 0.41)[place % 3] + up, 0.70)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)
