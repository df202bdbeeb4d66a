"""Two handlers. Run a worker that has them:

PYTHONPATH=examples/worker-image INTERVALJOB_HANDLERS=handlers intervaljob worker
"""

import asyncio
import json

from intervaljob import Task, handler

PAGES = 20


@handler("report")
async def report(task: Task) -> dict[str, int]:
    """Writes pages one by one; an attempt after a lost one goes on at the page where that one stopped."""
    first = task.last_checkpoint if isinstance(task.last_checkpoint, int) else 0
    for page in range(first, PAGES):
        await asyncio.sleep(1)  # stands for the work
        task.checkpoint(page + 1)
    return {"pages": PAGES, "resumed_at": first}


@handler("invoice")
def invoice(task: Task) -> dict[str, str]:
    """Numbers an invoice after the task, which keeps its id: run twice, it is the same invoice."""
    customer = json.loads(task.payload)["customer"]
    task.logger.info("Invoice written", extra={"customer": customer})
    return {"customer": customer, "number": f"{task.scheduled_for:%Y%m}-{task.id.hex[:8]}"}
