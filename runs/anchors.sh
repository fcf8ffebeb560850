#!/usr/bin/env bash
# Computes the ends of every grade's scale, and what stands between: random, do-nothing, every rule, the best setting that never changes,
# the model-predictive and the clairvoyant planner, on 50 test scenarios of every task. About two hours on two cores.
# Real traces are read from INFERENCEGYM_TRACE_DIR; tasks whose trace is not there are skipped, and said.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/python runs/anchors.py "$@"
