"""`semel.uploads` at its former address: importing this module gives that package."""

import importlib
import sys

sys.modules[__name__] = importlib.import_module("semel.uploads")
