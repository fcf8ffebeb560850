"""Every error must say where, what is allowed, and what to type; and survive the way between processes."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path

import pytest

from inferencegym.ground import errors
from inferencegym.ground.errors import (
    ConfigError,
    InferenceGymError,
    InputError,
    MissingExtraError,
    OfflineError,
    UnknownNameError,
)

EXAMPLES = [
    InputError("not a number: 'abc'", file="trace.csv", row=17, column="prompt_tokens"),
    ConfigError("engine.max_num_seqs", "0 is too small", allowed="1..65536"),
    UnknownNameError("gpu", "h1000", ["a100", "h100"]),
    OfflineError("cannot reach example.org; the shipped description needs no network: --trace azure-code"),
    MissingExtraError("report", "A PNG plot"),
]


def test_every_error_of_the_tree_has_an_example_here():
    tree = {
        thing
        for _, thing in inspect.getmembers(errors, inspect.isclass)
        if issubclass(thing, InferenceGymError) and thing is not InferenceGymError
    }
    assert {type(error) for error in EXAMPLES} == tree


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_is_one_line_and_keeps_its_parts_through_pickle(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({}, "bad"),
        ({"file": Path("a/b.csv")}, "a/b.csv: bad"),
        ({"row": 3}, "row 3: bad"),
        ({"column": "x"}, "column 'x': bad"),
        ({"file": "b.csv", "row": 3, "column": "x"}, "b.csv: row 3, column 'x': bad"),
    ],
)
def test_input_error_names_the_place(place, message):
    assert str(InputError("bad", **place)) == message


def test_input_error_can_be_told_from_its_file_later():
    found = InputError("negative", row=2, column="prompt_tokens").in_file("trace.csv")
    assert str(found) == "trace.csv: row 2, column 'prompt_tokens': negative"
    assert (found.file, found.row, found.column) == ("trace.csv", 2, "prompt_tokens")


def test_unknown_name_lists_the_known_and_the_nearest():
    assert str(EXAMPLES[2]) == "Unknown gpu 'h1000'; known: a100, h100. Did you mean 'h100'?"
    assert "Did you mean" not in str(UnknownNameError("gpu", "zzz", ["a100", "h100"]))
    assert str(UnknownNameError("gpu", "a", [])) == "Unknown gpu 'a'; known: none."


def test_a_missing_extra_says_what_to_type():
    assert "pip install 'inferencegym[report]'" in str(EXAMPLES[4])


@pytest.mark.parametrize(
    ("error", "builtin"),
    list(zip(EXAMPLES, [ValueError, ValueError, LookupError, OSError, ImportError], strict=True)),
)
def test_errors_are_also_what_python_calls_them(error, builtin):
    assert isinstance(error, builtin)
