"""vLLM's server as a backend: started with a scheduler class of ours that makes batch cap and token budget live, or adopted where it runs.

It batches, queues and preempts by itself; its figures are scraped. An adopted one is live too if it was started with the same scheduler class
and its control file is named.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from inferencegym.ground.errors import ConfigError
from inferencegym.runtime.backends import vllm_scheduler
from inferencegym.runtime.backends.managed import Managed, full_command
from inferencegym.runtime.backends.vllm_scheduler import CONTROL_VARIABLE
from inferencegym.runtime.ports import Load

#: vLLM's own default of --max-num-seqs differs by GPU; this one is said to it, so that both sides know it.
SEATS = 64
_MODULE = "inferencegym_vllm_scheduler"
_QUIET = {
    "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PROMETHEUS_DISABLE_CREATED_SERIES": "True",
}  # fmt: skip


class Vllm(Managed):
    """A vLLM server; `max_num_seqs` requests side by side."""

    def __init__(
        self, name: str, *, model: str, model_path: str = "", max_num_seqs: int | None = None, gpu_memory_utilization: float | None = None,
        max_model_len: int | None = None, control_file: str = "", command: Sequence[str] = (), environ: Mapping[str, str] | None = None, **more: Any,
    ) -> None:  # fmt: skip
        """`model_path`: folder or hub name, `model` if empty; `environ`: what the process gets beside our own variables (None: nothing)."""
        self._folder = Path(tempfile.mkdtemp(prefix="inferencegym-vllm-"))
        adopt = bool(more.get("adopt"))
        self.control_file = Path(control_file) if control_file else None if adopt else self._folder / "control.json"
        super().__init__(
            name, model=model, seats=max_num_seqs or SEATS, environ={**(environ or {}), **self._variables(environ or {}, model_path or model)},
            max_model_len=max_model_len, log=self._folder / f"{name}.log", **more,
        )  # fmt: skip
        self._model_path, self._gpu_memory_utilization = model_path or model, gpu_memory_utilization
        self._most_tokens, self._asked_len = 0, max_model_len
        self._limits: dict[str, int] = {}
        self._program = tuple(command) if command or adopt else find_program(name)

    def _variables(self, environ: Mapping[str, str], model_path: str) -> dict[str, str]:
        """Our scheduler is found through PYTHONPATH, in a folder where it is alone: its neighbours here have the names of packages."""
        path = os.pathsep.join(part for part in (str(self._folder), environ.get("PYTHONPATH", "")) if part)
        offline = {"HF_HUB_OFFLINE": "1"} if Path(model_path).is_dir() else {}
        return _QUIET | offline | {"PYTHONPATH": path, CONTROL_VARIABLE: str(self.control_file)}

    def command(self) -> list[str]:
        """The arguments of vLLM; `vllm serve` as well as a Python that has vLLM can be given them."""
        shutil.copyfile(vllm_scheduler.__file__, self._folder / f"{_MODULE}.py")
        arguments = [
            "--model", self._model_path, "--served-model-name", *dict.fromkeys((self.model, *self.models)),
            "--host", str(self.root.host), "--port", str(self.root.port), "--max-num-seqs", str(self.seats),
            "--scheduler-cls", f"{_MODULE}.LiveScheduler", "--enable-prompt-tokens-details",
        ]  # fmt: skip
        if self._asked_len is not None:
            arguments += ["--max-model-len", str(self._asked_len)]
        if self._gpu_memory_utilization is not None:
            arguments += ["--gpu-memory-utilization", str(self._gpu_memory_utilization)]
        return full_command(self._program, ("-m", "vllm.entrypoints.openai.api_server"), arguments)

    async def learn(self) -> None:
        """The longest context, as the list of models says; the limits that were set before a restart hold again."""
        listed = await self.get_json(self.base / "models")
        lengths = [one["max_model_len"] for one in listed.get("data", []) if isinstance(one.get("max_model_len"), int)]
        if lengths:
            self.max_model_len = min(lengths)
        if self.process is not None:
            self._write()

    def load(self) -> Load:
        """Seats, queue, KV memory and preemptions, as it says."""
        return Load(
            running=self.figure("vllm:num_requests_running"),
            waiting=self.figure("vllm:num_requests_waiting"),
            kv_used_fraction=self.figure("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
            preemptions=self.figure("vllm:num_preemptions_total", "vllm:num_preemptions"),
            more={
                name.removeprefix("vllm:"): value for name, value in self.figures.items() if name.startswith("vllm:")
            },
        )

    def apply(self, knobs: Mapping[str, object]) -> Mapping[str, str]:
        """`batch_cap` and `token_budget` (tokens of a step), live; beyond what it was started with they are refused."""
        refused = {
            name: f"{self.name} has no knob '{name}'; known: batch_cap, token_budget"
            for name in knobs
            if name not in ("batch_cap", "token_budget")
        }
        wanted = dict(self._limits)
        for name, field, most in (("batch_cap", "max_running", self.seats), ("token_budget", "max_tokens", None)):
            if name not in knobs:
                continue
            value, problem = self._cap(knobs[name])
            if not problem and self.control_file is None:
                problem = f"{self.name} was adopted, and no control file of its scheduler is named"
            if not problem and most is not None and value > most:
                problem = f"{self.name} was started with {most} seats (--max-num-seqs)"
            if problem:
                refused[name] = problem
            else:
                wanted[field] = value
        if wanted != self._limits:
            self._limits = wanted
            self._write()
            self.native_concurrency = wanted.get("max_running", self.seats)
            self.on_change(True, "")
        return refused

    def _write(self) -> None:
        """The control file, whole or not at all."""
        assert self.control_file is not None, "without a control file there are no limits"
        part = self.control_file.with_suffix(".part")
        part.write_text(json.dumps(self._limits))
        part.replace(self.control_file)

    async def stop(self) -> None:
        """End it; the log stays where an error has named it."""
        await super().stop()
        (self._folder / f"{_MODULE}.py").unlink(missing_ok=True)


def find_program(name: str) -> tuple[str, ...]:
    """The Python of this process if it has vLLM, else `vllm serve` on the path. ConfigError that says what to set."""
    if find_spec("vllm") is not None:
        return (sys.executable,)
    if (found := shutil.which("vllm")) is not None:
        return (found, "serve")
    raise ConfigError(
        f"backends.{name}.command", "vLLM is not installed here",
        allowed="the Python of an environment that has vllm, or a vllm server to adopt at url",
    )  # fmt: skip
