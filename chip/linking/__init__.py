"""From a block table to what the engine executes: operands resolved, blocks cut and ordered."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
