#!/usr/bin/env bash
# Makes the leaderboard: enters what comes with the package (best static, best rule, model-predictive, learned), checks every entry on all its
# scenarios, and writes the tables in leaderboard/README.md, README.md and docs/leaderboard.md. Some minutes on two cores.
# Real traces are read from INFERENCEGYM_TRACE_DIR; entries of tasks whose trace is not there keep what was checked before, and it is said.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/python runs/leaderboard.py enter
.venv/bin/python runs/leaderboard.py check
.venv/bin/python runs/leaderboard.py table
