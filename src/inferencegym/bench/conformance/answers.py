"""Checks of what a server answers: models, whole answers, streams, counts of tokens, and fields that must be honoured or refused."""

from __future__ import annotations

from typing import Any

import aiohttp

from inferencegym.bench.conformance.check import MUST, SHOULD, Group, expect
from inferencegym.bench.conformance.talk import CHAT, COMPLETIONS, MODELS, Probe, Stream, text_of

GROUP = Group("api")
FINISH = ("stop", "length", "tool_calls", "content_filter", "function_call")


def _one_choice(told: Any, kind: str) -> dict[str, Any]:
    """The only choice of a whole answer whose frame must be sound."""
    expect(isinstance(told, dict), f"{type(told).__name__}", "an object")
    expect(isinstance(told.get("id"), str) and bool(told["id"]), f"id {told.get('id')!r}", "an id")
    expect(told.get("object") == kind, f"object {told.get('object')!r}", kind)
    expect(type(told.get("created")) is int, f"created {told.get('created')!r}", "Unix seconds, an integer")
    choices = told.get("choices")
    expect(isinstance(choices, list) and len(choices) == 1, f"choices {str(choices)[:80]}", "one choice")
    choice: dict[str, Any] = choices[0]
    expect(choice.get("index") == 0, f"index {choice.get('index')!r}", "0")
    expect(choice.get("finish_reason") in FINISH, f"finish_reason {choice.get('finish_reason')!r}", " or ".join(FINISH))
    return choice


def _usage(told: Any) -> dict[str, int]:
    usage = told.get("usage") if isinstance(told, dict) else None
    expect(isinstance(usage, dict), f"usage {usage!r}", "prompt_tokens, completion_tokens, total_tokens")
    assert isinstance(usage, dict)
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
    expect(all(type(count) is int and count >= 1 for count in counts), f"usage {usage}", "three counts of 1 or more")
    expect(usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"], f"usage {usage}", "their sum")
    return usage


@GROUP.check("models-list", MUST)
async def models_list(probe: Probe) -> None:
    """GET /v1/models lists what can be asked for."""
    told = (await probe.call("GET", MODELS)).ok()
    expect(told.get("object") == "list", f"object {told.get('object')!r}", "list")
    names = [one.get("id") for one in told.get("data") or []]
    expect(probe.model in names, f"{names[:5]}", f"'{probe.model}' among them")
    expect(all(one.get("object") == "model" for one in told["data"]), "another object in data", "objects 'model'")


@GROUP.check("models-one", SHOULD)
async def models_one(probe: Probe) -> None:
    """GET /v1/models/NAME tells of one."""
    told = (await probe.call("GET", f"{MODELS}/{probe.model}")).ok()
    expect(told.get("id") == probe.model, f"id {told.get('id')!r}", probe.model)


@GROUP.check("chat", MUST)
async def chat(probe: Probe) -> None:
    """A chat answer has OpenAI's shape."""
    choice = _one_choice((await probe.post(probe.chat())).ok(), "chat.completion")
    message = choice.get("message") or {}
    expect(message.get("role") == "assistant", f"role {message.get('role')!r}", "assistant")
    expect(bool(text_of(choice)), f"message {message}", "text")


@GROUP.check("chat-parts", MUST)
async def chat_parts(probe: Probe) -> None:
    """A message's content may be parts."""
    parts = [{"type": "text", "text": "Tell me"}, {"type": "text", "text": " a story."}]
    answer = await probe.post(probe.chat() | {"messages": [{"role": "user", "content": parts}]})
    _one_choice(answer.ok(), "chat.completion")


@GROUP.check("chat-turns", MUST)
async def chat_turns(probe: Probe) -> None:
    """System, user and assistant messages are taken."""
    roles = (("system", "Be kind."), ("user", "Hello."), ("assistant", "Good day."), ("user", "Go on."))
    said = [{"role": role, "content": text} for role, text in roles]
    _one_choice((await probe.post(probe.chat() | {"messages": said})).ok(), "chat.completion")


@GROUP.check("completions", MUST)
async def completions(probe: Probe) -> None:
    """An answer of completions has OpenAI's shape."""
    answer = await probe.post({"model": probe.model, "prompt": "Once upon a time", "max_tokens": 8}, COMPLETIONS)
    choice = _one_choice(answer.ok(), "text_completion")
    expect(isinstance(choice.get("text"), str), f"text {choice.get('text')!r}", "text")


@GROUP.check("usage", MUST)
async def usage(probe: Probe) -> None:
    """A whole answer tells its token counts, and they add up."""
    _usage((await probe.post(probe.chat())).ok())


@GROUP.check("max-tokens", MUST)
async def max_tokens(probe: Probe) -> None:
    """max_tokens is kept, and an answer that it cut says 'length'."""
    await _kept(probe, "max_tokens")


@GROUP.check("max-completion-tokens", MUST)
async def max_completion_tokens(probe: Probe) -> None:
    """max_completion_tokens is kept."""
    await _kept(probe, "max_completion_tokens")


async def _kept(probe: Probe, name: str) -> None:
    body = probe.chat()
    del body["max_tokens"]
    told = (await probe.post(body | {name: 3, "ignore_eos": True})).ok()
    count = _usage(told)["completion_tokens"]
    expect(count <= 3, f"{count} tokens", "3 at most")
    reason = told["choices"][0].get("finish_reason")
    expect(reason == "length" or count < 3, f"finish_reason {reason!r} after {count} tokens", "length")


@GROUP.check("unknown-fields", MUST)
async def unknown_fields(probe: Probe) -> None:
    """Fields that nobody knows are tolerated."""
    (await probe.post(probe.chat(a_field_of_the_future={"deep": [1]}))).ok()


@GROUP.check("null-fields", MUST)
async def null_fields(probe: Probe) -> None:
    """A field that is null counts as not given."""
    (await probe.post(probe.chat(stop=None, seed=None, stream=None, user=None))).ok()


@GROUP.check("n", MUST)
async def several(probe: Probe) -> str | None:
    """Several choices (n) are given, or refused; never one for two."""
    answer = await probe.post(probe.chat(n=2, temperature=1))
    if answer.status != 200:
        answer.refused(400, 422)
        return "refused"
    indices = sorted(choice.get("index") for choice in answer.ok()["choices"])
    expect(indices == [0, 1], f"choices {indices}", "[0, 1], or 400")
    return "honoured"


@GROUP.check("stop", MUST)
async def stop(probe: Probe) -> str | None:
    """A stop string ends an answer, or is refused; never ignored."""
    # One of these is in any text of some words; 4 is as many as OpenAI takes.
    letters = ["a", "e", "o", "t"]
    answer = await probe.post(probe.chat(stop=letters, max_tokens=24, ignore_eos=True))
    if answer.status != 200:
        answer.refused(400, 422)
        return "refused"
    text = text_of(answer.ok()["choices"][0])
    expect(not any(letter in text for letter in letters), f"{text[:60]!r}", f"text without {letters}, or 400")
    return "honoured"


@GROUP.check("logprobs", MUST)
async def logprobs(probe: Probe) -> str | None:
    """Log probabilities (logprobs) are given, or refused; never ignored."""
    answer = await probe.post(probe.chat(logprobs=True, top_logprobs=1))
    if answer.status != 200:
        answer.refused(400, 422)
        return "refused"
    told = answer.ok()["choices"][0].get("logprobs")
    expect(bool(told and told.get("content")), f"logprobs {told!r}", "log probabilities, or 400")
    return "honoured"


# --- streams ---------------------------------------------------------------------------------------------------------------


def _pieces(stream: Stream, kind: str) -> tuple[Any, ...]:
    """The events of a sound stream, each of one kind and id."""
    events = stream.usable()
    kinds, ids = {one.get("object") for one in events}, {one.get("id") for one in events}
    expect(kinds == {kind}, f"objects {kinds}", kind)
    expect(len(ids) == 1 and None not in ids, f"ids {sorted(map(str, ids))[:3]}", "one id in all events")
    ends = [choice["finish_reason"] for one in events for choice in one["choices"] if choice.get("finish_reason")]
    expect(len(ends) == 1 and ends[0] in FINISH, f"finish_reason {ends}", "one, in the last piece")
    expect(
        any(text_of(choice) for one in events for choice in one["choices"]),
        f"{len(events)} events without text",
        "text",
    )
    return events


@GROUP.check("stream", MUST)
async def stream(probe: Probe) -> None:
    """A chat stream is server-sent events of one id, one finish_reason, and [DONE]."""
    got = await probe.stream(probe.chat())
    kind = got.headers.get("content-type", "")
    expect(kind.startswith("text/event-stream"), f"content-type {kind!r}", "text/event-stream")
    events = _pieces(got, "chat.completion.chunk")
    first = next(one["choices"][0] for one in events if one["choices"])
    expect((first.get("delta") or {}).get("role") == "assistant", f"first piece {first}", "role assistant")


@GROUP.check("stream-completions", MUST)
async def stream_completions(probe: Probe) -> None:
    """So is a stream of completions."""
    body = {"model": probe.model, "prompt": "Once upon a time", "max_tokens": 8}
    _pieces(await probe.stream(body, COMPLETIONS), "text_completion")


@GROUP.check("stream-incremental", MUST)
async def stream_incremental(probe: Probe) -> str:
    """A stream comes piece by piece, not all at its end."""
    async with probe.begun(probe.lasting()) as answer:
        parts = 1
        async for _ in answer.content.iter_any():
            parts += 1
            if parts >= 3:
                return "3 parts came one after the other"
    expect(False, f"{parts} parts in all", "pieces as they are made")
    return ""


@GROUP.check("stream-usage", MUST)
async def stream_usage(probe: Probe) -> None:
    """With include_usage, one last event has the counts and no choices."""
    events = (await probe.stream(probe.chat(stream_options={"include_usage": True}))).usable()
    last = events[-1]
    expect(last.get("choices") == [], f"choices {str(last.get('choices'))[:80]} in the last event", "[]")
    told = _usage(last)
    early = [one["usage"] for one in events[:-1] if one.get("usage")]
    expect(not early, f"{len(early)} earlier events have a usage", "null until the last event")
    whole = _usage((await probe.post(probe.chat())).ok())
    expect(told["prompt_tokens"] == whole["prompt_tokens"], f"{told} streamed, {whole} whole", "the same prompt tokens")


@GROUP.check("stream-no-usage", MUST)
async def stream_no_usage(probe: Probe) -> None:
    """Without include_usage no event has counts or lacks a choice."""
    events = (await probe.stream(probe.chat())).usable()
    told = [one for one in events if one.get("usage") or not one.get("choices")]
    expect(not told, f"{str(told[:1])[:120]}", "counts only if asked for")


@GROUP.check("stream-usage-so-far", SHOULD)
async def stream_usage_so_far(probe: Probe) -> None:
    """Counts so far in each event, if asked for (continuous_usage_stats, as vLLM)."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = (await probe.stream(probe.chat(stream_options=options))).usable()
    pieces = [one for one in events if any(text_of(choice) for choice in one.get("choices") or ())]
    counts = [(one.get("usage") or {}).get("completion_tokens") for one in pieces]
    expect(all(type(count) is int for count in counts), f"counts {counts}", "a count in each event")
    known = [count for count in counts if count is not None]
    expect(known == sorted(known), f"counts {counts}", "growing counts")


@GROUP.check("stream-refused", MUST)
async def stream_refused(probe: Probe) -> None:
    """A stream that cannot begin is refused with a status and an envelope, not with 200."""
    got = await probe.stream(probe.chat() | {"messages": "no list"})
    got.whole.refused(400, 422)


@GROUP.check("connection-kept", SHOULD)
async def connection_kept(probe: Probe) -> str:
    """A connection is used again after an answer, an error and a stream."""
    opened = 0

    async def count(*_: object) -> None:
        nonlocal opened
        opened += 1

    traced = aiohttp.TraceConfig()
    traced.on_connection_create_start.append(count)
    bodies: tuple[dict[str, Any], ...] = (probe.chat(), {}, probe.chat(stream=True), probe.chat())
    async with aiohttp.ClientSession(headers=probe.session.headers, trace_configs=[traced]) as session:
        for body in bodies:
            async with session.post(probe.asked.url + CHAT, json=body) as answer:
                await answer.read()
    expect(opened == 1, f"{opened} connections for {len(bodies)} requests", "1")
    return f"1 for {len(bodies)} requests"
