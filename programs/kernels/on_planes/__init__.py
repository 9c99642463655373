"""Attention whose positions lie on the lanes: keys and values are weights of the planes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
