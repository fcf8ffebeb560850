"""Small random cases that push both engines into every corner of docs/scheduling.md: tiny pools, few seats, bursts.

Times are whole picoseconds. A case is plain data; `features` says which rules it may go through, all else stays simple.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tests.reference.plain import Change, Config, Request, Times

US = 10**6
MS = 10**9

FEATURES = (
    "sarathi", "orca", "static", "llamacpp", "swap", "auto", "prefix", "priority", "aging", "sjf", "edf", "vtc",
    "rank_victims", "speculation", "whole_prompts", "threshold", "first_chunk_only", "watermark", "round_robin",
    "least_loaded", "prefix_router", "disaggregated", "closed_loop", "changes", "pool_changes", "order_changes",
    "long_answers", "crowded",
)  # fmt: skip
"""What a case may be asked for. Of rules that exclude each other (two schedulers, two orders) one is drawn."""

SCHEDULERS = ("sarathi", "orca", "static", "llamacpp")
ORDERS = ("priority", "aging", "sjf", "edf", "vtc")


@dataclass
class Chunk:
    """Prefill attention as in inferencegym.engine.latency: the same sums in the same order, so both round alike."""

    ps_per_past_pair: float
    ps_per_new_pair: float
    half_tokens: float
    ps_per_past_token: float
    ps_per_new_token: float

    def __call__(self, n: int, past: int) -> int:
        """Time of a chunk of `n` tokens after `past`."""
        to_past = past * max(self.ps_per_past_pair * n, self.ps_per_past_token)
        among_new = self.ps_per_new_pair * (0.5 * n * (n + self.half_tokens))
        return round(to_past + among_new + self.ps_per_new_token * n)

    @property
    def coefficients(self) -> list[float]:
        """As the fast engine takes them."""
        past, new = self.ps_per_past_pair, self.ps_per_new_pair
        return [past, new, self.half_tokens, self.ps_per_past_token, self.ps_per_new_token]


@dataclass
class Case:
    """A workload, a cluster and its settings, changes on the way."""

    requests: list[Request]
    config: Config
    times: Times
    changes: list[Change] = field(default_factory=list)


def random_case(rng: random.Random, features: set[str]) -> Case:
    """A case that may go through `features` and, besides them, only vllm's plain rules."""
    unknown = features - set(FEATURES)
    if unknown:
        raise ValueError(f"no such features: {sorted(unknown)}")
    config = _config(rng, features)
    return Case(_requests(rng, features, config), config, _times(rng), _changes(rng, features, config))


def any_features(rng: random.Random) -> set[str]:
    """A random mix."""
    share = rng.choice([0.15, 0.4, 0.8])
    return {name for name in FEATURES if rng.random() < share}


def _config(rng: random.Random, features: set[str]) -> Config:
    scheduler = _one_of(rng, SCHEDULERS, features, "vllm")
    chunked = "whole_prompts" not in features
    whole = scheduler in ("orca", "static") or (not chunked and scheduler != "llamacpp")
    length = rng.choice([400, 1000] if "long_answers" in features else [24, 40, 64, 96])
    block_size = rng.choice([1, 2, 4, 4, 8, 16])
    preempts = scheduler in ("vllm", "sarathi")
    config = Config(
        scheduler=scheduler,
        order=_one_of(rng, ORDERS, features, "fcfs"),
        victims="rank" if "rank_victims" in features and rng.random() < 0.7 else "lifo",
        preemption=_one_of(rng, ("swap", "auto"), features, "recompute") if preempts else "recompute",
        max_num_seqs=rng.choice([1, 2, 3, 4, 6, 8, 16]),
        max_num_batched_tokens=rng.choice([length, 2 * length, 3 * length])
        if whole
        else rng.choice([1, 3, 8, 16, 32, 64, 128]),
        max_model_len=length,
        block_size=block_size,
        blocks=max(1, rng.choice([length, 3 * length // 2, 2 * length, 4 * length]) // block_size),
        cpu_blocks=max(1, rng.choice([length // 2, 2 * length, 4 * length]) // block_size),
        chunked_prefill=chunked,
        long_prefill_token_threshold=rng.choice([0, 1, 4, 12]) if "threshold" in features else 0,
        reserve_full_isl="first_chunk_only" not in features or rng.random() < 0.2,
        watermark=rng.choice([0.0, 0.05, 0.2, 0.5]) if "watermark" in features else 0.0,
        prefix_caching="prefix" in features or "prefix_router" in features,
        speculation_depth=rng.choice([0, 1, 2, 4, 7]) if "speculation" in features and preempts else 0,
        acceptance=(tuple(rng.choice([0.0, 0.3, 0.7, 0.9, 1.0]) for _ in range(rng.randint(1, 4))),),
        aging_ps=rng.choice([0, 100 * US, 20 * MS]) if "aging" in features else 10**13,
        vtc_in=tuple(1024 // w for w in (1, 2, 4)),
        vtc_out=tuple(2 * 1024 // w for w in (1, 2, 4)),
        seed=rng.choice([0, 1, rng.randrange(1 << 31)]),
    )
    if "crowded" in features:
        _crowd(rng, config, length)
    _put_replicas(rng, features, config)
    return config


def _crowd(rng: random.Random, config: Config, length: int) -> None:
    """Many seats and hardly more KV than the longest request: preemptions all the time."""
    config.max_num_seqs = rng.choice([6, 16])
    config.block_size = rng.choice([1, 2, 4])
    config.blocks = rng.choice([length, 5 * length // 4]) // config.block_size + 1
    config.cpu_blocks = rng.choice([length // 2, 2 * length]) // config.block_size


def _put_replicas(rng: random.Random, features: set[str], config: Config) -> None:
    routers = {"round_robin": "round_robin", "least_loaded": "least_loaded", "prefix_router": "prefix"}
    asked = [rule for name, rule in routers.items() if name in features]
    if asked:
        config.router = rng.choice(asked)
        config.replicas = rng.randint(2, 4)
        config.affinity_slack = rng.choice([0, 1, 3, 32])
    if "disaggregated" in features and config.scheduler in ("vllm", "sarathi"):
        config.replicas = max(2, config.replicas)
        config.prefill_replicas = rng.randint(1, config.replicas - 1)


def _one_of(rng: random.Random, names: tuple[str, ...], features: set[str], otherwise: str) -> str:
    asked = [name for name in names if name in features]
    return rng.choice(asked) if asked else otherwise


def _requests(rng: random.Random, features: set[str], config: Config) -> list[Request]:
    n = rng.randint(5, 15 if "long_answers" in features else 40)
    spread = rng.choice([0, 200 * US] if "crowded" in features else [0, 200 * US, 5 * MS, 40 * MS])
    arrivals = sorted(rng.randint(0, spread) // US * US for _ in range(n))
    length, closed = config.max_model_len, "closed_loop" in features
    prompts = rng.choice([length // 4, length // 2, length - 1])
    outputs = rng.choice([length // 2, length] if "long_answers" in features else [2, length // 4, length])
    if "crowded" in features:
        prompts, outputs = rng.choice([length // 4, length // 2]), rng.choice([length // 4, length])
    families = [tuple(rng.randrange(1 << 40) for _ in range(length // config.block_size)) for _ in range(3)]
    requests = []
    for row in range(n):
        prompt = rng.randint(length, length + 2) if rng.random() < 0.03 else rng.randint(1, max(1, prompts))
        target = rng.randint(1, max(1, outputs))
        after = rng.randrange(row) if closed and row > 0 and rng.random() < 0.5 else -1
        requests.append(
            Request(
                row=row,
                arrival_ps=arrivals[row],
                prompt=prompt,
                target=target,
                budget=rng.choice([0, target, target + rng.randint(0, 8)]),
                priority=rng.randint(0, 3),
                tenant=rng.randint(0, 2),
                slo_ttft_ps=rng.choice([0, 1, 10]) * MS,
                after=after,
                think_ps=rng.choice([0, 0, 300 * US, 3 * MS]) if after >= 0 else 0,
                keys=_keys(rng, row, prompt, target, families, config) if config.prefix_caching or n % 2 else (),
            )
        )
    return requests


def _keys(
    rng: random.Random, row: int, prompt: int, target: int, families: list[tuple[int, ...]], config: Config
) -> tuple[int, ...]:
    """A shared beginning and an own rest; some cover the prompt, some the answer too, some nothing."""
    if rng.random() < 0.15:
        return ()
    tokens = prompt + target if rng.random() < 0.5 else prompt
    full = min(tokens, config.max_model_len) // config.block_size
    shared = rng.randint(0, full)
    family = rng.choice(families)
    own = tuple((1 << 50) + row * 10_000 + j for j in range(shared, full))
    keys = (family[:shared] + own)[: rng.choice([full, full, full // 2])]
    # A workload's ids that reach just over the prompt's partial last block are read as "the prompt only".
    return keys[: prompt // config.block_size] if len(keys) == -(-prompt // config.block_size) else keys


def _times(rng: random.Random) -> Times:
    scale = rng.choice([1, US, 100 * US])
    grid = rng.choice([1, 1, 50]) if scale > 1 else 1  # coarse times make many things end at the same instant

    def entries(n: int, most: int) -> list[int]:
        return [rng.randint(1, max(1, most // grid)) * scale * grid for _ in range(n)]

    a, b, c = (float(rng.randint(0, 9)) * scale / rng.choice([1, 2, 3]) for _ in range(3))
    return Times(
        lin_ps=_rising(rng, entries(rng.randint(2, 40), 100)),
        head_ps=_rising(rng, entries(rng.randint(2, 10), 20)),
        dec_ps=_rising(rng, entries(rng.randint(2, 10), 20)),
        draft_ps=_rising(rng, entries(rng.randint(2, 10), 10)),
        kv_ps=rng.choice([0, 1, scale // 16 + 1]),
        pre_ps=rng.choice([0, 3 * scale]),
        swap_ps_per_block=rng.choice([1, 1, 30, 300]) * scale,
        swap_fixed_ps=rng.choice([0, 40]) * scale,
        link_ps_per_token=rng.choice([0, 1, 40]) * scale,
        link_fixed_ps=rng.choice([0, 50]) * scale,
        layers=rng.choice([1, 2, 32]),
        chunk=Chunk(c / 32, c / 24, rng.choice([0.0, 7.5]), ps_per_past_token=b / 4, ps_per_new_token=a / 8),
    )


def _rising(rng: random.Random, entries: list[int]) -> list[int]:
    """Mostly monotone; the last difference must not be negative, or long extensions would run backwards."""
    if rng.random() < 0.7:
        return sorted(entries)
    return [*entries[:-2], min(entries[-2:]), max(entries[-2:])]


def _changes(rng: random.Random, features: set[str], config: Config) -> list[Change]:
    changes: list[Change] = []
    whole = config.scheduler in ("orca", "static") or (not config.chunked_prefill and config.scheduler != "llamacpp")
    if "changes" in features:
        for _ in range(rng.randint(1, 5)):
            least = config.max_model_len if whole else 1
            most_seats = config.max_num_seqs if config.scheduler == "llamacpp" else 12
            options: list[tuple[str, object]] = [
                ("max_num_seqs", rng.randint(1, most_seats)),
                ("max_num_batched_tokens", least + rng.choice([0, 3, 20, 100])),
            ]
            if config.scheduler in ("vllm", "sarathi"):
                options += [
                    ("long_prefill_token_threshold", rng.choice([0, 2, 9])),
                    ("watermark", rng.choice([0.0, 0.1, 0.5])),
                    ("reserve_full_isl", rng.random() < 0.5),
                    ("victims", rng.choice(["lifo", "rank"])),
                    ("preemption", rng.choice(["recompute", "swap", "auto"])),
                ]
                if "speculation" in features:
                    options += [("speculation_depth", rng.choice([0, 1, 3, 6]))]
            changes.append((rng.randint(0, 40) * MS, *rng.choice(options)))
    if "pool_changes" in features:
        for _ in range(rng.randint(1, 4)):
            changes.append((rng.randint(0, 40) * MS, "blocks", rng.randint(max(1, config.blocks // 4), config.blocks)))
    if "order_changes" in features:
        for _ in range(rng.randint(1, 3)):
            order = rng.choice(["fcfs", "priority", "aging", "sjf", "edf", "vtc"])
            changes.append((rng.randint(0, 40) * MS, "order", order))
    return sorted(changes, key=lambda change: change[0])
