"""From the prefill pool to the decode pool: KV travels over a replica's link, one request at a time, and arrives ready to decode.

Rules: docs/scheduling.md, section 11. Times in picoseconds.
"""

from __future__ import annotations

from inferencegym.engine.codes import Phase
from inferencegym.engine.crowd import drop_slot, take_slot
from inferencegym.engine.ledger import release
from inferencegym.engine.memory import Asked, State, Times, core_at, slot_at, wire_at
from inferencegym.engine.order import push
from inferencegym.ground.jit import kernel

_ON_WIRE, _CARRIED = int(Phase.ON_WIRE), int(Phase.CARRIED)


@kernel
def ready_before(s: State, a: int, b: int) -> bool:
    """Whether transfer a arrives before transfer b."""
    if wire_at(s, a)["ready_ps"] != wire_at(s, b)["ready_ps"]:
        return wire_at(s, a)["ready_ps"] < wire_at(s, b)["ready_ps"]
    return wire_at(s, a)["row"] < wire_at(s, b)["row"]


@kernel
def swap_wire(s: State, a: int, b: int) -> None:
    """Exchange two transfers' places in the heap."""
    one = wire_at(s, a)
    two = wire_at(s, b)
    one["ready_ps"], two["ready_ps"] = two["ready_ps"], one["ready_ps"]
    one["row"], two["row"] = two["row"], one["row"]
    one["replica"], two["replica"] = two["replica"], one["replica"]
    one["slot"], two["slot"] = two["slot"], one["slot"]


@kernel
def send(s: State, t: Times, r: int, slot: int) -> None:
    """Put a request that has emitted its first token on the link of replica r; its blocks stay held until it is there."""
    core = core_at(s, r)
    me = slot_at(s, r, slot)
    me["state"] = _ON_WIRE
    begin = max(core["now_ps"], core["link_free_ps"])
    wire = t["link_ps_per_token"] * me["prompt"]
    layers = t["layers"]
    core["link_free_ps"] = begin + wire
    # Layer by layer, sending hides behind the prefill step that makes the next layers.
    exposed = max(0, wire - core["step_ps"] * (layers - 1) // layers) + wire // layers
    i = s["wire_len"]
    s["wire_len"] = i + 1
    wire_at(s, i)["ready_ps"] = begin + t["link_fixed_ps"] + exposed
    wire_at(s, i)["row"] = me["row"]
    wire_at(s, i)["replica"] = r
    wire_at(s, i)["slot"] = slot
    while i > 0 and ready_before(s, i, (i - 1) >> 1):
        swap_wire(s, i, (i - 1) >> 1)
        i = (i - 1) >> 1


@kernel
def _pop_wire(s: State) -> None:
    n = s["wire_len"] - 1
    s["wire_len"] = n
    swap_wire(s, 0, n)
    i = 0
    while 2 * i + 1 < n:
        child = 2 * i + 1
        if child + 1 < n and ready_before(s, child + 1, child):
            child += 1
        if not ready_before(s, child, i):
            break
        swap_wire(s, i, child)
        i = child


@kernel
def copy_request(to: State, of: State) -> None:
    """What a request takes along to another replica."""
    to["arrival_ps"] = of["arrival_ps"]
    to["scheduled_ps"] = of["scheduled_ps"]
    to["first_ps"] = of["first_ps"]
    to["last_ps"] = of["last_ps"]
    to["row"] = of["row"]
    to["prompt"] = of["prompt"]
    to["target"] = of["target"]
    to["generated"] = of["generated"]
    to["computed"] = of["computed"]
    to["cached"] = of["cached"]
    to["tenant"] = of["tenant"]
    to["preemptions"] = of["preemptions"]
    to["swaps"] = of["swaps"]
    to["priority"] = of["priority"]
    to["kind"] = of["kind"]
    to["turn"] = 0
    to["grant"] = 0
    to["seat"] = -1
    to["place"] = -1
    to["in_crowd"] = 0


@kernel
def deliver(s: State, w: Asked, to: int) -> None:
    """The first transfer on the wire is there: free the sender's blocks, queue the request on replica `to`, which has a slot."""
    sender = wire_at(s, 0)["replica"]
    old = wire_at(s, 0)["slot"]
    _pop_wire(s)
    release(s, w, sender, old, False)
    slot = take_slot(s, to)
    me = slot_at(s, to, slot)
    copy_request(me, slot_at(s, sender, old))
    me["state"] = _CARRIED
    me["private"] = 1
    me["extent"] = -1
    me["last"] = -1
    me["shared"] = 0
    me["blocks"] = 0
    drop_slot(s, sender, old)
    core_at(s, to)["unseen"] += 1
    push(s, w, to, slot, False)
