"""The colours of everything that we put on paper or screen, each in a light and a dark variant. No units.

Okabe and Ito's hues, in shades of which each stands out from its own background at 3:1 or better (WCAG 2.1, non-text contrast), and of which the
first six stay apart with any kind of colour vision. Words in a colour of their own (`ok`, `warn`, `bad`, `accent`, `soft`) keep 4.5:1.
tests/report/test_palette.py measures all of this; a shade that is changed has to pass there.
"""

from __future__ import annotations

from typing import NamedTuple


class Shade(NamedTuple):
    """One colour as it is on light paper (and in print) and on dark."""

    light: str
    dark: str


class Slot(NamedTuple):
    """How a series is drawn: the same everywhere for the same number."""

    light: str
    dark: str
    dash: str
    """SVG dash pattern, which tells lines apart without colour; empty for a whole line."""


SERIES: tuple[Slot, ...] = (
    Slot("#0072b2", "#4487dc", ""),  # blue
    Slot("#c9501c", "#ea4a1f", "7 3"),  # vermillion
    Slot("#0e6838", "#0fc28a", "2 3"),  # green
    Slot("#b8609a", "#bd72ab", "9 3 2 3"),  # purple
    Slot("#c78001", "#fda51a", "4 4"),  # orange
    Slot("#119bc8", "#a6d0fd", "12 4"),  # sky
    Slot("#5f6462", "#cdd1d0", "1 4"),  # grey
    Slot("#6b4300", "#bda555", "6 2 1 2"),  # brown
)

PAPER = Shade("#ffffff", "#15181c")
#: Panels, code, rows that stand out.
MARK = Shade("#f3f6fa", "#1f252c")
INK = Shade("#1a1a1a", "#e8e8e8")
#: Words of second rank: axis numbers, notes.
SOFT = Shade("#5a5f66", "#a8adb3")
RULE = Shade("#d8dade", "#343a41")
#: Links, and what can be pressed.
ACCENT = Shade("#0b68a8", "#7db4f5")

OK = Shade("#0b6b3a", "#3ecf8e")
WARN = Shade("#966300", "#f0b429")
BAD = Shade("#a01a12", "#ff7b72")

#: Kinds of KV blocks. VIPs are warm and free users cool; what works is full, what loads is bright, what idles is faint.
KV: dict[str, Shade] = {
    "active-vip": Shade("#c9501c", "#ea4a1f"),
    "active-free": Shade("#0072b2", "#4487dc"),
    "loading-vip": Shade("#e69f00", "#fdb73a"),
    "loading-free": Shade("#56b4e9", "#a6d0fd"),
    "idle-vip": Shade("#f3d3b8", "#5e3a24"),
    "idle-free": Shade("#c3dcee", "#22425f"),
    "leaving": Shade("#82878c", "#9a9fa5"),
    "unused": MARK,
}
#: Shares of one colour, as in a heat map: a cell's opacity is its share. Numbers stand on it in `heat-low`, and from HEAT_TURN on in `heat-high`.
HEAT = Shade("#005a8c", "#2a63b0")
HEAT_LOW = Shade("#000000", "#ffffff")
HEAT_HIGH = Shade("#ffffff", "#ffffff")
HEAT_TURN = 0.79
#: Tiers of users, in charts.
TIERS: dict[str, Shade] = {"vip": KV["active-vip"], "free": KV["active-free"]}


def named() -> dict[str, Shade]:
    """Every colour by the name of its CSS custom property, without the dashes in front."""
    found = {
        "paper": PAPER, "ink": INK, "soft": SOFT, "rule": RULE, "mark": MARK, "accent": ACCENT, "ok": OK, "warn": WARN, "bad": BAD,
        "heat": HEAT, "heat-low": HEAT_LOW, "heat-high": HEAT_HIGH,
    }  # fmt: skip
    found |= {f"series-{i}": Shade(slot.light, slot.dark) for i, slot in enumerate(SERIES)}
    found |= {f"kv-{kind}": shade for kind, shade in KV.items()}
    return found | {f"tier-{tier}": shade for tier, shade in TIERS.items()}


def dash(index: int) -> str:
    """Dash pattern of a series. After the last colour they begin anew, and each colour then has the pattern of the next."""
    return SERIES[(index + index // len(SERIES)) % len(SERIES)].dash


def colour(index: int) -> str:
    """CSS colour of a series, which follows the page's theme: `var(--series-3)`."""
    return f"var(--series-{index % len(SERIES)})"
