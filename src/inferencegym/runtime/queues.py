"""Queues by name, and changing one for another while requests wait: nobody is dropped, nobody's place in the order of arrival is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from inferencegym.ground.errors import UnknownNameError
from inferencegym.runtime.orders.aging import Aging
from inferencegym.runtime.orders.ranked import Fcfs, Ranked, by_deadline, by_priority, by_work
from inferencegym.runtime.orders.tenants import Price
from inferencegym.runtime.orders.vtc import Vtc
from inferencegym.runtime.orders.wfq import Wfq
from inferencegym.runtime.ports import Queue
from inferencegym.runtime.settings import QueueSettings, ServiceClass

ORDERS: Mapping[str, Callable[[QueueSettings, Price], Queue]] = {
    "fcfs": lambda settings, price: Fcfs(),
    "priority": lambda settings, price: Ranked("priority", by_priority),
    "aging": lambda settings, price: Aging(settings.aging_s, settings.aging_levels),
    "wfq": lambda settings, price: Wfq(price, settings.quantum_tokens),
    "vtc": lambda settings, price: Vtc(price),
    "edf": lambda settings, price: Ranked("edf", by_deadline),
    "sjf": lambda settings, price: Ranked(
        "sjf", by_work(settings.input_cost, settings.output_cost, settings.sjf_tokens_per_s)
    ),
}


def make_queue(
    settings: QueueSettings, classes: Sequence[ServiceClass] = (), weights: Mapping[str, float] | None = None
) -> Queue:
    """The queue that settings ask for.

    classes : their weights, by class number, make tokens cheaper under wfq and vtc
    weights : share of each tenant (`Settings.weights()`); if None, those of the queue's own settings
    """
    if settings.order not in ORDERS:
        raise UnknownNameError("order", settings.order, ORDERS)
    shares = settings.weights if weights is None else weights
    price = Price(settings.input_cost, settings.output_cost, dict(shares), tuple(one.weight for one in classes))
    return ORDERS[settings.order](settings, price)


def change_queue(old: Queue, new: Queue, now_s: float) -> Queue:
    """Move all that wait from one queue to another, in the order they were pushed; service already had goes along where both count it. Returns the new one."""
    if (isinstance(old, Vtc) and isinstance(new, Vtc)) or (isinstance(old, Wfq) and isinstance(new, Wfq)):
        new.take_over(old)
    for ask in old.waiting():
        new.push(ask, now_s)
    return new
