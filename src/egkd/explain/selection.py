"""Feature selection: the few words that suffice for what the model says.

`fit_selector` trains a selector once; `Selector.select` then picks words in one forward pass.
"""

from egkd.explain.fitting import fit_selector
from egkd.explain.selectors import Selector, SelectorSettings

__all__ = ["Selector", "SelectorSettings", "fit_selector"]
