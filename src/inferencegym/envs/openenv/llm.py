"""A language model at the wheel: asks any OpenAI-compatible endpoint for the next action, through the official client.

The system prompt holds the objectives and the surface's own description (`llm_prompt`), examples stand as earlier turns (`llm_shots`). An answer
that cannot be read is asked for once more, with what was wrong; then the action is: change nothing. With `schema` the endpoint is asked to hold
its answer to a JSON schema of the actions that are possible now (`response_format`). Everything is counted (`llm_usage`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import openai
from openai.types.chat import ChatCompletion

from inferencegym.decision.columns import Float32s, Masks
from inferencegym.decision.knobs import GRID, LEVERS, OFFSETS, QUANTIZATION_TIERS, RANGES, Knobs
from inferencegym.decision.paging import NOTHING
from inferencegym.envs.batch import Task
from inferencegym.envs.openenv.llm_prompt import History, answer, situation, system_prompt
from inferencegym.envs.openenv.llm_usage import EndpointError, Usage
from inferencegym.ground.errors import ConfigError
from inferencegym.policies.simple import surface_of

#: Model that is asked for where none is named.
MODEL = "gpt-4o-mini"
#: Decisions between two questions: a paging episode has thousands, so an answer holds for some ticks while it is legal.
ASK_EVERY = {"knobs": 1, "paging": 50}

#: Tries after the first that the client makes on its own, after timeouts, lost connections and statuses such as 429, 500 and 503. It waits
#: 0.5 s, then twice as long each time up to 8 s, or as long as the server's Retry-After says.
RETRIES = 5
#: Seconds that an endpoint has to say that it is there.
REACH_S = 10.0
_ANSWER_TOKENS = 200


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
    """A policy (`start`, `act`) that asks a model. It holds a connection, so it plays in the process that made it."""

    in_process = True

    def __init__(
        self,
        surface: str,
        *,
        model: str | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        ask_every: int | None = None,
        schema: bool = False,
        task: Task | None = None,
        examples: Sequence[tuple[str, str]] = (),
        history: int = 0,
        timeout_s: float = 60.0,
        retries: int = RETRIES,
        name: str | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`base_url`, `api_key`: else OPENAI_BASE_URL, OPENAI_API_KEY; `ask_every`: decisions between two questions; `schema`: ask for JSON that fits;
        `task`: whose objectives are told; `examples`: (situation, answer) pairs; `history`: decisions that are told with what came of them;
        `clock`: seconds, for latencies.
        """
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or os.environ.get("API_BASE_URL")
        key = api_key or os.environ.get("OPENAI_API_KEY") or os.environ.get("HF_TOKEN")
        if not key and not base_url:
            raise ConfigError(
                "OPENAI_API_KEY", "is not set", allowed="a key, or OPENAI_BASE_URL of an endpoint that needs none"
            )
        if ask_every is not None and ask_every < 1:
            raise ConfigError("ask_every", f"{ask_every} is out of range", allowed="1, 2, ...")
        if history < 0:
            raise ConfigError("history", f"{history} is out of range", allowed="0, 1, 2, ...")
        self.surface = surface
        self._itself = surface_of(surface)
        self.model = model or os.environ.get("OPENAI_MODEL") or os.environ.get("MODEL_NAME") or MODEL
        self.name = name or f"llm:{self.model}"
        self._every = ask_every or ASK_EVERY[surface]
        self.schema, self._kept, self._clock = schema, history, clock
        self._opening = [{"role": "system", "content": system_prompt(self._itself, task)}]
        self.show(examples)
        self._client = openai.OpenAI(base_url=base_url, api_key=key or "none", timeout=timeout_s, max_retries=retries)
        self.start(0)

    def show(self, examples: Sequence[tuple[str, str]]) -> None:
        """Put (situation, answer) pairs before every question, as earlier turns."""
        for seen, said in examples:
            self._opening += [{"role": "user", "content": seen}, {"role": "assistant", "content": said}]

    def start(self, seed: int) -> None:
        """A new episode: counters at zero. The model gets the seed with every question."""
        self._seed, self._taken = seed & 0x7FFFFFFF, 0
        self.usage = Usage()
        self._history = History(self._itself, self._kept) if self._kept else None
        self._last: Any = None

    @property
    def questions(self) -> int:
        """Answers asked for in this episode."""
        return self.usage.questions

    @property
    def parse_failures(self) -> int:
        """Answers of this episode that could not be read."""
        return self.usage.parse_failures

    def reach(self) -> None:
        """EndpointError if the endpoint is not there or refuses the key. That it has no list of models does not matter: many have none."""
        try:
            self._client.with_options(max_retries=0, timeout=REACH_S).models.with_raw_response.list()
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise EndpointError(
                f"{self._client.base_url} refuses the key ({error.status_code}); set OPENAI_API_KEY to one that it takes"
            ) from error
        except openai.APIConnectionError as error:
            why = error.__cause__ or error
            raise EndpointError(
                f"nothing answers at {self._client.base_url} ({why}); start the model's server there, or set OPENAI_BASE_URL to where it is"
            ) from error
        except openai.OpenAIError:
            return

    def act(self, observation: Float32s, mask: Masks) -> Any:
        """The model's action, or its last one between two questions."""
        ask = self._taken % self._every == 0
        self._taken += 1
        if self._history is not None:
            self._history.see(observation)
        if ask:
            self._last = self._asked(observation, mask)
            if self._history is not None:
                self._history.decide(answer(self._itself, self._last, observation))
        if self.surface == "paging" and not mask[self._last]:
            return NOTHING
        return self._last

    def _asked(self, observation: Float32s, mask: Masks) -> Any:
        said = situation(self._itself, observation, mask)
        if self._history is not None and (earlier := self._history.lines()):
            said = "\n".join(["Your last decisions, and what came of each:", *earlier, "Now:", said])
        messages = [*self._opening, {"role": "user", "content": said}]
        more: dict[str, Any] = {}
        if self.schema:
            form = {"name": "action", "strict": True, "schema": action_schema(self.surface, mask)}
            more["response_format"] = {"type": "json_schema", "json_schema": form}
        for _ in range(2):
            text = self._question(messages, more)
            try:
                action = self._itself.parse(text)
            except ConfigError as error:
                self.usage.parse_failures += 1
                # The same question would have the same answer: at temperature 0 only new words help.
                again = f"That could not be read: {error}. Answer with the JSON alone."
                messages = [*messages, {"role": "assistant", "content": text}, {"role": "user", "content": again}]
                continue
            self.usage.illegal += not self._itself.legal(action, mask)
            return action
        return NOTHING if self.surface == "paging" else Knobs()

    def _question(self, messages: Sequence[Any], more: dict[str, Any]) -> str:
        """One answer's text; its tokens, time and retries are counted."""
        usage = self.usage
        usage.questions += 1
        since_s = self._clock()
        try:
            raw = self._client.chat.completions.with_raw_response.create(
                model=self.model, messages=messages, max_tokens=_ANSWER_TOKENS, temperature=0.0, seed=self._seed, **more
            )
            found = raw.parse()
        except openai.OpenAIError as error:
            raise EndpointError(
                f"the model '{self.model}' at {self._client.base_url} did not answer: {error}"
            ) from error
        if not isinstance(found, ChatCompletion):
            raise EndpointError(
                f"{self._client.base_url} answers, but not as OpenAI's API does; set OPENAI_BASE_URL to the address that ends in /v1"
            )
        usage.latencies_s.append(self._clock() - since_s)
        usage.retries += raw.retries_taken
        if found.usage is None:
            usage.unmetered += 1
        else:
            usage.prompt_tokens += found.usage.prompt_tokens
            usage.completion_tokens += found.usage.completion_tokens
        return (found.choices[0].message.content or "") if found.choices else ""
