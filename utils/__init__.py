"""The library that the stages call: one module per idea, named for the idea."""

import sys

from utils.core.packages import tell_what_is_missing

if sys.excepthook is sys.__excepthook__:  # nobody else's: a script that was typed with a Python without the packages
    sys.excepthook = tell_what_is_missing
