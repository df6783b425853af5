"""Objects in an S3-style storage, over boto3."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

try:
    from boto3.exceptions import Boto3Error  # type: ignore[import-untyped,unused-ignore]
    from boto3.s3.transfer import TransferConfig  # type: ignore[import-untyped,unused-ignore]
    from botocore.exceptions import (  # type: ignore[import-untyped,unused-ignore]
        BotoCoreError,
        ClientError,
    )
except ImportError as error:  # pragma: no cover
    raise ImportError("semel.uploads.s3 needs boto3: pip install 'semel[s3]'") from error

from semel.uploads.storage import StorageError, checked_digest

__all__ = ["PART_SIZE", "S3Storage"]

PART_SIZE = 16 * 1024 * 1024
"""Bytes of a part of a large object; 10,000 of them are S3's most, 156 GiB."""
_TURNS = 64
_FAILURES = (Boto3Error, BotoCoreError, ClientError)
_MISSING = ("404", "NoSuchKey", "NotFound")


class S3Storage:
    """Objects under `prefix` + SHA-256 in a bucket; whole, or not there.

    `client` is `boto3.client("s3", …)`, with your credentials, timeouts and retries. A finished
    file waits on disk and is sent in one go, in parts where it is large; a kill meanwhile leaves an
    incomplete multipart upload, which costs room until `sweep` (or a lifecycle rule of the bucket)
    aborts it, and never an incomplete object. The prefix has to be for this alone.
    """

    def __init__(self, client: Any, bucket: str, prefix: str = "") -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        # Copies of one file that end together in this process are sent once.
        self._turns = [threading.Lock() for _ in range(_TURNS)]
        self._transfer = TransferConfig(
            multipart_threshold=PART_SIZE, multipart_chunksize=PART_SIZE, max_concurrency=2
        )

    def put(self, digest: str, file: Path) -> bool:
        """Store a copy of a file; one that is there is not sent again."""
        key = self._key(digest)
        with self._turns[int(digest[:8], 16) % _TURNS]:
            if self.size(digest) == file.stat().st_size:
                return False
            try:
                self._client.upload_file(str(file), self._bucket, key, Config=self._transfer)
            except _FAILURES as error:
                raise StorageError(f"cannot store {digest}: {error}") from error
            return True

    def open(self, digest: str) -> BinaryIO:
        """Return an object's bytes, as they arrive."""
        try:
            found = self._client.get_object(Bucket=self._bucket, Key=self._key(digest))
        except _FAILURES as error:
            if _is_missing(error):
                raise FileNotFoundError(digest) from error
            raise StorageError(f"cannot read {digest}: {error}") from error
        return cast("BinaryIO", found["Body"])

    def size(self, digest: str) -> int | None:
        """Return an object's size."""
        try:
            found = self._client.head_object(Bucket=self._bucket, Key=self._key(digest))
        except _FAILURES as error:
            if _is_missing(error):
                return None
            raise StorageError(f"cannot look for {digest}: {error}") from error
        return int(found["ContentLength"])

    def remove(self, digest: str) -> None:
        """Remove an object."""
        try:
            self._client.delete_object(Bucket=self._bucket, Key=self._key(digest))
        except _FAILURES as error:
            raise StorageError(f"cannot remove {digest}: {error}") from error

    def sweep(self, older: float) -> int:
        """Abort the multipart uploads that crashes left."""
        before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=older)
        aborted = 0
        try:
            for left in self._unfinished():
                if left["Initiated"] < before:
                    aborted += self._abort(left["Key"], left["UploadId"])
        except _FAILURES as error:
            raise StorageError(f"cannot clear unfinished uploads away: {error}") from error
        return aborted

    def _abort(self, key: str, upload: str) -> bool:
        try:
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload)
        except ClientError as error:
            if error.response["Error"]["Code"] != "NoSuchUpload":  # ended by itself meanwhile
                raise
            return False
        return True

    def _unfinished(self) -> Iterator[dict[str, Any]]:
        pages = self._client.get_paginator("list_multipart_uploads")
        for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
            yield from page.get("Uploads", ())

    def _key(self, digest: str) -> str:
        return self._prefix + checked_digest(digest)


def _is_missing(error: Exception) -> bool:
    return isinstance(error, ClientError) and error.response["Error"]["Code"] in _MISSING
