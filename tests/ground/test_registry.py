"""A registry gives back what was put in, by any of its names, and never loses a thing to another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencegym.ground.errors import ConfigError, UnknownNameError
from inferencegym.ground.registry import Registry

NAMES = st.text(st.characters(codec="ascii", categories=["Ll", "Nd"]), min_size=1, max_size=6)


@given(st.lists(NAMES, unique=True))
def test_what_goes_in_comes_out_in_order(names):
    registry: Registry[int] = Registry("gpu")
    for index, name in enumerate(names):
        assert registry.register(name, index) == index
    assert registry.names() == tuple(names)
    assert len(registry) == len(names)
    assert [registry.get(name.upper()) for name in names] == list(range(len(names)))


def test_aliases_find_a_thing_but_are_not_listed():
    registry: Registry[str] = Registry("gpu")
    registry.register("H100", "thing", "h100-sxm", "Hopper")
    assert registry.get("hopper") == registry.get("H100-SXM") == "thing"
    assert registry.names() == ("h100",)
    assert "hopper" in registry
    assert "a100" not in registry


@pytest.mark.parametrize("taken", ["h100", "H100", "hopper"])
def test_a_taken_name_is_refused_and_nothing_is_half_registered(taken):
    registry: Registry[str] = Registry("gpu")
    registry.register("h100", "old", "hopper")
    with pytest.raises(ConfigError, match="already taken"):
        registry.register("new", "new", taken)
    assert registry.get(taken) == "old"
    assert "new" not in registry


def test_an_unknown_name_says_what_is_known():
    registry: Registry[str] = Registry("gpu")
    registry.register("h100", "thing")
    with pytest.raises(UnknownNameError, match=r"Unknown gpu 'h10'; known: h100\. Did you mean 'h100'\?"):
        registry.get("h10")
