"""The servers Sluice is compared with: one file per server, run by its own interpreter, and the registry of them all.

python -m benchmarks.rivals     creates their environments and prints their versions
"""

from benchmarks.rivals.registry import NOT_MEASURED, RIVALS, Rival

__all__ = ["NOT_MEASURED", "RIVALS", "Rival"]
