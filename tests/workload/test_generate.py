"""Generated workloads: repeatable, at the asked rate and size, with the laws, sessions, tenants and classes asked
for.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from inferencegym.ground.errors import ConfigError, InferenceGymError, InputError, UnknownNameError
from inferencegym.workload import benchmark_sessions, generate, names
from inferencegym.workload.describe import dispersion
from inferencegym.workload.generate import mean_rate_rps, resolve
from inferencegym.workload.prefixes import endless_cache
from inferencegym.workload.read import FORMATS
from inferencegym.workload.spec import GapLaw, LengthLaw, RateShape, check, dump, load


def described(**traffic):
    lengths = {"law": "fixed", "prompt_tokens": 10, "output_tokens": 5}
    return {"name": "test", "traffic": [{"rate_rps": 10.0, "lengths": lengths} | traffic]}


GAPS = [{"law": "poisson"}, {"law": "gamma", "cv": 3.0}, {"law": "weibull", "shape": 0.6}, {"law": "even"}]
SHAPES = [
    {"shape": "hours", "levels": [1, 2] * 12},
    {"shape": "replay", "every_s": 60.0, "levels": [3, 0, 1]},
    {"shape": "wander", "every_s": 60.0, "gamma_shape": 5.0, "memory": 0.5},
    {"shape": "on_off", "on_s": 20.0, "off_s": 60.0, "quiet": 0.1},
    {"shape": "spikes", "every_s": 300.0, "lasting_s": 20.0, "factor": 8.0},
    {"shape": "sine", "period_s": 600.0, "amplitude": 0.9},
]


@given(
    gaps=st.sampled_from(GAPS),
    shapes=st.lists(st.sampled_from(SHAPES), max_size=2),
    seed=st.integers(0, 1000),
    requests=st.integers(1, 500),
)
def test_the_same_seed_gives_the_same_requests_as_many_as_asked(gaps, shapes, seed, requests):
    what = described(gaps=gaps, rate=shapes)
    one, two = generate(what, seed=seed, requests=requests), generate(what, seed=seed, requests=requests)
    assert one.digest() == two.digest()
    assert len(one) == requests
    assert (np.diff(one.arrival_s) >= 0).all()


@pytest.mark.parametrize("gaps", GAPS, ids=lambda law: law["law"])
@pytest.mark.parametrize("shape", [None, *SHAPES], ids=lambda shape: shape and shape["shape"])
def test_the_mean_rate_holds_whatever_the_pattern(gaps, shape):
    day_s = 86_400.0 * 2
    w = generate(described(gaps=gaps, rate=[shape] if shape else []), seed=1, duration_s=day_s)
    # Random levels and bursts average out slowly.
    assert len(w) / day_s == pytest.approx(10.0, rel=0.05)
    assert w.arrival_s[-1] < day_s


@pytest.mark.parametrize(
    ("gaps", "law"),
    [
        ({"law": "poisson"}, stats.expon(scale=0.1)),
        ({"law": "gamma", "cv": 2.0}, stats.gamma(0.25, scale=0.4)),
        ({"law": "weibull", "shape": 0.5}, stats.weibull_min(0.5, scale=0.05)),
    ],
    ids=lambda value: value["law"] if isinstance(value, dict) else "",
)
def test_gaps_follow_their_law(gaps, law):
    w = generate(described(gaps=gaps), seed=3, requests=20_000)
    assert stats.kstest(np.diff(w.arrival_s), law.cdf).pvalue > 0.001


def test_a_moving_rate_of_poisson_arrivals_is_poisson_in_each_piece():
    levels = [1.0, 0.0, 3.0]
    w = generate(described(rate=[{"shape": "replay", "every_s": 100.0, "levels": levels}]), seed=5, duration_s=30_000)
    piece = (w.arrival_s // 100).astype(int) % 3
    counts = np.bincount(piece, minlength=3)
    assert counts[1] == 0
    np.testing.assert_allclose(counts[[0, 2]] / 100 / 100, [7.5, 22.5], rtol=0.03)
    inside = w.arrival_s[piece == 2] % 100
    assert stats.kstest(inside / 100, "uniform").pvalue > 0.001


def test_spikes_and_bursts_raise_the_variance_of_counts():
    calm = dispersion(generate(described(), seed=2, duration_s=50_000).arrival_s, 10.0)
    assert calm == pytest.approx(1.0, abs=0.1)
    for shape in SHAPES[3:5]:
        assert dispersion(generate(described(rate=[shape]), seed=2, duration_s=50_000).arrival_s, 10.0) > 5


def test_changing_lengths_moves_no_arrival():
    one = generate(described(), seed=4, requests=200)
    two = generate(
        described(lengths={"law": "uniform", "prompt_tokens": [1, 99], "output_tokens": [1, 9]}), seed=4, requests=200
    )
    assert (one.arrival_s == two.arrival_s).all()
    assert set(two.prompt_tokens.tolist()) <= set(range(1, 100))


def test_lognormal_lengths_have_their_medians_and_correlation():
    law = {
        "law": "lognormal", "prompt_median": 500.0, "prompt_sigma": 1.0, "output_median": 100.0, "output_sigma": 0.5,
        "correlation": 0.6, "most_prompt_tokens": 1_000_000, "most_output_tokens": 100_000,
    }  # fmt: skip
    w = generate(described(lengths=law), seed=6, requests=20_000)
    assert np.median(w.prompt_tokens) == pytest.approx(500, rel=0.03)
    assert np.log(w.output_tokens).std() == pytest.approx(0.5, rel=0.03)
    assert np.corrcoef(np.log(w.prompt_tokens), np.log(w.output_tokens))[0, 1] == pytest.approx(0.6, abs=0.02)
    tight = generate(described(lengths=law | {"most_prompt_tokens": 300}), seed=6, requests=2_000)
    assert tight.prompt_tokens.max() <= 300
    assert (tight.prompt_tokens == 300).mean() < 0.02, "long draws are drawn again, not piled up at the limit"
    with pytest.raises(ConfigError, match="fewer than 1 %"):
        generate(described(lengths=law | {"most_prompt_tokens": 5}), seed=6, requests=2_000)


def test_a_single_row_of_output_quantiles_may_correlate_by_a_copula():
    grid = {
        "law": "grid",
        "prompt_probs": [0, 1],
        "prompt_q": [1, 1000],
        "output_probs": [0, 1],
        "output_q": [[1, 1000]],
    }
    plain = generate(described(lengths=grid), seed=1, requests=5_000)
    tied = generate(described(lengths=grid | {"correlation": 0.8}), seed=1, requests=5_000)
    assert abs(stats.spearmanr(plain.prompt_tokens, plain.output_tokens)[0]) < 0.05
    assert stats.spearmanr(tied.prompt_tokens, tied.output_tokens)[0] == pytest.approx(0.786, abs=0.03)


# --- sessions ---------------------------------------------------------------------------------------------------------


def chat(**sessions):
    lengths = {"law": "uniform", "prompt_tokens": [5, 40], "output_tokens": [5, 60]}
    held = {"mean_turns": 4.0, "system_prompts": 3, "system_tokens": 40, "block_tokens": 16, "most_context_tokens": 600}
    return described(lengths=lengths, sessions=held | sessions)


@pytest.mark.parametrize("closed_loop", [True, False])
def test_every_turn_resends_what_was_said_and_shares_its_prefix(closed_loop):
    w = generate(chat(closed_loop=closed_loop), seed=2, requests=3_000)
    for session in np.unique(w.session_id)[:200]:
        rows = np.flatnonzero(w.session_id == session)
        said = w.prompt_tokens[rows] + w.output_tokens[rows]
        assert (said <= 600).all()
        assert (w.prompt_tokens[rows[1:]] > said[:-1]).all()
        assert w.after[rows].tolist() == ([-1, *rows[:-1]] if closed_loop else [-1] * len(rows))
        for earlier, later, tokens in zip(rows, rows[1:], said, strict=False):
            full = tokens // 16
            assert len(w.prefix_of(earlier)) == full
            assert w.prefix_of(later)[:full].tolist() == w.prefix_of(earlier).tolist()


def test_conversations_share_their_system_prompt_and_nothing_else():
    w = generate(chat(), seed=2, requests=2_000)
    first = {session: w.prefix_of(int(np.argmax(w.session_id == session))) for session in np.unique(w.session_id)}
    shared_blocks = 40 // 16
    starts = {tuple(ids[:shared_blocks]) for ids in first.values()}
    assert len(starts) == 3
    own = [ids[shared_blocks:] for ids in first.values()]
    assert len(np.unique(np.concatenate(own))) == sum(len(ids) for ids in own)


def test_turns_have_the_asked_mean_and_the_rate_is_that_of_requests():
    w = generate(chat(most_context_tokens=1_000_000), seed=3, duration_s=20_000)
    turns = np.bincount(w.session_id)
    assert turns[turns > 0].mean() == pytest.approx(4.0, rel=0.05)
    assert w.rate_rps == pytest.approx(10.0, rel=0.05)


def test_the_benchmark_has_everything_in_it():
    w = generate(benchmark_sessions(20.0), seed=1, requests=5_000)
    assert set(np.unique(w.priority)) == {0, 1, 2}
    assert endless_cache(w).hit_rate_tokens > 0.5
    assert (w.after >= 0).mean() > 0.5


# --- labels -----------------------------------------------------------------------------------------------------------


def test_tenants_and_classes_have_their_shares_and_a_session_has_one_of_each():
    traffic = chat()["traffic"][0] | {
        "tenants": [{"name": "big", "share": 3}, {"name": "small", "share": 1}],
        "classes": [{"name": "gold", "priority": 0}, {"name": "lead", "priority": 5, "share": 4}],
    }
    w = generate({"name": "test", "traffic": [traffic]}, seed=1, requests=20_000)
    assert (w.tenant == 0).mean() == pytest.approx(0.75, abs=0.03)
    assert (w.slo_class == 0).mean() == pytest.approx(0.2, abs=0.03)
    assert (w.priority == np.where(w.slo_class == 0, 0, 5)).all()
    for session in np.unique(w.session_id)[:100]:
        assert len(np.unique(w.tenant[w.session_id == session])) == 1


def test_streams_of_traffic_are_laid_over_each_other():
    both = described(kind="chat")
    both["traffic"].append(described(kind="code", rate_rps=30.0)["traffic"][0])
    w = generate(both, seed=1, duration_s=1_000)
    assert w.kind_names == ("chat", "code")
    np.testing.assert_allclose(np.bincount(w.kind) / 1000, [10, 30], rtol=0.1)
    assert generate(both, seed=1, requests=10_000, rate_rps=4.0).rate_rps == pytest.approx(4.0, rel=0.05)


def test_a_budget_cuts_answers_and_a_failed_share_fails():
    w = generate(described(output_budget_tokens=3, failed_share=0.25), seed=1, requests=5_000)
    assert set(w.output_tokens.tolist()) == {0, 3}
    assert (w.output_tokens == 0).mean() == pytest.approx(0.25, abs=0.03)
    assert (w.prompt_tokens[w.output_tokens == 0] == 0).all()


# --- what is asked for
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"duration_s": 10, "requests": 10},
        {"duration_s": 0},
        {"requests": 0},
        {"requests": 10, "rate_rps": 0},
        {"requests": 10, "rate_scale": -1},
        {"requests": 10, "rate_rps": 1, "rate_scale": 1},
        {"requests": 10, "arrivals": "sometimes"},
        {"duration_s": 1e9},
    ],
)
def test_what_cannot_be_drawn_is_said(asked):
    with pytest.raises(ConfigError, match="allowed"):
        generate("azure-conversation", **asked)


def test_other_arrivals_keep_rate_and_lengths():
    plain = generate("azure-code", seed=1, requests=20_000, arrivals="poisson")
    assert plain.rate_rps == pytest.approx(mean_rate_rps(resolve("azure-code")), rel=0.03)
    assert dispersion(plain.arrival_s, 60.0) < 2
    assert plain.prompt_tokens.tolist() == generate("azure-code", seed=1, requests=20_000).prompt_tokens.tolist()


@pytest.mark.parametrize("ending", ["json", "toml"])
def test_a_description_can_be_a_file(tmp_path, ending):
    path = tmp_path / f"mine.{ending}"
    if ending == "json":
        path.write_text(json.dumps(described()))
    else:
        path.write_text(
            'name = "test"\n[[traffic]]\nrate_rps = 10.0\n'
            'lengths = {law = "fixed", prompt_tokens = 10, output_tokens = 5}\n'
        )
    assert generate(path, requests=5).digest() == generate(described(), requests=5).digest()
    assert load(path) == check(described())


def test_a_shipped_description_survives_writing_and_reading(tmp_path):
    for name in names():
        path = tmp_path / f"{name}.json"
        path.write_text(dump(resolve(name)))
        assert load(path) == resolve(name)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="Did you mean 'azure-code'"):
        generate("azure-cod", requests=1)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"rate_rps": -1.0}, r"traffic\[0\]\.rate_rps"),
        ({"speed": 1.0}, "speed"),
        ({"lengths": {"law": "guess"}}, "lengths"),
        ({"gaps": {"law": "gamma"}}, "gaps"),
        ({"rate_rps": None}, "rate_rps"),
        ({"rate": [{"shape": "hours", "levels": [1, 2]}]}, "levels"),
        ({"rate": [{"shape": "replay", "every_s": 1, "levels": [0, 0]}]}, "levels"),
        ({"lengths": {"law": "uniform", "prompt_tokens": [9, 1], "output_tokens": [1, 2]}}, "prompt_tokens"),
        (
            {
                "lengths": {
                    "law": "grid",
                    "prompt_probs": [0, 1],
                    "prompt_q": [5, 1],
                    "output_probs": [0, 1],
                    "output_q": [[1, 1]],
                }
            },
            "prompt_q",
        ),
        (
            {"gaps": {"law": "copula", "probs": [0, 1], "gap_q_s": [1, 2], "weights": [0.9, 0.9], "phis": [0, 0]}},
            "weights",
        ),
        ({"sessions": {"mean_turns": 2.0}, "failed_share": 0.1}, "sessions"),
    ],
)
def test_a_wrong_description_names_the_field(change, place, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(described(**change)))
    with pytest.raises(InferenceGymError, match=place):
        load(path)


@given(
    st.recursive(
        st.one_of(st.none(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=4,
    ),
    st.sampled_from(["rate_rps", "gaps", "lengths", "rate", "sessions", "mix", "classes"]),
)
def test_no_value_breaks_the_check(value, field):
    raw = described(**{field: value})
    said = ""
    try:
        check(raw)
    except InferenceGymError as error:
        said = str(error)
    assert "\n" not in said


def test_a_file_that_is_no_description(tmp_path):
    for content in (b"", b"{", b"\xff", b'{"format": "other"}', b"[]"):
        path = tmp_path / "x.json"
        path.write_bytes(content)
        with pytest.raises(InputError) as told:
            load(path)
        assert told.value.file == str(path)
    assert msgspec.json.decode(dump(check(described())))["name"] == "test"


DOCS = Path(__file__).resolve().parents[2] / "docs" / "workloads.md"


def test_the_description_in_the_docs_generates():
    found = re.search(r"```toml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    w = generate(tomllib.loads(found.group(1)), duration_s=86_400.0, seed=1)
    assert w.rate_rps == pytest.approx(5.0, rel=0.1)


def test_the_docs_name_every_law_shape_format_and_description():
    page = DOCS.read_text(encoding="utf-8")
    laws = [part.__struct_config__.tag for union in (GapLaw, RateShape, LengthLaw) for part in get_args(union)]
    assert [word for word in (*laws, *FORMATS, *names()) if f"`{word}`" not in page] == []
