"""Makes the server and its OpenAPI document agree where FastAPI alone does not: refusals of OpenEnv's routes, and which methods a path has.

Numbers and names in bodies are strict here: a JSON true or "8" is no number, whatever Python makes of it.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BeforeValidator, Field
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from inferencegym.envs.openenv.models import only_number


def whole(low: int, high: int | None = None) -> Any:
    """Type of a whole number of a body, both ends allowed."""
    return Annotated[int, Field(strict=False, ge=low, le=high), BeforeValidator(only_number)]


def positive() -> Any:
    """Type of a number of a body above 0."""
    return Annotated[float, Field(gt=0), BeforeValidator(only_number)]


def branches(*forms: dict[str, Any]) -> Any:
    """For `json_schema_extra`: the body is one of several forms.

    A form gives for a field: None (it must be left out or null), True (it must be there), a schema (it must be there and fit), or a schema in a
    tuple (it fits if it is there).
    """

    def write(schema: dict[str, Any]) -> None:
        shared = {name: schema[name] for name in ("title", "description") if name in schema}
        written = []
        for form in forms:
            properties = dict(schema["properties"])
            for name, wanted in form.items():
                if wanted is None:
                    properties[name] = {"type": "null"}
                elif isinstance(wanted, tuple):
                    properties[name] = properties[name] | {"anyOf": [wanted[0], {"type": "null"}]}
                elif wanted is True:
                    properties[name] = next(kind for kind in properties[name]["anyOf"] if kind != {"type": "null"})
                else:
                    properties[name] = wanted
            demanded = [name for name, wanted in form.items() if wanted is True or isinstance(wanted, dict)]
            written.append(
                {"type": "object", "properties": properties, "required": demanded, "additionalProperties": False}
            )
        schema.clear()
        schema.update(shared | {"anyOf": written})

    return write


def complete(app: FastAPI, name: str) -> None:
    """Name the environment, write what OpenEnv's routes leave out into the document, and let 405 name every method of a path."""
    usual = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            told = usual()
            refused = {
                "type": "object", "required": ["detail"],
                "properties": {"detail": {"anyOf": [{"type": "string"}, {"type": "array"}]}},
            }  # fmt: skip
            content = {"application/json": {"schema": refused}}
            for path, methods in told["paths"].items():
                for operation in methods.values():
                    for parameter in operation.get("parameters", ()):
                        if parameter["name"] == "env_name":
                            parameter["schema"]["enum"] = [name]
                    responses = operation["responses"]
                    if path.startswith("/{env_name}"):
                        responses.setdefault("404", {"description": "no such environment or task", "content": content})
                        responses.setdefault(
                            "400", {"description": "a split or an index that is wrong", "content": content}
                        )
                    if "requestBody" in operation:
                        responses.setdefault("413", {"description": "the body is too large", "content": content})
            app.openapi_schema = told
        return app.openapi_schema

    app.openapi = document

    async def not_allowed(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        methods = {
            method.upper()
            for path, operations in document()["paths"].items()
            if compile_path(path)[0].match(request.url.path)
            for method in operations
        }
        headers = {"Allow": ", ".join(sorted(methods))} if methods else error.headers
        return JSONResponse({"detail": error.detail}, 405, headers)

    app.add_exception_handler(405, not_allowed)
