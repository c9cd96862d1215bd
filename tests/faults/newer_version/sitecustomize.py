"""Imported first where its folder is in PYTHONPATH: a process of a version of the farm that is yet to come.

Whatever it writes for other processes has a field that this version does not know: requests, frames, ends, events,
model cards and figures. The scripts are those of this version: each process runs its own. It can fail as others can.
"""

from typing import Any

import tests.faults.failpoints.sitecustomize  # noqa: F401
from tests.faults.patching import patch_when_complete

NEW = {"of_a_newer_version": 1}


def add_to_frames(module: Any) -> None:
    """One more field behind those of each chunk, and one more fact in each end."""
    fields_as_usual, end_as_usual = module._fields, module.encode_end
    count = module.CHUNK_FIELDS

    def fields(chunk: Any) -> tuple[Any, ...]:
        known = fields_as_usual(chunk)
        return (*known, *(None,) * (count - len(known)), "new")

    module._fields = fields
    module.encode_end = lambda end: end_as_usual(module.End(end.state, NEW | dict(end.data)))


def add_to_requests(module: Any) -> None:
    """One more parameter at each place."""
    values_as_usual = module.field_values
    module.field_values = lambda record: NEW | values_as_usual(record)


def add_to_events(module: Any) -> None:
    """One more fact in the first event of a job and in its last."""
    facts_as_usual, args_as_usual = module.submitted_facts, module.JobQueue.finish_args

    def finish_args(self: Any, job_id: str, token: str, event: Any, data: Any, sequence: int = 0) -> list[Any]:
        args: list[Any] = args_as_usual(self, job_id, token, event, NEW | dict(data), sequence)
        return args

    module.submitted_facts = lambda job: NEW | facts_as_usual(job)
    module.JobQueue.finish_args = finish_args


def add_to_cards(module: Any) -> None:
    """One more ability of a model."""
    asdict_as_usual = module.asdict
    module.asdict = lambda record: NEW | asdict_as_usual(record)


def add_to_figures(module: Any) -> None:
    """One more figure of each worker and agent."""
    publish_as_usual = module.Board.publish

    async def publish(self: Any, name: str, figures: Any, **options: Any) -> None:
        await publish_as_usual(self, name, NEW | dict(figures), **options)

    module.Board.publish = publish


patch_when_complete(
    (
        ("scheduler.frames", "decode_body", add_to_frames),
        ("scheduler.requests", "field_values", add_to_requests),
        ("scheduler.queue", "_await", add_to_events),
        ("scheduler.models", "tokenizer_hash", add_to_cards),
        ("scheduler.workers", "WorkerBoard", add_to_figures),
    )
)
