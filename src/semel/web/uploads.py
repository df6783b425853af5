"""`semel.uploads` at its former address: importing this module gives that package."""

import importlib
import sys

_NEW = "semel.uploads"

sys.modules[__name__] = importlib.import_module(_NEW)
for _name, _module in list(sys.modules.items()):
    if _name.startswith(f"{_NEW}."):
        sys.modules[__name__ + _name.removeprefix(_NEW)] = _module
