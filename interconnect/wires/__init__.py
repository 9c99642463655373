"""When a vector may cross a link: frames, slots, the proof that a schedule fits, its simulation."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
