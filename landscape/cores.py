"""How many CPU cores this process may use."""

import os


def usable_cores() -> int:
    """Cores that the system lets this process run on (`taskset`, a container), at least one."""
    usable = getattr(os, "sched_getaffinity", None)  # not everywhere
    return len(usable(0)) if usable else os.cpu_count() or 1
