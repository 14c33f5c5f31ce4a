"""What keeps a process small and quick: settings of its allocators and of Python's garbage collector."""

import gc
import os

_ALLOCATORS = {
    # Arrow's own allocator keeps what was freed for what comes; the Delta library's does so for ten seconds, in eight
    # places. Together that was a quarter of a worker's memory.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "_RJEM_MALLOC_CONF": "dirty_decay_ms:1000,narenas:1",
}
_YOUNG_OBJECTS = 10_000
"""A tick makes many objects and hardly a cycle of them: looking for some at each 700 took a tenth of its CPU."""


def keep_small() -> None:
    """Before pyarrow and deltalake are imported, which read it when they are loaded. What the environment says stands."""
    for name, value in _ALLOCATORS.items():
        os.environ.setdefault(name, value)
    gc.set_threshold(_YOUNG_OBJECTS, 10, 10)


def give_back() -> None:
    """After a tick: what it took and freed goes back to the system. A millisecond or three."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
