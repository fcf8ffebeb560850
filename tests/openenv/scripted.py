"""An OpenAI-compatible server whose every chunk is scripted: when it comes, how many there are, what fails, and what the server saw."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from tests.starting import InThread, free_port


@dataclass
class Script:
    """What happens to one request."""

    first_s: float = 0.0
    gap_s: float = 0.0
    tokens: int | None = None
    """Chunks; None: as many as the request allows."""
    status: int = 200
    break_after: int | None = None
    """After so many chunks the stream carries an error event."""
    text: str = "token "
    usage: bool = True


@dataclass
class ScriptedServer:
    """`script(body, number)` says what happens; `bodies`, `running`, `most_running` what was seen."""

    script: Callable[[dict, int], Script] = lambda body, number: Script()
    bodies: list[dict] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    running: int = 0
    most_running: int = 0

    def __post_init__(self):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        app = Starlette(routes=[Route("/v1/chat/completions", self._answer, methods=["POST"])])
        config = uvicorn.Config(app, port=self.port, log_level="error", timeout_graceful_shutdown=1)
        self.stop = InThread(uvicorn.Server(config)).stop

    async def _answer(self, request: Request):
        body = await request.json()
        number = len(self.bodies)
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization", ""))
        script = self.script(body, number)
        if script.status != 200:
            return JSONResponse({"error": {"message": "scripted", "code": script.status}}, script.status)
        prompt_tokens = sum(len(message["content"].split()) for message in body["messages"])
        most = body.get("max_tokens") or body.get("max_completion_tokens") or 16
        tokens = most if script.tokens is None else min(most, script.tokens)
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}
        common = {"id": "x", "created": 0, "model": body["model"]}
        if not body.get("stream"):
            message = {"role": "assistant", "content": script.text}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            return JSONResponse(common | {"object": "chat.completion", "choices": [choice], "usage": usage})
        common["object"] = "chat.completion.chunk"

        async def pieces():
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            try:
                # Due times are absolute, so that late wake-ups do not add up.
                begin = asyncio.get_running_loop().time()
                for i in range(tokens):
                    due = begin + script.first_s + i * script.gap_s
                    await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
                    if script.break_after == i:
                        yield 'data: {"error": {"message": "Context size has been exceeded", "code": 500}}\n\n'
                        return
                    choice = {"index": 0, "finish_reason": None, "delta": {"content": script.text}}
                    yield f"data: {json.dumps(common | {'choices': [choice]})}\n\n"
                if script.usage and (body.get("stream_options") or {}).get("include_usage"):
                    yield f"data: {json.dumps(common | {'choices': [], 'usage': usage})}\n\n"
                yield "data: [DONE]\n\n"
            finally:
                self.running -= 1

        return StreamingResponse(pieces(), media_type="text/event-stream")
