"""What travels between the PagedKV server and its clients: bounded actions, observations of plain numbers, state."""

from inferencegym.envs.openenv.models import PagingAction, PagingObservation, PagingState

__all__ = ["PagingAction", "PagingObservation", "PagingState"]
