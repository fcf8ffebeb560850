"""A new engine's bytes: sizes, empty lists, and the settings in force, from a machine, settings and a workload.

`engine.Engine` and `engine.fleet.Fleet` begin with `new_state`; `put_settings` is also how a single engine's settings change.
"""

from __future__ import annotations

import numpy as np

from inferencegym.engine import memory
from inferencegym.engine.asked import Question
from inferencegym.engine.codes import Order, Preemption, Role, Scheduler
from inferencegym.engine.machine import Machine
from inferencegym.engine.settings import EngineSettings
from inferencegym.ground.errors import ConfigError
from inferencegym.ground.units import to_ps

_VTC_UNIT = 1 << 10  # a cost of 1 for a tenant of weight 1


def new_state(
    machine: Machine,
    settings: EngineSettings,
    question: Question,
    seed: int,
    *,
    capacity: int = 256,
    most_blocks: int = 0,
    may_split: bool = False,
) -> memory.Arena:
    """The bytes of an engine before its first request.

    capacity : live requests a replica has room for before the state must grow
    most_blocks, may_split : room for a later restart with more KV blocks, or as two pools
    """
    caching = _caches(settings)
    header = np.zeros(1, memory.HEADER)[0]
    header["replicas"] = machine.replicas
    header["capacity"] = capacity
    header["block_size"] = machine.block_size
    header["n_tenants"] = tenants = int(question.rows["tenant"].max(initial=0)) + 1
    header["n_places"] = _seats(machine, settings) if settings.scheduler == "llamacpp" else 1
    blocks = max(machine.kv_blocks, most_blocks)
    header["n_nodes"] = blocks + 1 if caching else 1
    # Blocks that nobody names cannot be looked up.
    header["index_size"] = 1 << (2 * blocks).bit_length() if caching and len(question.key_ids) else 1
    header["n_pending"] = len(question.rows) - len(question.open_rows) + 1
    header["n_wire"] = capacity * machine.replicas if machine.prefill_replicas or may_split else 1
    header["open_rows"] = len(question.open_rows)
    header["prefill_replicas"] = machine.prefill_replicas
    header["router"] = machine.router
    header["affinity_slack"] = machine.affinity_slack
    header["closed_loop"] = int(header["n_pending"] > 1)
    arena = memory.allocate(header)
    core = memory.part_of(arena, "core")
    for name in ("run_head", "run_tail", "wait_head", "wait_tail", "free_slot", "lru_head", "lru_tail", "free_node"):
        core[name] = memory.NONE
    core["step_end_ps"] = core["vtc_last_left"] = memory.NONE
    core["crowd"] = 1
    core["seed"] = seed
    core["cpu_free"] = machine.cpu_blocks
    core["block_size"] = machine.block_size
    core["scheduler"] = Scheduler[settings.scheduler.upper()]
    core["prefix_caching"] = caching
    core["chunked_prefill"] = settings.chunked_prefill
    core["max_model_len"] = _model_len(machine, settings)
    core["role"] = Role.BOTH
    if machine.prefill_replicas:
        core["role"] = Role.DECODE
        core["role"][: machine.prefill_replicas] = Role.PREFILL
    queue = memory.part_of(arena, "tenants")
    queue["head"] = queue["tail"] = memory.NONE
    queue["cost_in"] = _tenant_costs(settings, settings.vtc_input_cost, tenants)
    queue["cost_out"] = _tenant_costs(settings, settings.vtc_output_cost, tenants)
    places = memory.part_of(arena, "places")
    places["used_ps"] = places["row"] = memory.NONE
    put_settings(arena, machine, settings)
    core["blank"] = core["pool_blocks"]
    return arena


def put_settings(arena: memory.Arena, machine: Machine, settings: EngineSettings) -> None:
    """The live settings, and what follows from them."""
    core = memory.part_of(arena, "core")
    seats = _seats(machine, settings)
    budget = settings.max_num_batched_tokens or machine.max_num_batched_tokens
    length = _model_len(machine, settings)
    if settings.whole_prompts and budget < length:
        if settings.max_num_batched_tokens is not None:
            raise ConfigError(
                "engine.max_num_batched_tokens",
                f"{budget} tokens cannot take a prompt of {length} whole (scheduler '{settings.scheduler}' does not cut prompts)",
                allowed=f"{length} or more, or a smaller engine.max_model_len",
            )
        budget = length
    if machine.prefill_replicas and settings.scheduler not in ("vllm", "sarathi"):
        raise ConfigError(
            "deployment.prefill_replicas",
            f"scheduler '{settings.scheduler}' cannot split prefill from decode",
            allowed="0",
        )
    pool = machine.kv_blocks
    if settings.scheduler == "llamacpp":
        # Every slot owns its context; there is no pool to share.
        pool = int(memory.header_of(arena)["n_places"][0]) * -(-length // machine.block_size)
    core["pool_blocks"] = max(1, int(pool * settings.kv_budget_fraction))
    core["watermark_blocks"] = (settings.watermark * core["pool_blocks"]).astype(np.int64)
    core["max_num_seqs"] = seats
    core["max_num_batched_tokens"] = budget
    core["order"] = Order[settings.order.upper()]
    core["victims"] = settings.victim_rule
    core["preemption"] = Preemption[settings.preemption.upper()]
    core["long_prefill_token_threshold"] = settings.long_prefill_token_threshold
    core["reserve_full_isl"] = settings.reserve_full_isl
    core["speculation_depth"] = settings.speculation_depth
    core["aging_ps"] = to_ps(settings.aging_s, field="engine.aging_s")


def _seats(machine: Machine, settings: EngineSettings) -> int:
    return settings.max_num_seqs or machine.max_num_seqs


def _model_len(machine: Machine, settings: EngineSettings) -> int:
    if settings.max_model_len is None:
        return machine.max_model_len
    return min(settings.max_model_len, machine.max_model_len)


def _caches(settings: EngineSettings) -> bool:
    return settings.prefix_caching and settings.scheduler not in ("orca", "static")


def _tenant_costs(settings: EngineSettings, cost: int, tenants: int) -> memory.Ints:
    weights = np.ones(tenants)
    given = min(len(settings.vtc_weights), tenants)
    weights[:given] = settings.vtc_weights[:given]
    costs: memory.Ints = np.rint(cost * _VTC_UNIT / weights).astype(np.int64)
    return costs
