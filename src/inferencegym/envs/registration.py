"""The two environments as Gymnasium knows them: names, pages in Gymnasium's order, and version history."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym

from inferencegym.envs.env import PlantEnv
from inferencegym.envs.vector import PlantVectorEnv

LLMSERVE = "inferencegym/LLMServe-v0"
PAGEDKV = "inferencegym/PagedKV-v0"


class LLMServeEnv(PlantEnv):
    """Steer a deployment of language-model servers window by window.

    ## Description
    Requests with prompts, answers and time limits arrive at a simulated deployment (model, GPUs, replicas, vLLM's scheduler). Every window of
    a few seconds the agent sets six knobs, which take effect in the next plan of the engine. Nothing is a formula of the action: queues,
    latencies, memory and cost come out of the requests. A knob that lasts, such as another weight format, costs a restart.

    ## Action Space
    `Dict`, in this order (other encodings: `inferencegym.decision.encodings`):

    | knob | space | what |
    |---|---|---|
    | `batch_cap` | `Discrete(512, start=1)` | requests running at once on a replica |
    | `kv_budget_fraction` | `Box(0.1, 1.0, (1,))` | share of the KV blocks this service may use; the rest is lent out and credited |
    | `speculation_depth` | `Discrete(9)` | draft tokens a step |
    | `quantization_tier` | `Discrete(3)` | weight format: 0 FP16, 1 INT8, 2 INT4; a change may cost a pause |
    | `prefill_decode_split` | `Discrete(2)` | prefill and decode in pools of their own |
    | `priority_routing` | `Discrete(2)` | priority classes order the queue and choose victims |

    `info["action_mask"]` (int8[36]) says for each value of the grid `MultiDiscrete([10, 10, 9, 3, 2, 2])` whether it may be chosen.
    `step` also takes six numbers in this order, and `inferencegym.decision.knobs.Knobs`.

    ## Observation Space
    `Box(float32)`, one number for each column of `inferencegym.decision.knobs.COLUMNS` (name, unit, range, scale), within 0..1;
    `COLUMNS.read(observation)` gives them back in natural units. What does not exist (no request finished) reads 0.

    ## Rewards
    The sum of five terms, within -1..1: `throughput`, `slo`, `quality`, `cost`, `memory`. `info["reward_terms"]` has them by name. An
    episode's return is its value times the task's `reward_scale`.

    ## Starting State
    An empty deployment with the task's starting knobs, before the scenario's first request.

    ## Episode End
    Truncation after the task's number of windows. Nothing terminates an episode early. The last `info` carries `outcome` and `facts`.

    ## Arguments
    `task` (default `bursty_workload`; a name of `inferencegym.envs.catalogue.task_names("llmserve")` or a TOML file), `split` (`train`,
    `validation`, `test`), `scenarios` (how many scenarios of the split to draw from; default: all), `render_mode` (`ansi`, `rgb_array`).
    `reset(options={"scenario": 3, "split": "test"})` chooses an episode.

    ## Version History
    * v0: first version.
    """

    family: ClassVar[str] = "llmserve"

    def __init__(self, task: Any = "bursty_workload", **arguments: Any) -> None:
        super().__init__(task, **arguments)


class PagedKVEnv(PlantEnv):
    """Manage a pool of paged KV memory decision by decision.

    ## Description
    Requests of free and VIP users wait for blocks of KV memory on a GPU. In a tick every active request gains a token, and with it now and
    then a block; a block that is needed and not there crashes the server. Who has been served leaves an idle cache behind, which saves
    work if the user returns. The agent admits, rejects, evicts, swaps and preempts; a tick has a few decisions (see the task).

    ## Action Space
    `Discrete(18)`; `info["action_mask"]` (int8[18]) says what is legal. Illegal actions do nothing and are counted.

    | number | action |
    |---|---|
    | 0, 1 | evict the largest idle cache: free, VIP |
    | 2, 3 | evict the oldest idle cache: free, VIP |
    | 4, 5 | swap the largest idle cache to the CPU: free, VIP |
    | 6, 7 | swap the oldest idle cache to the CPU: free, VIP |
    | 8, 9 | admit the next: free, VIP |
    | 10, 11 | reject the next: free, VIP |
    | 12, 13 | preempt and shred the largest active: free, VIP |
    | 14, 15 | preempt and swap the largest active: free, VIP |
    | 16 | drop idle free caches that have been on the CPU for long |
    | 17 | nothing |

    ## Observation Space
    `Box(float32, (20,))`, the columns of `inferencegym.decision.paging` (use of GPU and CPU, its trend, queues, waits, what a preemption
    would yield, sizes and ages of idle caches), within 0..1 or, for the trend, -1..1.

    ## Rewards
    Named terms, within -1..1 together, in `info["reward_terms"]`; see the task's page.

    ## Starting State
    An empty pool, before the scenario's first arrival.

    ## Episode End
    Termination by a crash (growth without a free block); truncation after the task's number of decisions. The last `info` carries `outcome`
    and `facts`.

    ## Arguments
    `task` (default `medium`; `easy`, `medium`, `hard` or a TOML file), `split` (`train`, `validation`, `test`), `scenarios` (how many
    scenarios of the split to draw from; default: all), `render_mode` (`ansi`, `rgb_array`).

    ## Version History
    * v0: first version.
    """

    family: ClassVar[str] = "pagedkv"

    def __init__(self, task: Any = "medium", **arguments: Any) -> None:
        super().__init__(task, **arguments)


class LLMServeVectorEnv(PlantVectorEnv):
    """Many LLMServe episodes in one kernel call; actions are grid indices (MultiDiscrete) or levers. See `LLMServeEnv`."""

    family: ClassVar[str] = "llmserve"

    def __init__(self, num_envs: int = 1, task: Any = "bursty_workload", **arguments: Any) -> None:
        super().__init__(num_envs, task, **arguments)


class PagedKVVectorEnv(PlantVectorEnv):
    """Many PagedKV episodes in one kernel call. See `PagedKVEnv`."""

    family: ClassVar[str] = "pagedkv"

    def __init__(self, num_envs: int = 1, task: Any = "medium", **arguments: Any) -> None:
        super().__init__(num_envs, task, **arguments)


def register() -> None:
    """Tell Gymnasium; importing `inferencegym.envs` does it. Order is enforced by the environments themselves, with errors of their own."""
    for name, single, vector in (
        (LLMSERVE, "LLMServeEnv", "LLMServeVectorEnv"),
        (PAGEDKV, "PagedKVEnv", "PagedKVVectorEnv"),
    ):
        if name not in gym.registry:
            gym.register(
                name,
                entry_point=f"inferencegym.envs.registration:{single}",
                vector_entry_point=f"inferencegym.envs.registration:{vector}",
                order_enforce=False,
            )
