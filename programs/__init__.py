"""Models on chips: from a checkpoint to an artifact, and from an artifact to tokens."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
