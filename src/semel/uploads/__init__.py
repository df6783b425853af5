"""Uploads that can be sent again: resumable by tus 1.0, stored once under their SHA-256."""

from semel.uploads.spool import Limits
from semel.uploads.state import Upload
from semel.uploads.storage import DiskStorage, Storage, StorageError
from semel.uploads.uploads import Uploads

__all__ = ["DiskStorage", "Limits", "Storage", "StorageError", "Upload", "Uploads"]
