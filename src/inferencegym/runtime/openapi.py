"""The server described as OpenAPI 3.1: bodies from the same structs that read them, and every status that an operation can answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from inferencegym import __version__
from inferencegym.decision.knobs import LEVERS, QUANTIZATION_TIERS, RANGES
from inferencegym.runtime.wire import Chat, Completion, Embedding

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_WORDS = {
    400: "the request is wrong, or asks for what the backend cannot do", 401: "no API key, or an unknown one", 403: "not an administrator's key",
    404: "there is no such model", 405: "no such method", 412: "the configuration has changed meanwhile", 413: "the body is too large",
    415: "the body is not JSON", 429: "this caller or class asks for more than its share", 500: "the server made a mistake",
    502: "the backend failed", 503: "overloaded, draining, or no backend is well; Retry-After says when to come back", 504: "out of time",
}  # fmt: skip
_USAGE = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
    "properties": {name: {"type": "integer"} for name in ("prompt_tokens", "completion_tokens", "total_tokens")},
}
_ANSWER = {
    "type": "object",
    "required": ["id", "object", "choices"],
    "properties": {
        "id": {"type": "string"},
        "object": {"type": "string"},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "choices": {"type": "array", "items": {"type": "object"}},
        "usage": {"anyOf": [_USAGE, {"type": "null"}]},
    },
}
_OBJECT = {"type": "object"}
_REQUEST_HEADERS = {
    "x-request-id": ("The request's id in answers, logs and at the backend, 1 to 256 printable ASCII characters; else one is made. The answer says which.", {"type": "string"}),
    "x-slo-class": ("Service class; else the first one.", {"type": "string", "maxLength": 256}),
    "x-queue-ttl-ms": ("Longest wait for a seat, ms; the least of this, the class's and the server's holds.", {"type": "number", "exclusiveMinimum": 0}),
    "x-no-queue": ("Refuse with 503 rather than let it wait.", {"type": "string", "enum": ["true", "false", "1", "0"]}),
    "x-session-affinity": ("Requests with the same value go to the same backend, under routing `prefix`.", {"type": "string", "maxLength": 256}),
    "x-tenant": ("Whom fairness counts it for, where there is no key.", {"type": "string", "maxLength": 256}),
}  # fmt: skip
_GENERATE = (400, 404, 413, 415, 429, 500, 502, 503, 504)


def document(paths: frozenset[str], guarded: bool, models: tuple[str, ...], classes: tuple[str, ...]) -> dict[str, Any]:
    """The whole document.

    paths : the server's own pages
    guarded : whether keys are asked for
    models, classes : the names there are
    """
    bodies = (Chat, Completion, Embedding)
    (chat, completion, embedding), schemas = msgspec.json.schema_components(
        bodies, ref_template="#/components/schemas/{name}"
    )
    if models:
        for name in ("Chat", "Completion", "Embedding"):
            schemas[name]["properties"]["model"] = {"type": "string", "enum": list(models)}
    told: dict[str, Any] = {
        "/v1/chat/completions": {"post": _generate("chat", "Answer a conversation", chat, guarded, classes)},
        "/v1/completions": {"post": _generate("completion", "Continue a prompt", completion, guarded, classes)},
        "/v1/embeddings": {"post": _generate("embedding", "Embed texts, where a backend can", embedding, guarded, classes, events=False)},
    }  # fmt: skip
    told |= {path: operations for path, operations in _pages(guarded).items() if path in paths or "{" in path}
    components: dict[str, Any] = {"schemas": {**schemas, "Error": ERROR}}
    if guarded:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    about = (
        "An OpenAI-compatible gateway: admission, ordering, batching and streams for whatever engine stands behind it."
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "InferenceGym runtime", "version": __version__, "description": about},
        "paths": told,
        "components": components,
    }


def _errors(statuses: tuple[int, ...]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {str(status): {"description": _WORDS[status], "content": content} for status in statuses}


def _generate(
    name: str, summary: str, body: Mapping[str, Any], guarded: bool, classes: tuple[str, ...], events: bool = True
) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": _ANSWER if events else _OBJECT}}
    if events:
        content["text/event-stream"] = {}
    statuses = (*_GENERATE, 401) if guarded else _GENERATE
    parameters = [
        {
            "name": header,
            "in": "header",
            "description": words,
            "schema": {"enum": list(classes)} if header == "x-slo-class" else schema,
        }
        for header, (words, schema) in _REQUEST_HEADERS.items()
    ]
    return {
        "operationId": name,
        "summary": summary,
        "parameters": parameters,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": {"description": "the answer", "content": content}, **_errors(statuses)},
        **({"security": [{"key": []}]} if guarded else {}),
    }


def _page(name: str, summary: str, *statuses: int, guarded: bool = False, body: Mapping[str, Any] | None = None, kind: str = "application/json", parameters: list[Any] | None = None) -> dict[str, Any]:  # fmt: skip
    told: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "responses": {
            "200": {"description": "as asked", "content": {kind: {"schema": _OBJECT if "json" in kind else {"type": "string"}}}},
            **_errors((*statuses, 413, 500) if body is None else (*statuses, 400, 413, 415, 500)),
        },
    }  # fmt: skip
    if guarded:
        told["security"] = [{"key": []}]
    if body is not None:
        told["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    if parameters:
        told["parameters"] = parameters
    return told


def _knobs() -> dict[str, Any]:
    numbers = {
        name: {"type": "number" if name == "kv_budget_fraction" else "integer", "minimum": low, "maximum": high}
        for name, (low, high) in RANGES.items()
    }  # fmt: skip
    words: dict[str, Any] = {"quantization_tier": {"enum": list(QUANTIZATION_TIERS)}}
    words |= {name: {"type": "boolean"} for name in LEVERS if name not in numbers and name not in words}
    null = {"type": "null"}
    properties: dict[str, Any] = {name: {"anyOf": [kind, null]} for name, kind in (numbers | words).items()}
    # Who is at the wheel, for those who look on: names as the sender calls them.
    properties |= {name: {"type": "string", "maxLength": 200, "pattern": "^[ -~]*$"} for name in ("policy", "guard")}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _pages(guarded: bool) -> dict[str, Any]:
    known = (401,) if guarded else ()
    admin = (401, 403) if guarded else ()
    text = {"type": "string"}
    version = {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    name = [
        {
            "name": "model",
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1, "pattern": "^[^/?#]+$"},
        }
    ]
    change = {
        "type": "object", "required": ["changes"],
        "properties": {"changes": _OBJECT, "reason": text, "dry_run": {"type": "boolean"}, "version": version},
    }  # fmt: skip
    revert = {
        "type": "object",
        "required": ["to"],
        "properties": {"to": {"type": "integer"}, "reason": text, "dry_run": {"type": "boolean"}, "version": version},
    }
    metrics = _page("metrics", "What is counted; JSON with ?format=json or Accept: application/json", kind="text/plain")
    metrics["responses"]["200"]["content"]["application/json"] = {"schema": _OBJECT}
    return {
        "/v1/models": {"get": _page("models", "Models that can be asked for", *known, guarded=guarded)},
        "/v1/models/{model}": {"get": _page("model", "One of them", *known, 404, guarded=guarded, parameters=name)},
        "/health": {"get": _page("health", "Whether requests are taken", 503)},
        "/readyz": {"get": _page("readyz", "Whether requests are taken", 503)},
        "/livez": {"get": _page("livez", "Whether the process answers")},
        "/ping": {"get": _page("ping", "Whether the process answers")},
        "/version": {"get": _page("version", "Which release this is")},
        "/openapi.json": {"get": _page("openapi", "This document")},
        "/metrics": {"get": metrics},
        "/v1/runtime/drain": {
            "get": _page("drainState", "Whether it drains, and what is under way", *admin, guarded=guarded),
            "post": _page("drain", "Take nothing new", *admin, 415, guarded=guarded),
            "delete": _page("resume", "Take requests again", *admin, guarded=guarded),
        },
        "/v1/runtime/plant": {
            "get": _page("snapshot", "What a policy may know, of the window since the last time", *admin, guarded=guarded),
            "post": _page("apply", "Turn knobs; what took effect, and why the rest did not", *admin, guarded=guarded, body=_knobs()),
            "delete": _page("release", "Give batch_cap back: as many in flight as there are seats", *admin, guarded=guarded),
        },
        "/v1/runtime/config": {
            "get": _page("config", "Settings in force, their bounds, the version", *admin, guarded=guarded),
            "patch": _page("change", "Change live settings, all or none", *admin, 412, guarded=guarded, body=change),
        },
        "/v1/runtime/config/revert": {"post": _page("revert", "Back to a version", *admin, 404, 412, guarded=guarded, body=revert)},
        "/v1/runtime/config/audit": {"get": _page("audit", "Every change since the start", *admin, guarded=guarded)},
    }  # fmt: skip
