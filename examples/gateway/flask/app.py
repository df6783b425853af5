"""A payments API that knows nothing of idempotency keys: each POST charges the card.

flask --app app run --port 3000
semel gateway --upstream http://127.0.0.1:3000 --store sqlite:///keys.db
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from flask import Flask, request

LEDGER = Path(os.environ.get("LEDGER", "charges.jsonl"))  # a line each charge
SLOWNESS = float(os.environ.get("CARD_MS", "0")) / 1000  # of the card network

app = Flask(__name__)


def _charges() -> list[dict[str, Any]]:
    return [json.loads(line) for line in LEDGER.read_text().splitlines()] if LEDGER.exists() else []


@app.post("/charges")
def charge() -> Any:
    asked = request.get_json()
    if not asked.get("order") or not isinstance(asked.get("amount"), int) or asked["amount"] <= 0:
        return {"error": "order and a positive amount are needed"}, 422
    made = {"id": len(_charges()) + 1, "order": asked["order"], "amount": asked["amount"]}
    with LEDGER.open("a") as ledger:
        ledger.write(json.dumps(made) + "\n")
    time.sleep(SLOWNESS)
    return made, 201, {"Location": f"/charges/{made['id']}"}


@app.get("/charges")
def charges() -> Any:
    return _charges()


@app.get("/charges/count")
def count() -> Any:
    return str(len(_charges()))
