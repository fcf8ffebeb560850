"""A language model at the wheel: asks any OpenAI-compatible endpoint for the next action, through the official client.

The prompt is the surface's own description. An answer that cannot be read is asked for once more; then the action is: change nothing. Both are
counted. With `schema` the endpoint is asked to hold its answer to a JSON schema of the actions that are possible now (`response_format`).
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import openai

from inferencegym.decision.columns import Float32s, Masks
from inferencegym.decision.knobs import GRID, LEVERS, OFFSETS, QUANTIZATION_TIERS, RANGES, Knobs
from inferencegym.decision.paging import NOTHING
from inferencegym.ground.errors import ConfigError, InferenceGymError
from inferencegym.policies.simple import surface_of

#: Model that is asked for where none is named.
MODEL = "gpt-4o-mini"
#: Decisions between two questions: a paging episode has thousands, so an answer holds for some ticks while it is legal.
ASK_EVERY = {"knobs": 1, "paging": 50}


class EndpointError(InferenceGymError, OSError):
    """The model's endpoint cannot be reached or refuses; says which and why."""


def action_schema(surface: str, mask: Masks) -> dict[str, Any]:
    """JSON schema of the actions that a mask allows now; all fields are required, as strict endpoints want it."""
    if surface == "paging":
        fields: dict[str, Any] = {"action": {"type": "integer", "enum": np.flatnonzero(mask).tolist()}}
    else:
        fields = {}
        for i, name in enumerate(LEVERS):
            allowed = [v for v, ok in zip(GRID[name], mask[OFFSETS[i] : OFFSETS[i + 1]], strict=True) if ok]
            if name == "quantization_tier":
                fields[name] = {"type": "string", "enum": [QUANTIZATION_TIERS[int(v)] for v in allowed]}
            elif name in RANGES:
                whole = name != "kv_budget_fraction"
                fields[name] = {
                    "type": "integer" if whole else "number",
                    "enum": [int(v) if whole else v for v in allowed],
                }
            else:
                fields[name] = {"type": "boolean", "enum": [bool(v) for v in allowed]}
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


class LanguageModel:
    """A policy (`start`, `act`) that asks a model."""

    def __init__(
        self,
        surface: str,
        *,
        model: str | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        ask_every: int | None = None,
        schema: bool = False,
        timeout_s: float = 60.0,
    ) -> None:
        """`base_url`, `api_key`: else OPENAI_BASE_URL, OPENAI_API_KEY; `ask_every`: decisions between two questions; `schema`: ask for JSON that fits."""
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or os.environ.get("API_BASE_URL")
        key = api_key or os.environ.get("OPENAI_API_KEY") or os.environ.get("HF_TOKEN")
        if not key and not base_url:
            raise ConfigError(
                "OPENAI_API_KEY", "is not set", allowed="a key, or OPENAI_BASE_URL of an endpoint that needs none"
            )
        if ask_every is not None and ask_every < 1:
            raise ConfigError("ask_every", f"{ask_every} is out of range", allowed="1, 2, ...")
        self.surface = surface
        self._itself = surface_of(surface)
        self.model = model or os.environ.get("OPENAI_MODEL") or os.environ.get("MODEL_NAME") or MODEL
        self.name = f"llm:{self.model}"
        self._every = ask_every or ASK_EVERY[surface]
        self.schema = schema
        self._client = openai.OpenAI(base_url=base_url, api_key=key or "none", timeout=timeout_s, max_retries=2)
        self.start(0)

    def start(self, seed: int) -> None:
        """A new episode: counters at zero. The model gets the seed with every question."""
        self._seed, self._taken = seed & 0x7FFFFFFF, 0
        self.questions = self.parse_failures = 0
        self._last: Any = None

    def act(self, observation: Float32s, mask: Masks) -> Any:
        """The model's action, or its last one between two questions."""
        ask = self._taken % self._every == 0
        self._taken += 1
        if ask:
            self._last = self._asked(self._itself.describe(observation, mask), mask)
        if self.surface == "paging" and not mask[self._last]:
            return NOTHING
        return self._last

    def _asked(self, prompt: str, mask: Masks) -> Any:
        more: dict[str, Any] = {}
        if self.schema:
            form = {"name": "action", "strict": True, "schema": action_schema(self.surface, mask)}
            more["response_format"] = {"type": "json_schema", "json_schema": form}
        for _ in range(2):
            self.questions += 1
            try:
                answer = self._client.chat.completions.create(
                    model=self.model,
                    messages=[{"role": "user", "content": prompt}],
                    max_tokens=200,
                    temperature=0.0,
                    seed=self._seed,
                    **more,
                )
            except openai.OpenAIError as error:
                raise EndpointError(
                    f"the model '{self.model}' at {self._client.base_url} did not answer: {error}"
                ) from error
            try:
                return self._itself.parse(answer.choices[0].message.content or "")
            except ConfigError:
                self.parse_failures += 1
        return NOTHING if self.surface == "paging" else Knobs()
