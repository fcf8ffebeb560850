"""Profile files: what is written is read back, shipped ones are sound, and a wrong one is refused with the field that is wrong."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from inferencegym.engine.profile import (
    Factors,
    Profile,
    check_speedup,
    load_profile,
    parse_profile,
    profile_names,
    write_profile,
)
from inferencegym.ground.errors import ConfigError, InputError, UnknownNameError
from inferencegym.ground.facts import gpus

SHARES = [name for name in Factors.__slots__ if name.endswith("_share")]


@pytest.mark.parametrize("name", profile_names())
def test_a_shipped_profile_survives_writing_and_reading(name: str) -> None:
    profile = load_profile(name)
    again = parse_profile(write_profile(profile), "again.toml")
    assert write_profile(again) == write_profile(profile)


@pytest.mark.parametrize("name", profile_names())
def test_a_shipped_profile_is_physical_and_says_how_far_to_trust_it(name: str) -> None:
    profile = load_profile(name)
    assert all(0 < getattr(profile.factors, share) <= 1 for share in SHARES)
    assert profile.fitted_on
    assert 0 < profile.error["mape"] < 0.5
    for points in profile.all_reduce.values():
        assert all(later[1] >= earlier[1] for earlier, later in itertools.pairwise(points))


@pytest.mark.parametrize("name", gpus())
def test_every_gpu_has_a_profile(name: str) -> None:
    assert load_profile(name).name == name


def test_the_band_is_wider_for_what_was_not_measured() -> None:
    h100 = load_profile("h100")
    assert h100.band("llama-3.1-8b") < h100.band("mistral-7b") < load_profile("mi300x").band("mistral-7b")
    assert load_profile("rtx-4090").band("llama-3.1-8b") > load_profile("rtx-pro-6000").band("llama-3.1-8b")


def test_an_unknown_profile_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"known: .*h100"):
        load_profile("h1000")


def test_a_weight_format_nobody_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no measured speed for nvfp4"):
        check_speedup(load_profile("h100"), "nvfp4")


HEAD = 'name = "x"\ntrust = "fitted"\nfitted_on = "nothing"\n'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[", "is not TOML"),
        ('name = "x"', "column 'fitted_on'"),
        (HEAD.replace("fitted", "guessed", 1), "neither 'fitted' nor 'borrowed'"),
        (HEAD + "speed = 1", "no place for"),
        (HEAD + "factors = 1", "column 'factors': is not a table"),
        (HEAD + "models = 1", "column 'models'"),
        (HEAD + "[factors]\nfast = 1", "column 'factors.fast': no such factor"),
        (HEAD + "[factors]\nhbm_share = 0", "column 'factors.hbm_share'"),
        (HEAD + "[factors]\nhbm_share = nan", "is not a number"),
        (HEAD + "[factors]\nlayer_s = -1e-6", "column 'factors.layer_s'"),
        (HEAD + "[error]\nmape = true", "column 'error.mape'"),
        (HEAD + "[all_reduce]\ntwo = [[1, 1]]", "column 'all_reduce.two'"),
        (HEAD + "[all_reduce]\n2 = []", "list of \\[bytes, seconds\\]"),
        (HEAD + "[all_reduce]\n2 = [[1, 1, 1]]", "not a pair"),
        (HEAD + "[all_reduce]\n2 = [[2, 1], [1, 2]]", "do not rise"),
        (HEAD + "[all_reduce]\n2 = [[1, 0]]", "not positive"),
        (HEAD + "[speedup]\nfp8 = 2", "not a pair"),
        (HEAD + "[affine]\nspeed = 2", "column 'affine.speed'"),
        (HEAD + "[affine]\nstep_s = -2", "is negative"),
        (HEAD + "[affine]\ndecode_s = -2", "less than nothing"),
        (HEAD + "[affine]\ndecode_s = [1]", "two entries"),
    ],
)
def test_a_wrong_profile_is_refused_with_file_and_field(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=complaint) as caught:
        load_profile(file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_profile(tmp_path / "nowhere.toml")


def test_changed_factors_leave_the_profile_as_it_was() -> None:
    profile = Profile("x", Factors(), "", "fitted", {})
    assert profile.with_factors(p=2.0).factors.p == 2.0
    assert profile.factors.p == 4.0
