"""Uploads: the same bytes are the same file.

A file is sent in pieces to `/uploads/` (tus 1.0), which go on where a cut stopped them, and is
stored once under its SHA-256, whoever sends it. `POST /files` then takes it into the customer's
own list.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field

from semel.uploads import DiskStorage, UploadLimits, Uploads
from semel.web.fastapi import AsyncOp
from shop.customers import Customer, customer_of
from shop.database import DATABASE
from shop.protection import refusal

router = APIRouter()
FOLDER = Path(os.environ.get("SHOP_FILES", "shop-files")).absolute()
uploads = Uploads(
    DiskStorage(FOLDER / "stored"),
    FOLDER / "unfinished",
    limits=UploadLimits(max_size=64 * 1024**2, caller_uploads=20),
    scope=lambda request: customer_of(request.header("cookie")),
)


class Upload(BaseModel):
    upload: str = Field(max_length=200, description="the URL that the upload was given")


INSERT = """
    insert into files (customer, digest, name, size) values (?, ?, ?, ?)
    on conflict (customer, digest) do update set name = excluded.name
    returning id
"""


@router.post(
    "/files", status_code=201, responses={404: refusal("You have no such finished upload")}
)
async def keep(wanted: Upload, op: AsyncOp, customer: Customer) -> dict[str, Any]:
    found = await run_in_threadpool(uploads.find, customer, wanted.upload)
    if found is None or not found.complete:
        raise HTTPException(404, "you have no such finished upload")
    db = await op.connection()
    name = found.describe().get("filename", "")[:100].replace("\0", "")
    values = (customer, found.digest, name, found.length)
    [(number,)] = await DATABASE.run(db, INSERT, values)
    return {"file": number, "digest": found.digest, "name": name}
