"""Serves a GGUF file with the llama.cpp server inside the wheel xllamacpp, under llama-server's names of options.

It is run as a script, by a Python that has xllamacpp and need not have this package: nothing else may be imported here.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading


def options(arguments: list[str]) -> argparse.Namespace:
    """llama-server's options that this launcher knows; an unknown one is an error."""
    parser = argparse.ArgumentParser(prog="llama_serve", allow_abbrev=False)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("-np", "--parallel", type=int, default=4)
    parser.add_argument("-c", "--ctx-size", type=int, default=16384)
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("-b", "--batch-size", type=int)
    parser.add_argument("-ub", "--ubatch-size", type=int)
    parser.add_argument("-ngl", "--gpu-layers", type=int)
    parser.add_argument("-a", "--alias", default="")
    parser.add_argument("--cache-ram", type=int)
    parser.add_argument("--slot-save-path", default="")
    parser.add_argument("--metrics", action="store_true")
    parser.add_argument("--slots", action="store_true")
    parser.add_argument("-v", "--verbosity", type=int, default=3)
    return parser.parse_args(arguments)


def main() -> None:
    """Serve until SIGTERM."""
    import xllamacpp  # type: ignore[import-not-found, unused-ignore]

    chosen = options(sys.argv[1:])
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    params = xllamacpp.CommonParams()
    params.model.path, params.hostnames, params.port = chosen.model, [chosen.host], chosen.port
    params.n_parallel, params.n_ctx, params.kv_unified = chosen.parallel, chosen.ctx_size, False
    params.endpoint_metrics, params.endpoint_slots, params.endpoint_props = chosen.metrics, chosen.slots, False
    params.verbosity = chosen.verbosity
    if chosen.alias:
        params.model_alias = {chosen.alias}
    if chosen.slot_save_path:
        params.slot_save_path = chosen.slot_save_path
    if chosen.threads is not None:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = chosen.threads
    for name, value in {
        "n_batch": chosen.batch_size, "n_ubatch": chosen.ubatch_size, "n_gpu_layers": chosen.gpu_layers, "cache_ram_mib": chosen.cache_ram,
    }.items():  # fmt: skip
        if value is not None:
            setattr(params, name, value)
    server = xllamacpp.Server(params)
    done.wait()
    del server


if __name__ == "__main__":
    main()
