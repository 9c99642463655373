"""What a compiler builds schedules with.

The reservation table, passes over it, and moving code in time and memory.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
