"""How far an emulated model is from float32: two forwards of a text, and what lies between them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
