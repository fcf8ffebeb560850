"""Client of the PagedKV server: `PagedKVEnv(base_url=...)` is OpenEnv's kind, `PagedKVEnv.from_url(...)` a plain one over HTTP."""

from inferencegym.envs.openenv.client import PagedKVEnv

__all__ = ["PagedKVEnv"]
