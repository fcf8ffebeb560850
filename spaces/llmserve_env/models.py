"""What travels between the LLMServe server and its clients: bounded actions, observations of plain numbers, state."""

from inferencegym.envs.openenv.models import ServeAction, ServeObservation, ServeState

__all__ = ["ServeAction", "ServeObservation", "ServeState"]
