"""Plans of models as people ask for them: what-ifs, axes, comparisons, and a row for each."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
