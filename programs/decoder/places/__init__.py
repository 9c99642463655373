"""Where a stage of a decoder lies in a chip's SRAM: matrices, caches, constants, temporaries."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
