"""Checks of how a server says no, and of what surrounds an answer: the envelope on every path, ids, keys, probes, metrics."""

from __future__ import annotations

from inferencegym.bench.conformance.check import MUST, SHOULD, Group, expect, skip
from inferencegym.bench.conformance.exposition import read_samples
from inferencegym.bench.conformance.talk import CHAT, COMPLETIONS, MODELS, Probe
from inferencegym.ground.errors import InputError

GROUP = Group("refusals")
AROUND = Group("around")


@GROUP.check("unknown-model", MUST)
async def unknown_model(probe: Probe) -> str:
    """A model that is not there is 404."""
    error = (await probe.post(probe.chat() | {"model": "no-such-model-here"})).refused(404)
    return f"code {error['code']}"


@GROUP.check("malformed-json", MUST)
async def malformed(probe: Probe) -> None:
    """What is no JSON is 400."""
    (await probe.post(None, raw=b'{"model": ')).refused(400, 422)


@GROUP.check("empty-body", MUST)
async def empty(probe: Probe) -> None:
    """No body is 400."""
    (await probe.post(None, raw=b"")).refused(400, 422)


@GROUP.check("not-an-object", MUST)
async def not_an_object(probe: Probe) -> None:
    """JSON that is no object is 400."""
    (await probe.post([1, 2])).refused(400, 422)


@GROUP.check("missing-field", MUST)
async def missing(probe: Probe) -> None:
    """A request without messages, or without a prompt, is 400."""
    (await probe.post({"model": probe.model})).refused(400, 422)
    (await probe.post({"model": probe.model}, COMPLETIONS)).refused(400, 422)


@GROUP.check("wrong-type", MUST)
async def wrong_type(probe: Probe) -> None:
    """A field of a wrong type is 400."""
    for field, value in (("max_tokens", "many"), ("messages", "hello"), ("temperature", [1]), ("stream", "maybe")):
        answer = await probe.post(probe.chat() | {field: value})
        expect(answer.status in (400, 422), f"{field}={value!r}: {answer.said()}", "400 or 422")
        answer.refused(400, 422)


@GROUP.check("boolean-integer", SHOULD)
async def boolean(probe: Probe) -> None:
    """A boolean is no number of tokens."""
    (await probe.post(probe.chat(max_tokens=True))).refused(400, 422)


@GROUP.check("negative", MUST)
async def negative(probe: Probe) -> None:
    """A negative number of tokens is 400."""
    (await probe.post(probe.chat(max_tokens=-5))).refused(400, 422)


@GROUP.check("names-the-field", SHOULD)
async def names_the_field(probe: Probe) -> None:
    """A refusal names the field in 'param'."""
    error = (await probe.post(probe.chat(max_tokens="many"))).refused(400, 422)
    expect(str(error.get("param")).endswith("max_tokens"), f"param {error.get('param')!r}", "max_tokens")


@GROUP.check("deep-json", MUST)
async def deep(probe: Probe) -> None:
    """JSON nested a thousandfold does no harm."""
    answer = await probe.post(None, raw=b'{"model":' + b"[" * 5000)
    expect(400 <= answer.status < 500, answer.said(), "4xx")
    expect((await probe.post(probe.chat())).status == 200, "no answer after it", "200")


@GROUP.check("unknown-path", MUST)
async def unknown_path(probe: Probe) -> None:
    """A path that is not there is 404, in the envelope."""
    (await probe.call("GET", "/v1/no/such/path")).refused(404)


@GROUP.check("wrong-method", SHOULD)
async def wrong_method(probe: Probe) -> None:
    """A method that a path has not is 405, in the envelope."""
    (await probe.call("GET", CHAT)).refused(405)


# --- keys, ids, probes, metrics --------------------------------------------------------------------------------------------


@AROUND.check("wrong-key", MUST)
async def wrong_key(probe: Probe) -> None:
    """A server that asks for keys answers a wrong one, or none, with 401."""
    wrong = {"authorization": "Bearer sk-this-is-a-wrong-key"}
    answer = await probe.post(probe.chat(), headers=wrong)
    if answer.status == 200 and not probe.asked.key:
        skip("it asks for no key")
    answer.refused(401)
    (await probe.post(probe.chat(), headers={"authorization": ""})).refused(401)
    (await probe.call("GET", MODELS, headers=wrong)).refused(401)


@AROUND.check("request-id", SHOULD)
async def request_id(probe: Probe) -> None:
    """x-request-id comes back; who sends none gets one."""
    given = await probe.post(probe.chat(), headers={"x-request-id": "conformance-7"})
    expect(
        given.headers.get("x-request-id") == "conformance-7", f"{given.headers.get('x-request-id')}", "conformance-7"
    )
    first, second = [(await probe.post(probe.chat())).headers.get("x-request-id") for _ in range(2)]
    expect(bool(first) and first != second, f"{first}, {second}", "two ids")


@AROUND.check("request-id-of-errors", SHOULD)
async def request_id_of_errors(probe: Probe) -> None:
    """Errors have a request id too."""
    answer = await probe.post({}, headers={"x-request-id": "conformance-8"})
    expect(
        answer.headers.get("x-request-id") == "conformance-8", f"{answer.headers.get('x-request-id')}", "conformance-8"
    )


@AROUND.check("health", MUST)
async def health(probe: Probe) -> None:
    """GET /health is 200."""
    answer = await probe.call("GET", "/health")
    expect(answer.status == 200, answer.said(), "200")


@AROUND.check("probes", SHOULD)
async def probes(probe: Probe) -> None:
    """/livez and /readyz are two things."""
    for path in ("/livez", "/readyz"):
        answer = await probe.call("GET", path)
        expect(answer.status == 200, f"{path}: {answer.said()}", "200")


@AROUND.check("metrics", SHOULD)
async def metrics(probe: Probe) -> str:
    """GET /metrics is a page that Prometheus takes."""
    answer = await probe.call("GET", "/metrics")
    expect(answer.status == 200, answer.said(), "200")
    kind = answer.headers.get("content-type", "")
    expect(kind.startswith(("text/plain", "application/openmetrics-text")), f"content-type {kind!r}", "text/plain")
    try:
        return f"{len(read_samples(answer.body.decode()))} series"
    except (InputError, UnicodeDecodeError) as error:
        expect(False, str(error), "Prometheus' text format")
        return ""


@AROUND.check("metrics-head", SHOULD)
async def metrics_head(probe: Probe) -> None:
    """HEAD /metrics is 200 and empty."""
    answer = await probe.call("HEAD", "/metrics")
    expect((answer.status, answer.body) == (200, b""), answer.said(), "200, empty")


@AROUND.check("metrics-say-load", SHOULD)
async def metrics_say_load(probe: Probe) -> None:
    """The metrics say how many requests run and wait."""
    async with probe.begun(probe.lasting()):
        became, _, seen = await probe.until(lambda running, waiting: running >= 1, 1.0)
    expect(became, f"running {seen[0]:g} while a stream is under way", "1 or more")
