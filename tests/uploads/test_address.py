"""The former address of uploads, which older documentation named."""

from __future__ import annotations

import importlib


def test_the_former_address_gives_the_same_package() -> None:
    import semel.uploads

    former = importlib.import_module("semel.web.uploads")
    assert former is semel.uploads
    for module in ("storage", "problems"):
        there = importlib.import_module(f"semel.uploads.{module}")
        assert importlib.import_module(f"semel.web.uploads.{module}") is there
    assert importlib.import_module("semel.web.uploads.s3").S3Storage.__name__ == "S3Storage"
