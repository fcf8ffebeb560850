#!/usr/bin/env bash
# Trains every task's policy with five seeds, chooses on validation scenarios, installs the chosen as src/inferencegym/policies/weights/TASK.npz,
# plays all of them on 50 test scenarios, and writes docs/results/learned.{json,md,svg}. Each training takes ten minutes of two cores at most, so
# all of it is a night's work; what is done is kept, a broken run goes on.
# Real traces are read from INFERENCEGYM_TRACE_DIR; tasks whose trace is not there are skipped, and said.
#   runs/train_all.sh --tasks bursty_workload,hard --seeds 5 --minutes 8
#   runs/train_all.sh --only-report
#   runs/train_all.sh --tasks azure_conversation --config runs/taught.toml --out out/taught --results docs/results/taught --no-install
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/python runs/train_all.py "$@"
