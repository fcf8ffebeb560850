"""What processes of the dashboard find already loaded: imported once in multiprocessing's fork server, never by the server itself."""

from __future__ import annotations

import inferencegym.envs.actors
import inferencegym.envs.catalogue
import inferencegym.envs.llmserve
import inferencegym.envs.pagedkv  # noqa: F401
