"""Uploads as a server process: what they are made of comes from the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from semel.uploads import DiskStorage, Storage, UploadLimits, Uploads, intake

GIBIBYTE = 1024**3
FOLDER = Path(os.environ["UPLOADS_FOLDER"])
intake.KEEP_EVERY = int(os.environ.get("UPLOADS_KEEP_EVERY", intake.KEEP_EVERY))


def storage() -> Storage:
    if "UPLOADS_S3" not in os.environ:
        return DiskStorage(FOLDER / "objects")
    import boto3

    from semel.testing.servers import S3
    from semel.uploads.s3 import S3Storage

    client = boto3.client(
        "s3",
        endpoint_url=os.environ["UPLOADS_S3"],
        aws_access_key_id=S3.access_key,
        aws_secret_access_key=S3.secret_key,
        region_name="us-east-1",
    )
    return S3Storage(client, S3.bucket, os.environ["UPLOADS_PREFIX"])


uploads = Uploads(
    storage(),
    FOLDER / "uploads",
    limits=UploadLimits(max_size=GIBIBYTE, caller_bytes=64 * GIBIBYTE, caller_uploads=1000),
    sweep_every=None,
)
asgi: Any = uploads.asgi
wsgi: Any = uploads.wsgi
