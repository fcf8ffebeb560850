"""Client of the LLMServe server: `LLMServeEnv(base_url=...)` is OpenEnv's kind, `LLMServeEnv.from_url(...)` a plain one over HTTP."""

from inferencegym.envs.openenv.client import LLMServeEnv

__all__ = ["LLMServeEnv"]
