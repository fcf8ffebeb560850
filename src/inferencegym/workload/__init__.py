"""What was asked of a server: requests with their arrival, lengths, tenants, sessions and shared prefixes.

It reads, writes and generates workloads; times are seconds from the start of the workload, lengths are tokens.
"""

from inferencegym.workload.files import write
from inferencegym.workload.generate import generate
from inferencegym.workload.presets import benchmark_sessions
from inferencegym.workload.read import read
from inferencegym.workload.shipped import is_description, names
from inferencegym.workload.spec import Spec
from inferencegym.workload.workload import Workload

__all__ = ["Spec", "Workload", "benchmark_sessions", "generate", "is_description", "names", "read", "write"]
