"""The proof that a program is legal before it runs: every rule over all blocks at once."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
