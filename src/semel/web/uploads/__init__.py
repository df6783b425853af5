"""Uploads that can be sent again: resumable by tus 1.0, stored once under their SHA-256."""

from semel.web.uploads.spool import Limits
from semel.web.uploads.state import Upload
from semel.web.uploads.storage import DiskStorage, Storage, StorageError
from semel.web.uploads.uploads import Uploads

__all__ = ["DiskStorage", "Limits", "Storage", "StorageError", "Upload", "Uploads"]
