"""The server that the suite puts behind a gateway under test: a decent engine, which fails where a request's own text tells it to. Times are seconds."""

from __future__ import annotations

import json
import re

from inferencegym.bench.conformance.upstream import Act, Seen, Upstream


class MarkedUpstream(Upstream):
    """The server behind a gateway under test: how a request is answered stands in its own text, as `[[die_mid at=3]]`, so that it does not matter in what order,
    or how often, a gateway asks. Otherwise it is a decent engine: it knows its model, answers at the length that is asked for, refuses what it cannot do.
    """

    MODEL = "scripted"
    #: It makes up words, so these mean nothing to it.
    CANNOT = ("n", "stop", "logprobs", "best_of")
    reason, letter = "length", "a"

    def act_for(self, seen: Seen) -> Act:
        """As the request's own text says."""
        body = seen.body
        found = (
            _MARK.search(json.dumps(body.get("messages", body.get("prompt", "")))) if isinstance(body, dict) else None
        )
        if found is not None:
            given = dict(pair.split("=", 1) for pair in found[2].split())
            headers = (("retry-after", given["retry_after"]),) if "retry_after" in given else ()
            return Act(
                found[1], tokens=int(given.get("tokens", 8)), at=int(given.get("at", 2)), gap_s=float(given.get("gap_s", 0)),
                status=int(given.get("status", 503)), headers=headers, body=_refusal("as scripted", None, given.get("code", "scripted")),
            )  # fmt: skip
        problem = self._problem(seen)
        if problem is not None:
            return Act("status", status=problem[0], body=_refusal(*problem[1:]))
        asked = body.get("max_completion_tokens") or body.get("max_tokens") or 16
        # A long answer takes its time, whole or piece by piece.
        gap_s = 0.0 if asked <= 32 else 0.01 if body.get("stream") else asked * 0.01
        return Act(tokens=asked, gap_s=gap_s)

    def _problem(self, seen: Seen) -> tuple[int, str, str | None, str] | None:
        body = seen.body
        if not seen.path.endswith("/completions"):
            return 404, "there is no such page", None, "not_found"
        if not isinstance(body, dict):
            return 400, "no object", None, "invalid_value"
        if body.get("model") != self.MODEL:
            return 404, "there is no such model", "model", "model_not_found"
        for name in ("max_tokens", "max_completion_tokens"):
            if body.get(name) is not None and (type(body[name]) is not int or body[name] < 1):
                return 400, f"{name} is no count", name, "invalid_value"
        if not isinstance(body.get("temperature") or 0, (int, float)) or not isinstance(
            body.get("stream") or False, bool
        ):
            return 400, "temperature or stream is of a wrong type", None, "invalid_value"
        needed, kind = ("messages", list) if seen.path.endswith("chat/completions") else ("prompt", (str, list))
        if not isinstance(body.get(needed), kind):
            return 400, f"{needed} is missing or of a wrong type", needed, "invalid_value"
        for name in self.CANNOT:
            if body.get(name) not in (None, False) and (name, body[name]) != ("n", 1):
                return 400, f"{name} is not supported", name, "unsupported_parameter"
        return None

    def _get(self, path: str) -> tuple[int, bytes]:
        about = {"id": self.MODEL, "object": "model", "created": 1, "owned_by": "conformance"}
        if path.startswith("/v1/models"):
            name = path.removeprefix("/v1/models").removeprefix("/")
            if name == self.MODEL:
                return 200, json.dumps(about).encode()
            if not name:
                return 200, json.dumps({"object": "list", "data": [about]}).encode()
        if path == "/metrics":
            head = "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running"
            return (
                200,
                f"{head} {self.running}\n# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting 0\n".encode(),
            )
        if path in ("/health", "/v1/health", "/readyz"):
            return super()._get(path)
        return 404, _refusal("there is no such page", None, "not_found")


_MARK = re.compile(r"\[\[(\w+)((?: \w+=[\w.-]+)*)\]\]")


def _refusal(message: str, param: str | None, code: str) -> bytes:
    told = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return json.dumps({"error": told}).encode()
