"""A Celery task that is acknowledged late: a worker that dies gives it back to the broker.

SHOP=sqlite:///shop.db BROKER=redis://127.0.0.1:6379/0 celery -A celery_tasks worker
"""

import os
from datetime import timedelta

from celery import Celery

from semel import Idempotency, Policy, current_operation, idempotent
from semel.functions import InFlight, StoreDown

app = Celery("shop", broker=os.environ["BROKER"])
app.conf.task_acks_late = True
app.conf.task_reject_on_worker_lost = True
again = int(os.environ.get("AGAIN", "3600"))  # seconds until what a dead worker had comes again
# The mutex: a worker that dies while it gives messages back keeps others from it for that long.
app.conf.broker_transport_options = {
    "visibility_timeout": again,
    "unacked_mutex_expire": min(again, 300),
}

# A worker does not wait for another that has the same message: it gives it back. A short lease:
# what a dead worker had begun is run again soon.
rules = Policy(guarantee="atomic", wait=timedelta(), lease=timedelta(seconds=5))
idempotency = Idempotency(os.environ["SHOP"], policy=rules)


@app.task(autoretry_for=(InFlight, StoreDown), retry_backoff=True, max_retries=20)
@idempotent(idempotency, key="order")
def ship(order: str, item: str) -> str:
    db = current_operation().connection()
    db.execute("insert into shipped values (?, ?)", (order, item))
    return f"{item} for {order}"
