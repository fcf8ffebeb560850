"""Clients of a server: OpenEnv's own kind over a WebSocket, and a plain one over HTTP that is used like a Gym environment.

`LLMServeEnv(base_url=...)` is an official EnvClient (async, or `.sync()`); `LLMServeEnv.from_url(...)` is the plain one. PagedKVEnv is the same
for the paging environment.
"""

from __future__ import annotations

from typing import Any, ClassVar

import httpx
from openenv.core.client_types import StepResult
from openenv.core.env_client import EnvClient
from pydantic import ValidationError

from inferencegym.envs.openenv.models import (
    PagingObservation,
    PagingState,
    PlantState,
    ServeObservation,
    ServeState,
    as_action,
)
from inferencegym.ground.errors import ConfigError, InferenceGymError


class ServerError(InferenceGymError, OSError):
    """The server refused or could not be reached; carries its words and the HTTP status (0: not reached)."""

    def __init__(self, problem: str, status: int = 0) -> None:
        self.status = status
        super().__init__(problem)


class EpisodeClient:
    """One session over plain HTTP: `reset`, `step(action) -> observation, reward, done, info`, `state`, `grade`, `close`."""

    def __init__(self, base_url: str, family: str, *, timeout_s: float = 60.0) -> None:
        self.family = family
        self.session_id: str | None = None
        self._log: dict[str, Any] = {}
        self._http = httpx.Client(base_url=base_url.rstrip("/"), timeout=timeout_s)

    def reset(
        self,
        *,
        task_id: str | None = None,
        seed: int | None = None,
        split: str | None = None,
        episode_id: str | None = None,
    ) -> dict[str, Any]:
        """Begin an episode; the observation as a mapping."""
        wanted = {
            "task_id": task_id,
            "seed": seed,
            "split": split,
            "episode_id": episode_id,
            "session_id": self.session_id,
        }
        answer = self._ask("POST", "/reset", {name: value for name, value in wanted.items() if value is not None})
        self.session_id = answer["session_id"]
        about = answer["metadata"]
        self._log = {name: about[name] for name in ("task_id", "split", "seed", "digest")} | {
            "actions": [], "rewards": [], "observations": [answer["observation"]["encoded"]],
        }  # fmt: skip
        observation: dict[str, Any] = answer["observation"]
        return observation

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, dict[str, Any]]:
        """One decision, as a mapping (paging: also a number or a name)."""
        self._begun()
        try:
            checked = as_action(self.family, action).model_dump(exclude={"metadata"}, exclude_none=True)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(
                ".".join(str(part) for part in first["loc"]) or "action", f"{first['msg']}, not {first['input']!r}"
            ) from error
        answer = self._ask("POST", "/step", {"action": checked, "session_id": self.session_id})
        observation, reward, done, info = (
            answer["observation"],
            float(answer["reward"]),
            bool(answer["done"]),
            answer["metadata"],
        )
        if "message" not in info:
            self._log["actions"].append(checked)
            self._log["rewards"].append(reward)
            self._log["observations"].append(observation["encoded"])
        if "grade" in info:
            self._log |= {
                "terminated": observation["terminated"],
                "truncated": observation["truncated"],
                "value": info["grade"]["value"],
            }
        return observation, reward, done, info

    def state(self) -> dict[str, Any]:
        """Where the session stands."""
        self._begun()
        return self._ask("GET", f"/state?session_id={self.session_id}")

    def grade(self) -> dict[str, Any]:
        """The grade of the whole episode."""
        self._begun()
        return self._ask("POST", "/grader", {"session_id": self.session_id})

    def episode_log(self) -> dict[str, Any]:
        """The whole episode as POST /grader takes it, on any server."""
        if "value" not in self._log:
            raise ConfigError("episode_log", "the episode is not over", allowed="play to the end")
        return dict(self._log)

    def grade_log(self, log: dict[str, Any]) -> dict[str, Any]:
        """The grade of a recorded episode, by replay."""
        return self._ask("POST", "/grader", {"episode_log": log})

    def tasks(self) -> list[dict[str, Any]]:
        """The server's tasks."""
        found: list[dict[str, Any]] = self._ask("GET", "/tasks")["tasks"]
        return found

    def baseline(self, task_id: str | None = None, seed: int = 0) -> dict[str, Any]:
        """The deterministic suite."""
        return self._ask("GET", f"/baseline?seed={seed}" + (f"&task_id={task_id}" if task_id else ""))

    def close(self) -> None:
        """End the session."""
        if self.session_id is not None:
            try:
                self._ask("DELETE", f"/sessions/{self.session_id}")
            except ServerError as error:
                # It may have expired, or the server may be gone: the session is over either way.
                if error.status not in (0, 404):
                    raise
            self.session_id = None
        self._http.close()

    def __enter__(self) -> EpisodeClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begun(self) -> None:
        if self.session_id is None:
            raise ConfigError("session", "there is none", allowed="call reset() first")

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise ServerError(f"{self._http.base_url}{path.lstrip('/')}: {error or type(error).__name__}") from error
        if answer.status_code >= 400:
            told = (
                answer.json().get("detail") if "json" in answer.headers.get("content-type", "") else answer.text[:500]
            )
            raise ServerError(f"{method} {path.split('?')[0]}: {answer.status_code}: {told}", answer.status_code)
        found: dict[str, Any] = answer.json()
        return found


class PlantClient(EnvClient):
    """OpenEnv's client; actions may also be given as mappings (paging: as numbers or names)."""

    family: ClassVar[str] = ""
    observation_cls: ClassVar[Any] = None
    state_cls: ClassVar[type[PlantState]] = PlantState

    @classmethod
    def from_url(cls, base_url: str, *, timeout_s: float = 60.0) -> EpisodeClient:
        """A session over plain HTTP, used like a Gym environment."""
        return EpisodeClient(base_url, cls.family, timeout_s=timeout_s)

    def _step_payload(self, action: Any) -> dict[str, Any]:
        payload: dict[str, Any] = as_action(self.family, action).model_dump(exclude={"metadata"}, exclude_none=True)
        return payload

    def _parse_result(self, payload: dict[str, Any]) -> StepResult:
        observation = self.observation_cls.model_validate(
            payload["observation"] | {"done": payload.get("done", False), "reward": payload.get("reward")}
        )
        return StepResult(
            observation=observation,
            reward=payload.get("reward"),
            done=payload.get("done", False),
            metadata=payload.get("metadata"),
        )

    def _parse_state(self, payload: dict[str, Any]) -> PlantState:
        return self.state_cls.model_validate(payload)


class LLMServeEnv(PlantClient):
    """Client of the serving environment."""

    family = "llmserve"
    observation_cls = ServeObservation
    state_cls = ServeState


class PagedKVEnv(PlantClient):
    """Client of the paging environment."""

    family = "pagedkv"
    observation_cls = PagingObservation
    state_cls = PagingState
