"""LLMServe as an OpenEnv package: its client and models. The installed package `inferencegym` does the work."""

from .client import LLMServeEnv
from .models import ServeAction, ServeObservation, ServeState

__all__ = ["LLMServeEnv", "ServeAction", "ServeObservation", "ServeState"]
