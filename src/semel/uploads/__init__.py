"""Uploads that can be sent again: resumable by tus 1.0, stored once under their SHA-256."""

from functools import cached_property

from semel.uploads.asgi import UploadsASGI
from semel.uploads.spool import UploadLimits
from semel.uploads.state import Upload
from semel.uploads.storage import DiskStorage, Storage, StorageError
from semel.uploads.uploads import UploadService
from semel.uploads.wsgi import UploadsWSGI

__all__ = ["DiskStorage", "Storage", "StorageError", "Upload", "UploadLimits", "Uploads"]


class Uploads(UploadService):
    """Takes files that can be sent again: resumable (tus 1.0) or plain, each content stored once.

    - `storage`: where finished files go, `DiskStorage(folder)` or `S3Storage(client, bucket)`.
    - `folder`: where unfinished ones wait. The processes of one machine may share it. On the disk
      of a `DiskStorage` a finished file moves by a link; elsewhere it is copied.
    - `limits`: sizes and quotas.
    - `scope`: whose upload it is, as in `Idempotency`. To anybody else it is not there.
    - `expires`: how long an unfinished upload waits after its last piece, and how long a finished
      one's URL works. The stored object stays: it is the service's.
    - `idle`: how long a client may send nothing before its request is ended (ASGI; a WSGI server
      has a timeout of its own). What arrived is kept, and the upload is free for the next request.
    - `sweep_every`: how often, at most, a request sets `sweep()` going; None leaves it to you.
    - `problem_base`: where your own documentation of the problem types lives.

    Mount `asgi` or `wsgi` where uploads are to go. Raises `OSError` where `folder` cannot be made.
    """

    @cached_property
    def asgi(self) -> UploadsASGI:
        """The ASGI application: `app.mount("/uploads", uploads.asgi)`."""
        return UploadsASGI(self)

    @cached_property
    def wsgi(self) -> UploadsWSGI:
        """The WSGI application, for werkzeug's `DispatcherMiddleware` and its like."""
        return UploadsWSGI(self)
