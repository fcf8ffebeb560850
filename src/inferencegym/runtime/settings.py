"""The runtime's settings as one typed tree: what each is, its unit, its range, its default, and which can change while it runs.

`loading.load_settings` reads it from defaults, TOML, environment and flags; `checks.check_settings` says which limits could never be in force.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, field

from inferencegym.ground.errors import ConfigError
from inferencegym.ground.units import MIB
from inferencegym.runtime.section import Section, defaults

Count = Annotated[int, Meta(ge=1, le=10_000_000)]
Bytes = Annotated[int, Meta(ge=1024, le=1 << 40)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Rate = Annotated[float, Meta(gt=0, le=1e9)]
Weight = Annotated[float, Meta(ge=1e-3, le=1e3)]
Name = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^\s.=,]+$")]

OrderName = Literal["fcfs", "priority", "aging", "wfq", "vtc", "edf", "sjf"]
Routing = Literal["round_robin", "least_loaded", "prefix"]


class ServerSettings(Section, frozen=True):
    """The HTTP server."""

    PATH: ClassVar[str] = "server"

    host: str = "127.0.0.1"
    """Address to listen on; beyond loopback keys are required."""
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8000
    """TCP port; 0: any free one."""
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    """Processes that share the port. Limits hold for all of them together only with `shared.redis_url`."""
    max_body_bytes: Bytes = 4 * MIB
    """Largest request body; more is answered 413."""
    header_timeout_s: Seconds = 10.0
    """Time to send a request's head."""
    write_timeout_s: Seconds = 30.0
    """A client that takes nothing of what waits for it, for so long, is cut off; who reads slowly is not."""
    drain_timeout_s: Annotated[float, Meta(ge=0, le=86_400)] = 30.0
    """Time that requests under way get after SIGTERM."""
    keepalive_comment_s: Seconds = 15.0
    """A stream that is silent for so long gets a comment line, so that proxies keep it open."""
    request_timeout_s: Seconds = 600.0
    """Longest time from arrival to the last token."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call; empty: CORS is off."""
    overhead_header: bool = True
    """Tell in each answer what the gateway itself took."""
    dashboard: bool = True
    """Serve the dashboard at /dashboard; it needs the extra `web`."""
    log: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log line that is written."""


class Key(Section, frozen=True):
    """An API key, kept as a hash, and what its holder may do; its name is the tenant."""

    PATH: ClassVar[str] = "keys"

    name: Name
    """The tenant's name in limits, metrics and logs."""
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    """SHA-256 of the key, hexadecimal."""
    admin: bool = False
    """Whether it may read and change the live configuration."""
    slo_class: str = ""
    """Service class of its requests; empty: the first class, or what the request says."""
    rate_rps: Rate | None = None
    """Requests a second; none: no limit of its own."""
    burst: Count | None = None
    """Requests at once, before the rate holds; none: one second's worth, at least 1."""
    tokens_per_min: Rate | None = None
    """Prompt and answer tokens a minute; none: no limit of its own."""
    weight: Weight = 1.0
    """Share of service relative to other tenants, under wfq and vtc."""


#: Fields of a backend that only some kinds have.
ONLY: dict[str, tuple[str, ...]] = {
    "gpu": ("mock",), "profile": ("mock",), "gpus": ("mock",), "time_scale": ("mock",), "failures": ("mock",), "engine": ("mock",),
    "api_key_env": ("openai", "llama.cpp", "vllm"),
    "model_path": ("llama.cpp", "vllm"), "command": ("llama.cpp", "vllm"), "adopt": ("llama.cpp", "vllm"),
    "n_gpu_layers": ("llama.cpp",), "slots": ("llama.cpp",), "ctx": ("llama.cpp",), "batch": ("llama.cpp",), "threads": ("llama.cpp",),
    "max_num_seqs": ("vllm", "mock"), "gpu_memory_utilization": ("vllm",), "max_model_len": ("vllm", "mock"), "control_file": ("vllm",),
    "kv_tokens": ("openai", "llama.cpp", "vllm"),
}  # fmt: skip


class BackendSettings(Section, frozen=True):
    """An engine behind the gateway; which fields belong to which kind says `ONLY`."""

    PATH: ClassVar[str] = "backends"

    kind: Literal["mock", "openai", "llama.cpp", "vllm"] = "mock"
    """mock: our engine in real or scaled time; openai: any compatible URL; llama.cpp and vllm: a server that we start, watch and stop, or adopt."""
    name: Name = "main"
    """Its name in metrics, logs and the live configuration; unlike all others."""
    url: str = ""
    """Where its API is, without /v1; for llama.cpp and vllm empty: a free port here."""
    model: str = ""
    """The model it is asked for; mock: a model of the catalogue."""
    served_models: tuple[str, ...] = ()
    """Names under which clients ask for it; empty: `model`, or what the server lists."""
    weight: Weight = 1.0
    """Its share of the requests, relative to other backends."""
    variant: Literal["", "FP16", "INT8", "INT4"] = ""
    """Weight format, for the precision knob; empty: not one of several."""
    pool: Literal["", "prefill", "decode"] = ""
    """Which pool of a split deployment it belongs to; empty: both."""
    max_concurrency: Count | None = None
    """Requests in flight to it; none: `dispatch.max_concurrency`."""
    connect_timeout_s: Seconds = 5.0
    """Time to open a connection."""
    silence_timeout_s: Seconds = 300.0
    """Longest time without a byte while an answer is awaited or read."""
    health_interval_s: Seconds = 5.0
    """Time between two health checks."""
    start_timeout_s: Seconds = 600.0
    """Time to become ready after the start."""
    api_key_env: str = ""
    """Environment variable that holds the key we show to it."""
    gpu: str = "h100"
    """mock: GPU of the catalogue."""
    gpus: Annotated[int, Meta(ge=1, le=1024)] = 1
    """mock: GPUs of one replica (tensor parallel)."""
    profile: str = ""
    """mock: latency profile, a name or a TOML file; empty: the GPU's."""
    time_scale: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    """mock: how many times faster than real time it runs."""
    failures: dict[str, Annotated[float, Meta(ge=0, le=1)]] = field(default_factory=dict)
    """mock: chance of each type of failure, by its name."""
    engine: dict[str, Any] = field(default_factory=dict)
    """mock: engine settings by name, as in `simulate --set engine.NAME=VALUE`."""
    model_path: str = ""
    """llama.cpp: GGUF file; vllm: folder or hub name if it is not `model`."""
    n_gpu_layers: Annotated[int, Meta(ge=-1, le=1000)] = 0
    """llama.cpp: layers on the GPU; -1: all."""
    slots: Count | None = None
    """llama.cpp: requests side by side (-np); none: 4."""
    ctx: Count | None = None
    """llama.cpp: context of one slot, tokens; none: 4096."""
    batch: Count | None = None
    """llama.cpp: tokens of a step (-b); none: its default."""
    threads: Count | None = None
    """llama.cpp: CPU threads; none: its default."""
    command: tuple[str, ...] = ()
    """llama.cpp, vllm: program and arguments to start it with; empty: what is found on this machine."""
    adopt: bool = False
    """llama.cpp, vllm: use the server at `url`, neither start nor stop it."""
    max_num_seqs: Count | None = None
    """vllm, mock: requests side by side; none: the engine's default."""
    gpu_memory_utilization: Annotated[float, Meta(gt=0, le=1)] | None = None
    """vllm: share of the GPU's memory; none: its default."""
    max_model_len: Count | None = None
    """vllm, mock: longest prompt plus answer, tokens; none: the model's."""
    kv_tokens: Count | None = None
    """openai, llama.cpp, vllm: tokens that its KV memory holds, which the knob kv_budget_fraction is a share of; none: what it says itself, where it does."""
    control_file: str = ""
    """vllm: file through which our scheduler class takes live limits; empty: a temporary one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        usual = defaults(BackendSettings)
        for name, kinds in ONLY.items():
            if self.kind not in kinds and getattr(self, name) != usual[name]:
                raise ConfigError(
                    f"{self.path()}.{name}", f"a backend of kind '{self.kind}' has no such setting", allowed=f"only for {', '.join(kinds)}"
                )  # fmt: skip


class QueueSettings(Section, frozen=True):
    """Requests that wait: who goes first, how many may wait, how long. Live."""

    PATH: ClassVar[str] = "queue"

    order: OrderName = "fcfs"
    """fcfs; priority (bands); aging (priority that grows with waiting); wfq (tenants' tokens, deficit round robin); vtc (tenants' token counters); edf (TTFT deadlines); sjf (predicted length, aging)."""
    aging_s: Seconds = 10.0
    """aging: waiting time that makes up for one priority level."""
    aging_levels: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    """aging: most levels that waiting can make up for; none: no cap, and so no starvation."""
    sjf_tokens_per_s: Annotated[float, Meta(ge=0, le=1e9)] = 100.0
    """sjf: tokens of predicted work that one second of waiting makes up for; 0: shortest job only, which may starve long ones."""
    quantum_tokens: Annotated[int, Meta(ge=1, le=10_000_000)] = 2048
    """wfq: tokens that a tenant of weight 1 may send each round."""
    input_cost: Annotated[float, Meta(ge=0, le=1e3)] = 1.0
    """wfq, vtc, sjf: what a prompt token counts."""
    output_cost: Annotated[float, Meta(ge=0, le=1e3)] = 2.0
    """wfq, vtc, sjf: what an answer token counts."""
    weights: dict[str, Weight] = field(default_factory=dict)
    """Tenants' shares under wfq and vtc, by name; they go before the weights of keys; others 1."""
    max_requests: Annotated[int, Meta(ge=0, le=10_000_000)] = 1000
    """Requests that may wait; 0: none, a request that finds no free seat is refused."""
    max_prompt_tokens: Count | None = None
    """Prompt tokens that may wait; none: no limit."""
    max_bytes: Bytes = 256 * MIB
    """Bytes of request bodies that may wait."""
    ttl_s: Seconds = 60.0
    """Longest wait; the least of this, the class's and the request's own holds."""


class AdmissionSettings(Section, frozen=True):
    """Who is let in at all. Live."""

    PATH: ClassVar[str] = "admission"

    rate_rps: Rate | None = None
    """Requests a second of all callers; none: no limit."""
    burst: Count | None = None
    """Requests at once, before the rate holds; none: one second's worth, at least 1."""
    tokens_per_min: Rate | None = None
    """Prompt and answer tokens a minute of all callers: reserved at admission, settled at the end; none: no limit."""
    predicted_wait: bool = False
    """Refuse at once what would wait longer than its TTL or TTFT objective."""
    adaptive: Literal["off", "aimd", "gradient"] = "off"
    """Learn how many requests may be in flight from the time their first tokens take: aimd (up by one, down by a tenth) or gradient (in proportion to its rise)."""
    min_limit: Count = 1
    """adaptive: fewest requests in flight."""
    max_limit: Count = 1024
    """adaptive: most requests in flight."""
    latency_slo_s: Seconds | None = None
    """aimd: TTFT above which the limit shrinks; none: three times the least seen."""


class DispatchSettings(Section, frozen=True):
    """How waiting requests are handed to the backends. Live."""

    PATH: ClassVar[str] = "dispatch"

    max_concurrency: Count | None = None
    """Requests in flight to each backend; none: what it says it can do, else 64."""
    batching: bool = False
    """Hand over in batches, for backends that gain from it."""
    max_batch_size: Annotated[int, Meta(ge=1, le=65_536)] = 8
    """batching: a batch of so many goes at once."""
    batch_timeout_ms: Annotated[float, Meta(ge=0, le=60_000)] = 10.0
    """batching: a batch goes when its first request has waited so long."""


class ServiceClass(Section, frozen=True):
    """A class of service: objectives, limits and rank of its requests. Live, except its name."""

    PATH: ClassVar[str] = "classes"

    name: Name
    """Its name in keys, headers, metrics."""
    priority: Annotated[int, Meta(ge=-1_000_000, le=1_000_000)] = 0
    """Rank, lower is sooner; a request's own priority adds to it."""
    ttft_slo_s: Annotated[float, Meta(gt=0)] = float("inf")
    """Objective of the time to the first token; infinite: none."""
    itl_slo_s: Annotated[float, Meta(gt=0)] = float("inf")
    """Objective of the time between tokens; infinite: none."""
    ttl_s: Seconds | None = None
    """Longest wait; none: the queue's."""
    max_requests: Annotated[int, Meta(ge=0, le=10_000_000)] | None = None
    """Requests of the class that may wait; none: only the queue's cap."""
    max_prompt_tokens: Count | None = None
    """Prompt tokens of the class that may wait; none: only the queue's cap."""
    max_bytes: Bytes | None = None
    """Bytes of the class that may wait; none: only the queue's cap."""
    weight: Weight = 1.0
    """wfq, vtc: a token of this class counts 1/weight."""


class SharedSettings(Section, frozen=True):
    """State that several gateway processes share."""

    PATH: ClassVar[str] = "shared"

    redis_url: str = ""
    """`redis://[user:password@]host:port/db`, or `unix://`; empty: each process counts for itself."""
    prefix: Annotated[str, Meta(min_length=1, max_length=64)] = "inferencegym"
    """Beginning of every key written there."""
    timeout_s: Annotated[float, Meta(gt=0, le=10)] = 0.25
    """Longest wait for Redis before the local limits decide."""
    retry_s: Seconds = 1.0
    """Time between attempts to reach a Redis that is gone."""


class RecorderSettings(Section, frozen=True):
    """What is kept of live traffic: times, lengths, tenants and classes of requests that ended, never their content."""

    PATH: ClassVar[str] = "recorder"

    folder: str = ""
    """Where to write Parquet files of Records, each with the Workload that would bring the same traffic again; empty: none are written."""
    rows_per_file: Annotated[int, Meta(ge=1, le=10_000_000)] = 16_384
    """Requests in each pair of files."""
    rotate_s: Seconds = 300.0
    """Time after which what has ended is written even if it fills no file: what a crash could lose."""


class Settings(Section, frozen=True):
    """All settings of the runtime."""

    server: ServerSettings = ServerSettings()
    keys: tuple[Key, ...] = ()
    backends: tuple[BackendSettings, ...] = ()
    routing: Routing = "round_robin"
    """Which backend a request goes to: in turn, the least loaded, or the one that has its prefix cached. Live."""
    queue: QueueSettings = QueueSettings()
    admission: AdmissionSettings = AdmissionSettings()
    dispatch: DispatchSettings = DispatchSettings()
    classes: tuple[ServiceClass, ...] = (ServiceClass("default"),)
    """Service classes; the first one is for requests that name none."""
    shared: SharedSettings = SharedSettings()
    recorder: RecorderSettings = RecorderSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.classes:
            raise ConfigError("classes", "there is none", allowed="one or more")
        for what in ("keys", "backends", "classes"):
            names = [member.name for member in getattr(self, what)]
            for name in names:
                if names.count(name) > 1:
                    raise ConfigError(f"{what}.{name}", "there are two of this name", allowed="each name once")

    def weights(self) -> dict[str, float]:
        """Share of each tenant under wfq and vtc: the queue's word goes before the key's."""
        return {key.name: key.weight for key in self.keys if key.weight != 1.0} | self.queue.weights


#: Parts of the tree that can change while it runs, without dropping a request (a class's name cannot).
LIVE = ("routing", "queue", "admission", "dispatch", "classes")
