"""Measure and draw the loss landscape of networks trained with sharpness-aware minimization.

Names are loaded when they are first used, so that `landscape.plot` and `landscape.report` work
without importing torch; which names there are is in the stub beside this file.
"""

import lazy_loader

__version__ = "0.2.0.dev0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
