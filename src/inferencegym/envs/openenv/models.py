"""What travels over OpenEnv's wire: actions with ranges, observations of plain numbers with named columns, and the session's state.

Columns come from the surfaces' own tables, so a column cannot be missing here or mean something else. Out-of-range values are refused
(HTTP 422, VALIDATION_ERROR on a socket), never clamped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from openenv.core.env_server.types import Action, Observation, State
from pydantic import BeforeValidator, Field, WithJsonSchema, create_model
from pydantic_core import PydanticCustomError

from inferencegym.decision import paging
from inferencegym.decision.columns import Columns
from inferencegym.decision.knobs import COLUMNS as KNOB_COLUMNS
from inferencegym.decision.knobs import QUANTIZATION_TIERS, RANGES


def only_number(value: Any) -> Any:
    """Neither true nor "8" is a number here, although Python counts with the one and pydantic reads the other."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_expected", "Input should be a number, not true or false")
    if isinstance(value, str | bytes):
        raise PydanticCustomError("number_expected", "Input should be a number, not text")
    return value


def _only_bool(value: Any) -> Any:
    if value is not None and not isinstance(value, bool):
        raise PydanticCustomError("bool_expected", "Input should be true or false")
    return value


def _number(kind: type, low: float, high: float, what: str) -> Any:
    """A knob that may be left out; its published schema is the number alone, so that forms and clients see the range."""
    word = "integer" if kind is int else "number"
    schema = {"type": word, "minimum": kind(low), "maximum": kind(high), "description": what, "default": None}
    return Annotated[kind | None, Field(ge=low, le=high), BeforeValidator(only_number), WithJsonSchema(schema)]


def _switch(what: str) -> Any:
    schema = {"type": "boolean", "description": what, "default": None}
    return Annotated[bool | None, BeforeValidator(_only_bool), WithJsonSchema(schema)]


_BATCH, _KV, _DEPTH = (RANGES[name] for name in ("batch_cap", "kv_budget_fraction", "speculation_depth"))


class ServeAction(Action):
    """The six knobs for the next window. A knob that is left out stays as it is."""

    batch_cap: _number(int, *_BATCH, "requests running at once on a replica") = None
    kv_budget_fraction: _number(
        float, *_KV, "share of the KV blocks this service may use; the rest is lent out and credited"
    ) = None
    speculation_depth: _number(int, *_DEPTH, "draft tokens a step") = None
    quantization_tier: Annotated[
        Literal["FP16", "INT8", "INT4"] | None,
        WithJsonSchema(
            {"type": "string", "enum": list(QUANTIZATION_TIERS), "description": "weight format", "default": None}
        ),
    ] = None
    prefill_decode_split: _switch("prefill and decode in pools of their own") = None
    priority_routing: _switch("priority classes order the queue and choose victims") = None


class PagingAction(Action):
    """One of the eighteen actions of the paging surface, by number."""

    action_id: Annotated[int, BeforeValidator(only_number)] = Field(
        ge=0,
        le=len(paging.ACTIONS) - 1,
        description="; ".join(f"{i} {name}" for i, name in enumerate(paging.NAMES)),
    )


#: How OpenEnv dumps an observation for the wire, where it puts these two beside it.
_ON_THE_WIRE = {"exclude": {"reward", "done"}}


class PlantObservation(Observation):
    """What both environments tell beside their columns."""

    step_index: int = Field(0, ge=0, description="decisions taken in this episode")
    task_id: str = Field("", description="task that is being played")
    terminated: bool = Field(False, description="the episode ended by itself (a crash)")
    truncated: bool = Field(False, description="the episode reached its horizon")
    encoded: list[float] = Field(
        default_factory=list, description="all columns scaled into 0..1 (or -1..1), in order: what policies see"
    )
    action_mask: list[int] = Field(default_factory=list, description="1 for every choice that may be taken now")
    reward_terms: dict[str, float] = Field(
        default_factory=dict, description="the reward's terms by name; they add up to it before it is held to -1..1"
    )

    @classmethod
    def of(cls, values: dict[str, Any]) -> Any:
        """An observation of values that are right by construction: all fields, in the order of the wire. `model_construct` in a tenth of its time."""
        made = cls.__new__(cls)
        for name, value in (
            ("__dict__", values),
            ("__pydantic_fields_set__", set(values)),
            ("__pydantic_extra__", None),
            ("__pydantic_private__", None),
        ):
            object.__setattr__(made, name, value)
        return made

    def model_dump(self, **how: Any) -> dict[str, Any]:
        """As pydantic dumps; what OpenEnv asks for at every step without looking into numbers, lists and dictionaries that are plain already."""
        if how == _ON_THE_WIRE:
            plain = self.__dict__.copy()
            del plain["reward"], plain["done"]
            return plain
        dumped: dict[str, Any] = super().model_dump(**how)
        return dumped


def _with_columns(name: str, columns: Columns, what: str, natural: bool) -> Any:
    fields: dict[str, Any] = {}
    for i, column in enumerate(columns):
        low, high = (column.low, column.high) if natural else (float(columns.low[i]), float(columns.high[i]))
        said = f"{column.what} [{column.unit}; {column.low:g} to {column.high:g}]"
        fields[column.name] = (
            float,
            Field(0.0, description=said if natural else f"scaled to {low:g}..{high:g}: {said}"),
        )
    return create_model(name, __base__=PlantObservation, __doc__=what, __module__=__name__, **fields)


#: Columns in natural units (milliseconds, requests, shares), as `decision.knobs.COLUMNS` has them.
ServeObservation: Any = _with_columns(
    "ServeObservation", KNOB_COLUMNS, "A deployment at the end of a window, in natural units.", natural=True
)
#: Columns as the paging surface scales them, 0..1 (the trend: -1..1).
PagingObservation: Any = _with_columns(
    "PagingObservation",
    paging.COLUMNS,
    "A KV pool before a decision; every column scaled to 0..1 or -1..1.",
    natural=False,
)


class PlantState(State):
    """Where a session stands."""

    family: str = Field("", description="llmserve or pagedkv")
    task_id: str = Field("", description="task that is being played; empty before the first reset")
    split: str = Field("", description="train, validation or test")
    seed: int | None = Field(None, ge=0, description="scenario within the split; it fixes all traffic of the episode")
    digest: str = Field("", description="sha256 of all that shapes the task's episodes")
    steps: int = Field(0, ge=0, description="most decisions an episode has")
    total_reward: float = Field(0.0, description="sum of the rewards so far")
    done: bool = Field(False, description="whether the episode is over")


class ServeState(PlantState):
    """State of an LLMServe session."""


class PagingState(PlantState):
    """State of a PagedKV session."""


def action_schema(family: str) -> dict[str, Any]:
    """JSON Schema of all that `as_action` takes from JSON."""
    if family == "llmserve":
        schema = ServeAction.model_json_schema()
        for name, knob in schema["properties"].items():
            if name != "metadata":
                schema["properties"][name] = {"anyOf": [knob, {"type": "null"}], "description": knob["description"]}
        return schema
    number = {"type": "integer", "minimum": 0, "maximum": len(paging.ACTIONS) - 1}
    name = {"type": "string", "enum": list(paging.NAMES)}
    wrapped = {
        "type": "object", "properties": {"action": {"anyOf": [number, name]}, "metadata": {}},
        "required": ["action"], "additionalProperties": False,
    }  # fmt: skip
    return {"anyOf": [number, name, PagingAction.model_json_schema(), wrapped]}


def as_action(family: str, given: Any) -> Action:
    """An action from what people send: a mapping, an action's number or name (paging), six numbers (knobs); pydantic's error if it is wrong."""
    if isinstance(given, Action):
        return given
    if family == "pagedkv":
        found = given
        if (
            isinstance(given, Mapping)
            and set(given) - {"metadata"} == {"action"}
            and not isinstance(given["action"], Mapping)
        ):
            found = given["action"]
        if isinstance(found, str) and found in paging.NUMBER:
            found = paging.NUMBER[found]
        return PagingAction.model_validate(found if isinstance(found, Mapping) else {"action_id": found})
    return ServeAction.model_validate(given)
