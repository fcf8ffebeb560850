"""What processes of the dashboard find already loaded: imported once in multiprocessing's fork server, never by the server itself."""

from __future__ import annotations

import inferencegym.envs.llmserve
import inferencegym.envs.pagedkv
import inferencegym.web.play  # noqa: F401
