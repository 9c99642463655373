"""A language model on chips: places, stages, code, host side, golden model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
