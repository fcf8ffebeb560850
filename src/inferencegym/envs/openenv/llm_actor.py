"""A language model as a person names it: `llm:MODEL[,shots=4,guide=learned,history=3,schema=1,ask_every=10,timeout_s=60]`.

The endpoint is OPENAI_BASE_URL (else OpenAI's own) with OPENAI_API_KEY; it is looked for when the policy is made, before anything is played.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from inferencegym.envs.actors import LANGUAGE_MODEL
from inferencegym.envs.batch import Task
from inferencegym.envs.openenv.llm import LanguageModel
from inferencegym.envs.openenv.llm_shots import examples
from inferencegym.ground.errors import ConfigError, UnknownNameError


def _switch(text: str) -> bool:
    if text not in ("0", "1", "true", "false"):
        raise ValueError
    return text in ("1", "true")


#: What may follow the model's name: how it is read, and what is allowed.
OPTIONS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "shots": (int, "0, 1, 2, ...: examples from training scenarios"),
    "guide": (str, "the policy whose decisions are the examples, such as learned, best-static, clairvoyant"),
    "history": (int, "0, 1, 2, ...: earlier decisions that are told, with what came of them"),
    "schema": (_switch, "0 or 1: ask the endpoint for JSON that fits the possible actions"),
    "ask_every": (int, "1, 2, ...: decisions between two questions"),
    "timeout_s": (float, "seconds, more than 0"),
}


def parsed(name: str) -> tuple[str, dict[str, Any]]:
    """(model, options) of `llm:MODEL,NAME=VALUE,...`; an error names the option and what it takes."""
    model, *parts = (part.strip() for part in name.removeprefix(LANGUAGE_MODEL).split(","))
    if not model:
        raise ConfigError("llm", f"'{name}' names no model", allowed="llm:MODEL, such as llm:gpt-4o-mini,shots=4")
    options: dict[str, Any] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if key not in OPTIONS:
            raise UnknownNameError("option of llm", key, tuple(OPTIONS))
        read, allowed = OPTIONS[key]
        try:
            if not equals:
                raise ValueError
            options[key] = read(value)
        except ValueError:
            raise ConfigError(f"llm: {key}", f"'{value}' cannot be read", allowed=allowed) from None
    if not options.get("timeout_s", 1.0) > 0:
        raise ConfigError("llm: timeout_s", f"{options['timeout_s']:g}", allowed=OPTIONS["timeout_s"][1])
    return model, options


def language_model(name: str, task: Task) -> LanguageModel:
    """The policy, with the task's objectives and its examples; EndpointError if nothing answers at the endpoint."""
    model, options = parsed(name)
    shots, guide = options.pop("shots", 0), options.pop("guide", None)
    made = LanguageModel(task.surface.name, model=model, task=task, name=name, **options)
    made.reach()
    made.show(examples(task, shots, guide))
    return made
