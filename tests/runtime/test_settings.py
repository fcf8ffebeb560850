"""Settings: where they come from, which wins, what a wrong one is told, what is hidden, and which limits could never be in force."""

from __future__ import annotations

import hashlib

import msgspec.structs
import pytest

from inferencegym.ground.errors import ConfigError
from inferencegym.runtime.checks import check_settings
from inferencegym.runtime.loading import LISTS, SECTIONS, VARIABLES, load, load_settings, show
from inferencegym.runtime.section import bounds, defaults, fit, hints, meanings
from inferencegym.runtime.settings import (
    AdmissionSettings,
    BackendSettings,
    DispatchSettings,
    Key,
    QueueSettings,
    RecorderSettings,
    ServerSettings,
    ServiceClass,
    Settings,
)

FILE = """
routing = "least_loaded"

[server]
port = 9000

[queue]
order = "vtc"
max_requests = 50
weights = { alice = 2, bob = 0.5 }

[[backends]]
kind = "llama.cpp"
name = "small"
model_path = "/models/tiny.gguf"
slots = 4
command = ["llama-server", "--api-key", "hunter2", "--flash-attn", "--admin-token=hunter3"]

[[keys]]
name = "alice"
sha256 = "f52fbd32b2b3b86ff88ef6c490628285f482af15ddcb29541f94bcf526a3f6c7"

[[classes]]
name = "usual"

[[classes]]
name = "gold"
ttft_slo_s = 1
priority = -1

[shared]
redis_url = "redis://me:hunter2@localhost:6379/0"
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "runtime.toml"
    path.write_text(FILE)
    return path


def test_defaults_then_file_then_environment_then_flags(file):
    environ = {"LLM_RUNTIME_MAX_QUEUE_SIZE": "60", "LLM_RUNTIME_SERVER_PORT": "9001", "HOME": "/root"}
    flags = {"server.port": "9002", "backends.small.slots": 8, "classes.gold.ttl_s": "3", "backends.big.kind": "vllm"}
    loaded = load(file, environ, flags)
    settings, origins = loaded.settings, loaded.origins
    assert (settings.server.host, origins.get("server.host")) == ("127.0.0.1", None)
    assert (settings.queue.order, origins["queue.order"]) == ("vtc", str(file))
    assert (settings.queue.max_requests, origins["queue.max_requests"]) == (60, "environment LLM_RUNTIME_MAX_QUEUE_SIZE")  # fmt: skip
    assert (settings.server.port, origins["server.port"]) == (9002, "flag")
    assert [(one.name, one.kind, one.slots) for one in settings.backends] == [("small", "llama.cpp", 8), ("big", "vllm", None)]  # fmt: skip
    assert [(one.name, one.ttft_slo_s, one.ttl_s) for one in settings.classes] == [("usual", float("inf"), None), ("gold", 1.0, 3.0)]  # fmt: skip
    assert settings.weights() == {"alice": 2.0, "bob": 0.5}
    assert load_settings() == Settings()


def test_the_environment_names_people_already_use():
    values = {
        "BACKEND": ("vllm", lambda s: s.backends[0].kind),
        "VLLM_GPU_MEMORY_UTILIZATION": ("0.8", lambda s: s.backends[0].gpu_memory_utilization),
        "VLLM_MAX_MODEL_LEN": ("4096", lambda s: s.backends[0].max_model_len),
        "MAX_QUEUE_SIZE": ("7", lambda s: s.queue.max_requests),
        "REQUEST_RATE_LIMIT_PER_S": ("2.5", lambda s: s.admission.rate_rps),
        "REQUEST_RATE_LIMIT_BURST": ("5", lambda s: s.admission.burst),
        "ENABLE_BATCHING": ("true", lambda s: s.dispatch.batching),
        "MAX_BATCH_SIZE": ("16", lambda s: s.dispatch.max_batch_size),
        "BATCH_TIMEOUT_MS": ("25", lambda s: s.dispatch.batch_timeout_ms),
        "NATIVE_BACKEND_CONCURRENCY": ("12", lambda s: s.dispatch.max_concurrency),
        "REQUEST_TIMEOUT_S": ("30", lambda s: s.server.request_timeout_s),
    }
    llama = {"BACKEND": "llama.cpp", "MODEL_PATH": "/m.gguf", "N_GPU_LAYERS": "-1"}
    assert set(values) | set(llama) == set(VARIABLES)
    settings = load_settings(None, {f"LLM_RUNTIME_{name}": text for name, (text, _) in values.items()})
    for name, (text, get) in values.items():
        assert str(get(settings)).lower() in (text, f"{text}.0"), name
    backend = load_settings(None, {f"LLM_RUNTIME_{name}": text for name, text in llama.items()}).backends[0]
    assert (backend.kind, backend.model_path, backend.n_gpu_layers) == ("llama.cpp", "/m.gguf", -1)
    assert load_settings(None, {"LLM_RUNTIME_BACKEND_FAILURES": "refuse=0.1, hang=0.2", "LLM_RUNTIME_BACKEND_ENGINE": "max_num_seqs=8,order=vtc"}).backends[0].engine == {"max_num_seqs": 8, "order": "vtc"}  # fmt: skip
    assert load_settings(None, {"LLM_RUNTIME_ADMISSION_RATE_RPS": "none"}).admission.rate_rps is None


def test_the_file_may_be_named_by_the_environment(file):
    assert load_settings(None, {"LLM_RUNTIME_CONFIG": str(file)}).server.port == 9000
    with pytest.raises(ConfigError, match="no such file"):
        load_settings("/nowhere/x.toml")


@pytest.mark.parametrize(
    ("environ", "flags", "told"),
    [
        ({"LLM_RUNTIME_MAX_QUEU_SIZE": "3"}, {}, "did you mean 'LLM_RUNTIME_MAX_QUEUE_SIZE'"),
        (
            {"LLM_RUNTIME_MAX_QUEUE_SIZE": "many"},
            {},
            r"queue.max_requests: 'many' does not fit.*environment LLM_RUNTIME_MAX_QUEUE_SIZE",
        ),
        ({"LLM_RUNTIME_MAX_QUEUE_SIZE": "3", "LLM_RUNTIME_QUEUE_MAX_REQUESTS": "3"}, {}, "set the same"),
        ({"LLM_RUNTIME_API_KEY": "short"}, {}, "too short"),
        ({}, {"queue.ordr": "vtc"}, "did you mean 'order'"),
        ({}, {"que.order": "vtc"}, "did you mean 'queue'"),
        ({}, {"queue": 3}, "is a section"),
        ({}, {"queue.ttl_s": 0}, "above 0"),
        ({}, {"queue.ttl_s": "nan"}, "queue.ttl_s"),
        ({}, {"queue.ttl_s": "inf"}, "queue.ttl_s"),
        ({}, {"queue.order": "lifo"}, "fcfs, priority, aging, wfq, vtc, edf, sjf"),
        ({}, {"classes.gold.priority": 1}, "did you mean|no such setting"),
        ({}, {"backends.x.slots": 1}, "no such setting"),
        ({}, {"backends.x.kind": "mock", "backends.x.slots": 1}, "only for llama.cpp"),
        ({}, {"backends.a.b.kind": "mock"}, "backends.NAME.FIELD"),
        ({}, {"server.workers": True}, "whole number"),
    ],
)
def test_what_is_wrong_is_told_with_what_is_allowed(environ, flags, told):
    with pytest.raises(ConfigError, match=f"(?s){told}"):
        load_settings(None, environ, flags)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("queue = 3", r"allowed: \[queue\]"),
        ("[backends]\nkind = 'mock'", r"\[\[backends\]\]"),
        ("[[classes]]\npriority = 1", "classes.name"),
        ("[[classes]]\nname = 'a'\n[[classes]]\nname = 'a'", "two of this name"),
        ("[[keys]]\nname = 'a'", "keys.a.sha256: is missing"),
        ("[queue]\nmax_reqests = 3", "did you mean 'max_requests'"),
        ("[queue]\nmax_requests = '3'", "whole number"),
        ("[[", "is no TOML"),
    ],
)
def test_a_wrong_file_is_told_where(tmp_path, text, told):
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        load_settings(path)


def test_show_tells_everything_but_secrets(file):
    loaded = load(file, {"LLM_RUNTIME_API_KEY": "a-key-in-clear-text"}, {})
    lines = {line.name: line for line in show(loaded)}
    text = "\n".join(f"{line.name} {line.value} {line.origin} {line.meaning}" for line in lines.values())
    for secret in ("hunter2", "hunter3", "a-key-in-clear-text", hashlib.sha256(b"hunter2").hexdigest()):
        assert secret not in text
        assert secret not in str([line.value for line in lines.values()])
    assert (
        lines["backends.small.command"].value
        == "llama-server, --api-key, (hidden), --flash-attn, --admin-token=(hidden)"
    )
    assert lines["shared.redis_url"].value == "redis://(hidden)@localhost:6379/0"
    assert lines["keys.default.sha256"].origin == "environment LLM_RUNTIME_API_KEY"
    assert lines["server.host"].origin == "default"
    expected = sum(len(hints(kind)) for kind in SECTIONS.values()) + 1
    expected += sum(len(hints(LISTS[what])) * len(getattr(loaded.settings, what)) for what in LISTS)
    assert len(lines) == expected


def test_a_key_in_clear_where_its_hash_belongs_is_not_told_back():
    with pytest.raises(ConfigError) as caught:
        Key("alice", "my-secret-key")
    assert "my-secret-key" not in str(caught.value)


@pytest.mark.parametrize("kind", [*SECTIONS.values(), *LISTS.values()], ids=lambda kind: kind.__name__)
def test_every_setting_says_what_it_means_and_its_default_is_in_its_range(kind):
    assert {name for name, meaning in meanings(kind).items() if not meaning} == set()
    for name, value in defaults(kind).items():
        fit(name, hints(kind)[name], value, strict=True, keep=True)
        low, high = bounds(hints(kind)[name])
        if high is not None:
            assert low is not None


CLASSES = (ServiceClass("a"), ServiceClass("b"))
HASH = "0" * 64


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        (Settings(admission=AdmissionSettings(burst=5)), "admission.burst"),
        (Settings(keys=(Key("k", HASH, burst=5),)), "keys.k.burst"),
        (Settings(keys=(Key("k", HASH, rate_rps=5),), admission=AdmissionSettings(rate_rps=2)), "keys.k.rate_rps"),
        (Settings(keys=(Key("k", HASH, slo_class="gold"),)), "keys.k.slo_class"),
        (Settings(keys=(Key("k", HASH, weight=2.0),)), "keys.k.weight"),
        (Settings(admission=AdmissionSettings(max_limit=5)), "admission.max_limit"),
        (Settings(admission=AdmissionSettings(adaptive="aimd", min_limit=9, max_limit=5)), "admission.min_limit"),
        (Settings(admission=AdmissionSettings(adaptive="gradient", latency_slo_s=1.0)), "admission.latency_slo_s"),
        (Settings(queue=QueueSettings(max_bytes=2048)), "server.max_body_bytes"),
        (Settings(classes=(ServiceClass("a", max_requests=2000),)), "classes.a.max_requests"),
        (Settings(classes=(ServiceClass("a", ttl_s=61.0),)), "classes.a.ttl_s"),
        (Settings(queue=QueueSettings(ttl_s=700.0)), "queue.ttl_s"),
        (Settings(queue=QueueSettings(aging_s=3.0)), "queue.aging_s"),
        (Settings(queue=QueueSettings(weights={"a": 2.0})), "queue.weights"),
        (Settings(keys=(Key("k", HASH),), queue=QueueSettings(order="vtc", weights={"a": 2.0})), "queue.weights.a"),
        (Settings(queue=QueueSettings(order="edf")), "queue.order"),
        (Settings(dispatch=DispatchSettings(max_batch_size=4)), "dispatch.max_batch_size"),
        (Settings(backends=(BackendSettings(kind="llama.cpp", slots=2),), dispatch=DispatchSettings(max_concurrency=3)), "dispatch.max_concurrency"),
        (Settings(backends=(BackendSettings(kind="vllm", name="v", max_num_seqs=2, max_concurrency=3),)), "backends.v.max_concurrency"),
        (Settings(server=ServerSettings(workers=2), admission=AdmissionSettings(rate_rps=5)), "admission.rate_rps"),
        (Settings(recorder=RecorderSettings(rotate_s=5.0)), "recorder.rotate_s"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_limit_that_could_never_be_in_force_is_found(settings, field):
    assert [problem.field for problem in check_settings(settings)] == [field]


def test_settings_without_such_limits_pass(file):
    assert check_settings(Settings()) == []
    good = load_settings(file)
    good = msgspec.structs.replace(good, queue=msgspec.structs.replace(good.queue, weights={"alice": 2.0}))
    assert check_settings(good) == []
