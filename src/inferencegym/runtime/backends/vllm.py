"""vLLM's server as a backend: started with a scheduler class of ours that makes batch cap and token budget live, or adopted where it runs.

It batches, queues and preempts by itself; its figures are scraped. An adopted one is live too if it was started with the same scheduler class
and its control file is named.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from inferencegym.ground.errors import ConfigError
from inferencegym.runtime.backends import vllm_scheduler
from inferencegym.runtime.backends.managed import Managed, full_command
from inferencegym.runtime.backends.process import Folder
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
        self._folder, self._control_file, self._inherited = Folder(name), control_file, environ or {}
        super().__init__(
            name, model=model, seats=max_num_seqs or SEATS, environ=self._environ, max_model_len=max_model_len, **more
        )  # fmt: skip
        self._model_path, self._gpu_memory_utilization = model_path or model, gpu_memory_utilization
        self._asked_len = max_model_len
        self._limits: dict[str, int] = {}
        self._kv_tokens: int | None = None
        self._program = tuple(command) if command or self.adopt else find_program(name)

    @property
    def control_file(self) -> Path | None:
        """Where the limits are written; None for an adopted server whose file nobody has named."""
        if self._control_file:
            return Path(self._control_file)
        return None if self.adopt else self._folder.path / "control.json"

    def _environ(self) -> dict[str, str]:
        """Our scheduler is found through PYTHONPATH, in a folder where it is alone: its neighbours here have the names of packages."""
        path = os.pathsep.join(part for part in (str(self._folder.path), self._inherited.get("PYTHONPATH", "")) if part)
        offline = {"HF_HUB_OFFLINE": "1"} if Path(self._model_path).is_dir() else {}
        return {**self._inherited, **_QUIET, **offline, "PYTHONPATH": path, CONTROL_VARIABLE: str(self.control_file)}

    def command(self) -> list[str]:
        """The arguments of vLLM; `vllm serve` as well as a Python that has vLLM can be given them."""
        shutil.copyfile(vllm_scheduler.__file__, self._folder.path / f"{_MODULE}.py")
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

    def kv_tokens(self) -> int | None:
        """Blocks times tokens a block, as its metrics say."""
        return self._kv_tokens

    def read_labels(self, text: str) -> None:
        """The size of its KV memory: labels of `vllm:cache_config_info`."""
        engines = re.findall(r"^vllm:cache_config_info\{(.*)\}", text, re.MULTILINE)
        sizes = [dict(re.findall(r'\b(block_size|num_gpu_blocks)="(\d+)"', labels)) for labels in engines]
        if sizes and all(len(size) == 2 for size in sizes):
            self._kv_tokens = sum(int(size["block_size"]) * int(size["num_gpu_blocks"]) for size in sizes)

    def load(self) -> Load:
        """Seats, queue, KV memory and preemptions, as it says."""
        running, waiting = self.busy("vllm:num_requests_running", "vllm:num_requests_waiting")
        return Load(
            running=running,
            waiting=waiting,
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
        file = self.control_file
        assert file is not None, "without a control file there are no limits"
        part = file.with_suffix(".part")
        part.write_text(json.dumps(self._limits))
        part.replace(file)

    async def stop(self) -> None:
        """End it, and clear away what it was given."""
        await super().stop()
        self._folder.remove()


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
