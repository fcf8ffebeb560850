"""A scheduler class for vLLM (`--scheduler-cls`) whose seats and token budget can be changed while it runs, through a control file.

It is copied to where vLLM's Python finds it and may import nothing of this package; vLLM itself is imported only when a scheduler is made.
vLLM says that its scheduler's interface is not public: written for and tried with 0.32.0.
"""

from __future__ import annotations

import json
import os
from importlib import import_module
from typing import Any

#: The environment variable that names the control file: {"max_running": requests, "max_tokens": tokens of a step}, either may be missing.
CONTROL_VARIABLE = "INFERENCEGYM_VLLM_CONTROL"


class LiveLimits:
    """Before each step: if the file has changed, take its limits. What vLLM was started with is the most there can be."""

    _stamp_ns = -1

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """One step of vLLM, under the limits of now."""
        self.take_limits(os.environ.get(CONTROL_VARIABLE, ""))
        return super().schedule(*args, **kwargs)  # type: ignore[misc]

    def take_limits(self, path: str) -> None:
        """Read the file if it is new; one that is not there, half written or out of range leaves everything as it is."""
        try:
            stamp_ns = os.stat(path).st_mtime_ns
            if stamp_ns == self._stamp_ns:
                return
            with open(path, encoding="utf-8") as file:
                limits = json.load(file)
            config = self.scheduler_config  # type: ignore[attr-defined]
            running, tokens = (
                limits.get("max_running", config.max_num_seqs),
                limits.get("max_tokens", config.max_num_batched_tokens),
            )
            if not (1 <= running <= config.max_num_seqs and 1 <= tokens <= config.max_num_batched_tokens):
                return
        except (OSError, ValueError, TypeError, AttributeError):
            return
        self._stamp_ns = stamp_ns
        # The limit of *active* requests: the one of running requests is guarded by an assertion.
        self.max_num_active_reqs, self.max_num_scheduled_tokens = int(running), int(tokens)


class LiveScheduler:
    """Makes vLLM's own scheduler, the asynchronous one where vLLM wants that, with live limits."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """What vLLM calls; the arguments are its own."""
        config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
        kind = (
            ("async_scheduler", "AsyncScheduler")
            if config.scheduler_config.async_scheduling
            else ("scheduler", "Scheduler")
        )
        base = getattr(import_module(f"vllm.v1.core.sched.{kind[0]}"), kind[1])
        return type("LiveScheduler", (LiveLimits, base), {})(*args, **kwargs)
