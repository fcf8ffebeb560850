"""Colours that everybody can tell apart and read: contrast after WCAG 2.1, colour vision after Machado et al. (2009), distances in CIE Lab."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from inferencegym.report.palette import (
    ACCENT,
    BAD,
    HEAT,
    HEAT_HIGH,
    HEAT_LOW,
    HEAT_TURN,
    INK,
    KV,
    MARK,
    OK,
    PAPER,
    SERIES,
    SOFT,
    WARN,
    colour,
    dash,
    named,
)
from inferencegym.report.style import tokens

Floats = npt.NDArray[np.float64]

#: What is left of linear RGB at full severity, Machado, Oliveira and Fernandes 2009, table 1.
VISIONS: dict[str, list[list[float]]] = {
    "usual": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
#: Linear sRGB to CIE XYZ, D65 (IEC 61966-2-1).
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
THEMES = pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])


def linear(hexadecimal: str) -> Floats:
    """Light of a '#rrggbb'."""
    c = np.array([int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5)]) / 255.0
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG's ratio, 1 to 21."""
    low, high = sorted(float(XYZ[1] @ linear(c)) + 0.05 for c in (one, other))
    return high / low


def lab(light: Floats) -> Floats:
    """CIE L*a*b* of linear RGB."""
    t = (XYZ @ light) / XYZ.sum(axis=1)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def nearest(colours: list[str], vision: str) -> float:
    """Smallest distance of any two as that eye sees them; about 2.3 can just be noticed side by side."""
    seen = [lab(np.clip(np.array(VISIONS[vision]) @ linear(c), 0, 1)) for c in colours]
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))


def test_the_measures_know_the_ends() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0, abs=0.01)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # WebAIM's well-known "almost" grey
    assert lab(linear("#ffffff")) == pytest.approx([100, 0, 0], abs=0.01)
    assert nearest(["#ff0000", "#00b000"], "deuteranopia") < 0.6 * nearest(["#ff0000", "#00b000"], "usual")


@THEMES
def test_series_stand_out_from_their_background(theme: int) -> None:
    for i, slot in enumerate(SERIES):
        assert contrast(slot[theme], PAPER[theme]) >= 3.0, f"series {i}: {slot[theme]}"


@THEMES
def test_words_can_be_read_on_paper_and_on_marked_ground(theme: int) -> None:
    for shade in (INK, SOFT, ACCENT, OK, WARN, BAD):
        for ground in (PAPER, MARK):
            assert contrast(shade[theme], ground[theme]) >= 4.5, f"{shade[theme]} on {ground[theme]}"


@THEMES
@pytest.mark.parametrize("vision", VISIONS)
def test_the_first_six_series_stay_apart_with_any_colour_vision(theme: int, vision: str) -> None:
    assert nearest([slot[theme] for slot in SERIES[:6]], vision) >= 12.0


@THEMES
@pytest.mark.parametrize("vision", VISIONS)
def test_kinds_of_blocks_and_verdicts_stay_apart(theme: int, vision: str) -> None:
    assert nearest([shade[theme] for shade in KV.values()], vision) >= 12.0
    assert nearest([shade[theme] for shade in (OK, WARN, BAD)], vision) >= 10.0


@THEMES
@pytest.mark.parametrize("percent", range(0, 101, 5))
def test_numbers_can_be_read_on_every_cell_of_a_heat_map(theme: int, percent: int) -> None:
    share = percent / 100
    mixed = [
        round(share * int(HEAT[theme][i : i + 2], 16) + (1 - share) * int(PAPER[theme][i : i + 2], 16))
        for i in (1, 3, 5)
    ]
    words = HEAT_HIGH if share >= HEAT_TURN else HEAT_LOW
    assert contrast("#{:02x}{:02x}{:02x}".format(*mixed), words[theme]) >= 4.5


def test_a_line_keeps_its_colour_and_sixty_four_look_different() -> None:
    looks = [(colour(i), dash(i)) for i in range(64)]
    assert len(set(looks)) == 64
    assert colour(9) == colour(1) == "var(--series-1)"


def test_every_colour_is_named_in_light_and_dark() -> None:
    css = tokens()
    for name, (light, dark) in named().items():
        assert css.count(f"--{name}:") == 3
        assert f"--{name}:{light};" in css
        assert f"--{name}:{dark};" in css
