"""A program as data: the table of blocks, what a block expands to, and how large one may be."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
