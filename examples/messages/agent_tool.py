"""An agent's tool: the id of the tool call is the key, so a run that is repeated books once.

SHOP=sqlite:///shop.db python agent_tool.py
"""

import os

from semel import Idempotency, current_operation, idempotent

idempotency = Idempotency(os.environ["SHOP"])


@idempotent(idempotency, key="call_id", guarantee="atomic")
def book_table(call_id: str, guests: int, day: str) -> dict[str, str]:
    """Book a table. `call_id` is what the model named this call of the tool."""
    db = current_operation().connection()
    db.execute("insert into bookings values (?, ?)", (guests, day))
    return {"booked": day, "call": call_id}


def run_tool_calls(calls: list[dict[str, object]]) -> list[dict[str, str]]:
    """Carry out what the model asked for; may be run again from the start after a crash."""
    return [book_table(str(c["id"]), **c["arguments"]) for c in calls]  # type: ignore[arg-type]
