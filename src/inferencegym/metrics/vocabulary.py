"""Every metric's one home: name, unit, formula and the names others call it by; all tables and charts look here.

Values are seconds, tokens and fractions inside; `screen_unit` and `screen_scale` say how a person is shown them.
`python -m inferencegym.metrics.vocabulary > docs/vocabulary.md` writes the page.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from inferencegym.ground.errors import UnknownNameError
from inferencegym.ground.units import show_number

Kind = Literal["distribution", "gauge", "counter"]
Better = Literal["lower", "higher", ""]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, defined once."""

    name: str
    """What it is called in code, JSON and columns; it carries its unit."""
    label: str
    """What it is called on screens."""
    unit: str
    """Unit of the value inside: s, tokens, 1 (a fraction), requests/s."""
    formula: str
    """How it comes from the columns of Records or the engine's totals."""
    description: str
    """What it tells a person, in a sentence."""
    kind: Kind
    """distribution: summarised by mean and percentiles; gauge: one value; counter: a number that only grows."""
    group: str
    """The heading it stands under."""
    better: Better = ""
    """Which way is better; empty where neither is."""
    screen_unit: str = ""
    """Unit on screens; the same as `unit` if empty."""
    screen_scale: float = 1.0
    """The value times this is shown on screens."""
    prometheus: str = ""
    """Our Prometheus series; empty where none is exported."""
    vllm: str = ""
    """vLLM's series for the same thing, for dashboards made for vLLM; empty where it has none."""

    @property
    def heading(self) -> str:
        """Label and unit, as a column or an axis is titled: 'TTFT (ms)'."""
        shown = self.screen_unit or self.unit
        return self.label if self.kind == "counter" or shown == "requests" else f"{self.label} ({shown})"

    def show(self, value: float | None) -> str:
        """The value as a screen shows it, without its unit; a dash where there is none."""
        if value is None or math.isnan(value):
            return "-"
        return show_number(value * self.screen_scale, whole=self.kind == "counter")


LATENCY, RATE, SERVICE, MEMORY, COST, COUNT, GATEWAY = (
    "Latency",
    "Throughput",
    "Service levels",
    "Memory",
    "Cost",
    "Counts",
    "Gateway",
)


def _latency(name: str, label: str, formula: str, description: str, vllm: str) -> Metric:
    return Metric(
        name=name,
        label=label,
        unit="s",
        formula=formula,
        description=description,
        kind="distribution",
        group=LATENCY,
        better="lower",
        screen_unit="ms",
        screen_scale=1000.0,
        prometheus=f"inferencegym_{name.removesuffix('_s')}_seconds",
        vllm=vllm,
    )


def _gauge(
    name: str,
    label: str,
    unit: str,
    formula: str,
    description: str,
    group: str,
    *,
    better: Better = "",
    percent: bool = False,
    prometheus: str = "",
    vllm: str = "",
) -> Metric:
    return Metric(
        name=name,
        label=label,
        unit=unit,
        formula=formula,
        description=description,
        kind="gauge",
        group=group,
        better=better,
        screen_unit="%" if percent else "",
        screen_scale=100.0 if percent else 1.0,
        prometheus=prometheus,
        vllm=vllm,
    )


def _counter(
    name: str,
    label: str,
    unit: str,
    formula: str,
    description: str,
    *,
    better: Better = "",
    vllm: str = "",
    group: str = COUNT,
) -> Metric:
    return Metric(
        name=name,
        label=label,
        unit=unit,
        formula=formula,
        description=description,
        kind="counter",
        group=group,
        better=better,
        prometheus=f"inferencegym_{name}_total",
        vllm=vllm,
    )


METRICS: tuple[Metric, ...] = (
    _latency(
        "queue_s",
        "Queue time",
        "scheduled_s - arrival_s, where it was scheduled",
        "How long a request waited before the engine first worked on it.",
        "vllm:request_queue_time_seconds",
    ),
    _latency(
        "ttft_s",
        "TTFT",
        "first_token_s - arrival_s, where there was a first token",
        "Time to first token: how long until the caller saw anything.",
        "vllm:time_to_first_token_seconds",
    ),
    _latency(
        "itl_s",
        "ITL",
        "gaps between successive emissions of each request, all requests together",
        "Inter-token latency: each single pause a reader sees, preemptions included.",
        "vllm:inter_token_latency_seconds",
    ),
    _latency(
        "tpot_s",
        "TPOT",
        "(finish_s - first_token_s) / (output_tokens - 1), where completed with 2 or more tokens",
        "Time per output token: a request's mean pace after its first token; one value a request.",
        "vllm:request_time_per_output_token_seconds",
    ),
    _latency(
        "e2e_s",
        "E2E",
        "finish_s - arrival_s, where completed",
        "End-to-end latency: how long until the caller had the whole answer.",
        "vllm:e2e_request_latency_seconds",
    ),
    _gauge(
        "span_s",
        "Span",
        "s",
        "last finish_s - first arrival_s, unless the caller gives the span of a window",
        "The time that all rates are per.",
        RATE,
    ),
    _gauge(
        "arrival_rps",
        "Offered",
        "requests/s",
        "(requests - 1) / (last arrival_s - first arrival_s)",
        "Requests that came per second, by their own span, so that it shows where it exceeds what was completed.",
        RATE,
    ),
    _gauge(
        "throughput_rps",
        "Completed",
        "requests/s",
        "ok / span_s",
        "Requests completed per second.",
        RATE,
        better="higher",
    ),
    _gauge(
        "output_tps",
        "Output",
        "tokens/s",
        "sum of output_tokens / span_s",
        "Output tokens made per second.",
        RATE,
        better="higher",
    ),
    _gauge(
        "total_tps",
        "Prompt + output",
        "tokens/s",
        "sum of prompt_tokens of requests that had a first token, and of all output_tokens, / span_s",
        "Tokens served per second, those of the prompts included (also those found in the prefix cache).",
        RATE,
        better="higher",
    ),
    _gauge(
        "output_tps_per_gpu",
        "Output per GPU",
        "tokens/s",
        "output_tps / gpus",
        "Output tokens per second that each GPU earned.",
        RATE,
        better="higher",
    ),
    _gauge(
        "running_mean",
        "Running",
        "requests",
        "mean over time of requests that hold a seat, all replicas together",
        "How many requests the engine worked on at once.",
        RATE,
        prometheus="inferencegym_requests_running",
        vllm="vllm:num_requests_running",
    ),
    _gauge(
        "waiting_mean",
        "Waiting",
        "requests",
        "mean over time of requests in the queue, all replicas together",
        "How many requests waited for a seat.",
        RATE,
        better="lower",
        prometheus="inferencegym_requests_waiting",
        vllm="vllm:num_requests_waiting",
    ),
    _gauge(
        "spec_acceptance_fraction",
        "Drafts accepted",
        "1",
        "accepted / drafted tokens of the engine's totals",
        "Share of speculative draft tokens that were accepted.",
        RATE,
        better="higher",
        percent=True,
        prometheus="inferencegym_spec_acceptance_ratio",
    ),
    _gauge(
        "goodput_rps",
        "Goodput",
        "requests/s",
        "requests that met their SLO / span_s",
        "Completed requests per second that were also quick enough.",
        SERVICE,
        better="higher",
        prometheus="inferencegym_goodput_requests_per_second",
    ),
    _gauge(
        "slo_attainment",
        "SLO met",
        "1",
        "requests that met their SLO / requests whose class has one",
        "Share of requests that completed within every limit of their class; one that did not complete missed it.",
        SERVICE,
        better="higher",
        percent=True,
        prometheus="inferencegym_slo_attainment_ratio",
    ),
    _gauge(
        "kv_used_mean",
        "KV use",
        "1",
        "mean over time of KV blocks held by requests / blocks in the pool",
        "How full the KV memory was on average.",
        MEMORY,
        percent=True,
        prometheus="inferencegym_kv_used_ratio",
        vllm="vllm:kv_cache_usage_perc",
    ),
    _gauge(
        "kv_used_max",
        "KV use, peak",
        "1",
        "greatest KV blocks held by requests / blocks in the pool",
        "How full the KV memory was at its fullest.",
        MEMORY,
        percent=True,
    ),
    _gauge(
        "prefix_hit_fraction",
        "Prefix hits",
        "1",
        "sum of cached_tokens / sum of prompt_tokens, over scheduled requests",
        "Share of prompt tokens that were found in the prefix cache at first admission.",
        MEMORY,
        better="higher",
        percent=True,
        prometheus="inferencegym_prefix_hit_ratio",
    ),
    _gauge(
        "cost_per_hour",
        "Price",
        "$/h",
        "price of one GPU per hour * gpus",
        "What the whole deployment costs per hour.",
        COST,
        better="lower",
    ),
    _gauge(
        "cost_per_1k_output_tokens",
        "Cost",
        "$/1k tokens",
        "cost_per_hour * span_s / 3600 / (output tokens / 1000)",
        "What a thousand output tokens cost, idle time included.",
        COST,
        better="lower",
        prometheus="inferencegym_cost_per_1k_output_tokens",
    ),
    _counter("requests", "Requests", "requests", "rows of Records", "Requests that ended, in whatever way."),
    _counter(
        "ok",
        "OK",
        "requests",
        "outcome = OK",
        "Requests that made all their tokens.",
        better="higher",
        vllm="vllm:request_success_total",
    ),
    _counter(
        "refused_length",
        "Too long",
        "requests",
        "outcome = REFUSED_LENGTH",
        "Refused at arrival: the prompt is as long as the longest sequence the deployment takes, or longer.",
        better="lower",
    ),
    _counter(
        "never_fits",
        "Never fits",
        "requests",
        "outcome = NEVER_FITS",
        "Dropped at the head of the queue: its KV is larger than the whole block pool.",
        better="lower",
    ),
    _counter("aborted", "Aborted", "requests", "outcome = ABORTED", "The caller went away.", better="lower"),
    _counter(
        "rejected",
        "Rejected",
        "requests",
        "outcome = REJECTED",
        "Turned away at the door: queue full, rate limit, or too long a wait ahead.",
        better="lower",
    ),
    _counter("failed", "Failed", "requests", "outcome = FAILED", "The server or the backend broke.", better="lower"),
    _counter(
        "prompt_tokens",
        "Prompt tokens",
        "tokens",
        "sum of prompt_tokens of requests that had a first token",
        "Prompt tokens served, those found in the prefix cache included.",
        vllm="vllm:prompt_tokens_total",
    ),
    _counter(
        "output_tokens",
        "Output tokens",
        "tokens",
        "sum of output_tokens",
        "Output tokens made.",
        vllm="vllm:generation_tokens_total",
    ),
    _counter(
        "cached_tokens",
        "Cached tokens",
        "tokens",
        "sum of cached_tokens",
        "Prompt tokens that were found in the prefix cache at first admission.",
        vllm="vllm:prefix_cache_hits_total",
    ),
    _counter(
        "preemptions",
        "Preemptions",
        "times",
        "sum of preemptions",
        "Times a running request had to make room for another.",
        better="lower",
        vllm="vllm:num_preemptions_total",
    ),
    _counter(
        "swaps",
        "Swaps",
        "times",
        "sum of swaps",
        "Preemptions that moved the KV to the CPU tier instead of dropping it.",
    ),
    _counter("steps", "Steps", "times", "steps of the engine's totals", "Forward passes that the engine made."),
    _counter(
        "drafted",
        "Drafted tokens",
        "tokens",
        "drafted of the engine's totals",
        "Speculative draft tokens that were checked.",
        vllm="vllm:spec_decode_num_draft_tokens_total",
    ),
    _counter(
        "accepted",
        "Accepted tokens",
        "tokens",
        "accepted of the engine's totals",
        "Speculative draft tokens that were accepted.",
        better="higher",
        vllm="vllm:spec_decode_num_accepted_tokens_total",
    ),
    _counter(
        "evicted_blocks",
        "Evicted blocks",
        "blocks",
        "evicted_blocks of the engine's totals",
        "Blocks of the prefix cache that were given to someone else.",
        better="lower",
    ),
    _gauge(
        "oldest_wait_s",
        "Oldest wait",
        "s",
        "now - arrival_s of the request that has waited longest",
        "How long the request at the end of its patience has waited.",
        GATEWAY,
        better="lower",
        prometheus="inferencegym_oldest_wait_seconds",
    ),
    _gauge(
        "waiting_prompt_tokens",
        "Prompt tokens waiting",
        "tokens",
        "sum of prompt_tokens of requests in the gateway's queues",
        "How much prefill stands in the queue.",
        GATEWAY,
        prometheus="inferencegym_waiting_prompt_tokens",
    ),
    _gauge(
        "kv_tokens_in_flight",
        "KV tokens in flight",
        "tokens",
        "sum of prompt_tokens and the caller's limit, or the expected answer, of requests at the backends",
        "How much KV the requests in flight may come to hold; what the knob kv_budget_fraction caps.",
        GATEWAY,
        prometheus="inferencegym_kv_tokens_in_flight",
    ),
    _gauge(
        "backend_in_flight",
        "In flight",
        "requests",
        "requests handed to the backend that have not ended",
        "How many requests each backend has.",
        GATEWAY,
        prometheus="inferencegym_backend_in_flight",
    ),
    _gauge(
        "backend_up",
        "Backend up",
        "1",
        "1 if it is healthy and its breaker lets requests through, else 0",
        "Whether a backend is given requests.",
        GATEWAY,
        better="higher",
        prometheus="inferencegym_backend_up",
    ),
    _gauge(
        "class_waiting",
        "Waiting, by class",
        "requests",
        "requests of the class that wait for a seat",
        "Who stands in the queue.",
        GATEWAY,
        better="lower",
        prometheus="inferencegym_class_requests_waiting",
    ),
    _gauge(
        "workers",
        "Workers",
        "1",
        "processes of the server whose figures these are",
        "How many processes serve, and are counted here together.",
        GATEWAY,
        prometheus="inferencegym_workers",
    ),
    _counter(
        "refused",
        "Refused",
        "requests",
        "requests not let in by rates, caps or predicted wait",
        "Which limit turned requests away.",
        better="lower",
        group=GATEWAY,
    ),
    _gauge(
        "shared_up",
        "Shared limits",
        "1",
        "1 if Redis decides for all gateways together, 0 if each decides for itself because Redis is gone",
        "Whether limits hold for all gateways together; there is none without Redis in the settings.",
        GATEWAY,
        better="higher",
        prometheus="inferencegym_shared_up",
    ),
    _counter(
        "shared_failures",
        "Redis lost",
        "times",
        "times Redis was lost",
        "How often the gateways were left to their own limits.",
        better="lower",
        group=GATEWAY,
    ),
    _counter(
        "shared_local",
        "Decided alone",
        "requests",
        "requests that local limits decided because Redis did not answer",
        "For how many requests limits did not hold for all gateways together.",
        better="lower",
        group=GATEWAY,
    ),
    _counter(
        "recorded",
        "Recorded",
        "requests",
        "requests that lie in whole files of recorder.folder",
        "How much of the traffic is kept.",
        group=GATEWAY,
    ),
    _counter(
        "unrecorded",
        "Not recorded",
        "requests",
        "requests whose file could not be written",
        "How much of the traffic a full disk has cost.",
        better="lower",
        group=GATEWAY,
    ),
    _counter(
        "released",
        "Released",
        "requests",
        "requests handed to a backend, by why they went when they did",
        "Why requests left the queue: immediate, size, seats, timeout or drain.",
        group=GATEWAY,
    ),
    _counter(
        "batches",
        "Batches",
        "times",
        "the same, batches of requests that went together counted once",
        "How often a batch was let go, and why.",
        group=GATEWAY,
    ),
    _counter(
        "retries",
        "Retries",
        "times",
        "requests handed to another backend after one failed them",
        "How often a second backend was tried.",
        better="lower",
        group=GATEWAY,
    ),
    _gauge(
        "gpu_telemetry_up",
        "GPU telemetry",
        "1",
        "1 if nvidia-smi answered, else 0",
        "Whether the GPU's figures are known at all.",
        GATEWAY,
        prometheus="inferencegym_gpu_telemetry_up",
    ),
    _gauge(
        "gpu_busy_fraction",
        "GPU busy",
        "1",
        "utilization.gpu of nvidia-smi / 100",
        "Share of time in which the GPU computed anything.",
        GATEWAY,
        percent=True,
        prometheus="inferencegym_gpu_busy_ratio",
    ),
    _gauge(
        "gpu_memory_used_bytes",
        "GPU memory",
        "bytes",
        "memory.used of nvidia-smi",
        "GPU memory in use, by whomever.",
        GATEWAY,
        prometheus="inferencegym_gpu_memory_used_bytes",
    ),
    _gauge(
        "gpu_memory_bytes",
        "GPU memory, all",
        "bytes",
        "memory.total of nvidia-smi",
        "GPU memory there is.",
        GATEWAY,
        prometheus="inferencegym_gpu_memory_bytes",
    ),
    _gauge(
        "gpu_power_w",
        "GPU power",
        "W",
        "power.draw of nvidia-smi",
        "What the GPU draws.",
        GATEWAY,
        prometheus="inferencegym_gpu_power_watts",
    ),
    _gauge(
        "gpu_temperature_c",
        "GPU temperature",
        "degrees C",
        "temperature.gpu of nvidia-smi",
        "How hot the GPU is.",
        GATEWAY,
        prometheus="inferencegym_gpu_temperature_celsius",
    ),
)

_BY_NAME = {metric.name: metric for metric in METRICS}


def metric(name: str) -> Metric:
    """The metric called `name`."""
    found = _BY_NAME.get(name)
    if found is None:
        raise UnknownNameError("metric", name, _BY_NAME)
    return found


def to_markdown() -> str:
    """The vocabulary as the page docs/vocabulary.md."""
    lines = [
        "# Vocabulary: every metric, defined once",
        "",
        "Generated by `python -m inferencegym.metrics.vocabulary > docs/vocabulary.md`; a test fails when it is stale.",
        "Names are those of the JSON and the Python API, where times are seconds and shares are fractions; screens",
        "show milliseconds and per cent. The columns a formula speaks of are those of",
        "`inferencegym.metrics.record.Records`. Each latency has `mean, mean_ci95` (half the width of the mean's 95 %",
        "interval, from batch means, because neighbouring requests are not independent), `p50, p90, p95, p99, max` and",
        "`count` (how many values it is of).",
        "",
    ]
    for group in dict.fromkeys(entry.group for entry in METRICS):
        lines += [
            f"## {group}",
            "",
            "| name | on screens | unit | formula | what it tells | Prometheus | vLLM's name |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [_row(entry) for entry in METRICS if entry.group == group]
        lines.append("")
    return "\n".join(lines)


def _row(entry: Metric) -> str:
    unit = {"1": "fraction"}.get(entry.unit, entry.unit)
    names = [f"`{series}`" if series else "" for series in (entry.prometheus, entry.vllm)]
    cells = [f"`{entry.name}`", entry.heading, unit, entry.formula, entry.description, *names]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the page."""
    print(to_markdown(), end="")


if __name__ == "__main__":
    main()
