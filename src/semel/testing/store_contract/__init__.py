"""The contract that every store keeps, as tests that a store's own test file subclasses."""

import pytest

pytest.register_assert_rewrite(f"{__name__}.contract", f"{__name__}.model")

from semel.testing.store_contract.contract import StoreContract  # noqa: E402  # then rewritten
from semel.testing.store_contract.model import ManualClock  # noqa: E402

__all__ = ["ManualClock", "StoreContract"]
