"""PagedKV as an OpenEnv package: its client and models. The installed package `inferencegym` does the work."""

from .client import PagedKVEnv
from .models import PagingAction, PagingObservation, PagingState

__all__ = ["PagedKVEnv", "PagingAction", "PagingObservation", "PagingState"]
