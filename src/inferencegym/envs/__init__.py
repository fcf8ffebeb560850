"""Environments: tasks, episodes, rewards and grades on the simulated plants, with Gymnasium's interface.

Importing this registers `inferencegym/LLMServe-v0` and `inferencegym/PagedKV-v0`.
"""

from __future__ import annotations

from inferencegym.envs.registration import register

register()
