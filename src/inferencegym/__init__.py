"""InferenceGym learns, tests and runs serving policies for large language models.

Nothing heavy is imported here: `import inferencegym` stays quick, and each part is loaded when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from inferencegym.engine.deployment import Deployment as Deployment
    from inferencegym.engine.engine import Engine as Engine
    from inferencegym.engine.settings import EngineSettings as EngineSettings
    from inferencegym.engine.simulate import simulate as simulate
    from inferencegym.workload import Workload as Workload
    from inferencegym.workload import generate as generate
    from inferencegym.workload import read as read

_HOMES = {
    "Deployment": "inferencegym.engine.deployment",
    "Engine": "inferencegym.engine.engine",
    "EngineSettings": "inferencegym.engine.settings",
    "simulate": "inferencegym.engine.simulate",
    "Workload": "inferencegym.workload",
    "generate": "inferencegym.workload",
    "read": "inferencegym.workload",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'inferencegym' has no attribute '{name}'; it has: {', '.join(sorted(_HOMES))}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
