"""The Leaderboard section: the copy in the package is the leaderboard's, and what its rows lead to is there."""

from __future__ import annotations

import hashlib
import shlex

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from inferencegym.envs.actors import BEST_STATIC, LEARNED, PLANNERS
from inferencegym.envs.catalogue import task
from inferencegym.policies.catalogue import policy_names
from inferencegym.web.app import make_dashboard
from inferencegym.web.leaderboard import FILE, LeaderboardSection
from runs import leaderboard as made


@pytest.fixture(scope="module")
def client():
    dashboard = make_dashboard([LeaderboardSection()], server="env")
    with TestClient(Starlette(routes=[Mount("/dashboard", dashboard)])) as made_client:
        yield made_client


@pytest.fixture(scope="module")
def board(client):
    return client.get("/dashboard/api/leaderboard").json()


def test_package_readme_docs_and_entries_agree():
    found = made.table(made.FOLDER)
    assert FILE == made.PACKAGED
    assert made.packaged(found) == FILE.read_text(encoding="utf-8"), "type: python runs/leaderboard.py table"
    assert made.page(found) == (made.FOLDER / "README.md").read_text(encoding="utf-8")
    for file in made.BLOCKS:
        assert made.block(found) in file.read_text(encoding="utf-8")


def test_the_figures_are_those_of_the_page_in_the_repository(board):
    page = (made.FOLDER / "README.md").read_text(encoding="utf-8")
    rows = [(of["name"], one) for of in board["tasks"] for one in of["entries"]]
    assert len(rows) == len(made.entries(made.FOLDER))
    for name, one in rows:
        mean, low, high = one["x100"]
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert f"| {one['place'] or '-'} | {one['name']} | {mean:.1f} ({low:.1f} to {high:.1f}) | {one['scenarios']} |" in section  # fmt: skip


def test_a_row_leads_into_the_arena_with_policies_that_the_task_knows(board):
    for of in board["tasks"]:
        for one in of["entries"]:
            if one["plays"] != one["name"]:
                assert one["arena"] is None
                continue
            assert one["arena"]["task"] == of["name"]
            assert set(one["arena"]["policies"].split(",")) == {one["name"], "best-static"}
            surface = task(of["name"]).surface.name
            assert one["name"] in {*policy_names(surface), BEST_STATIC, LEARNED, *PLANNERS[surface]}


def test_the_weights_of_a_row_are_those_that_were_entered(client, board):
    entered = [(of["name"], one) for of in board["tasks"] for one in of["entries"] if one["weights"]]
    assert entered
    for _, one in entered:
        answer = client.get(f"/dashboard/api/{one['weights']}")
        assert hashlib.sha256(answer.content).hexdigest() == one["sha256"]


def test_no_other_file_is_given_away(client):
    for name in ("nothing", "..%2F..%2Fpyproject", "%2e%2e"):
        answer = client.get(f"/dashboard/api/leaderboard/{name}/weights")
        assert answer.status_code == 404
        assert answer.json()["error"]["message"]


def test_a_rows_command_plays_its_file_where_it_has_one(board):
    rows = {(of["name"], one["name"]): one for of in board["tasks"] for one in of["entries"]}
    taught = shlex.split(rows["azure_conversation", "taught"]["evaluate"])
    path = taught[taught.index("--policy") + 1].split(",")[0]
    assert (made.ROOT / path).is_file()
    assert (
        rows["hard", "sieve"]["evaluate"] == "inferencegym evaluate --policy sieve,best-static --task hard --seeds 50"
    )
