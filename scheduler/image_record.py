"""The images of async jobs in SQL, until the jobs end: once for a tenant, under their digests, with their uses counted.

All of it happens in transactions of the caller's. Rows are locked in one order, so that no two of them wait for each
other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from scheduler.database import insert_into
from scheduler.requests import image_digest
from scheduler.tables import ImageRow, JobImageRow

_NAMED = (ImageRow.tenant == bindparam("of_tenant"), ImageRow.digest == bindparam("of_digest"))


async def keep_images(connection: AsyncConnection, shown: Iterable[tuple[str, str, Sequence[bytes]]]) -> None:
    """Keep the images of new jobs, each given as (id, tenant, images)."""
    links: list[dict[str, Any]] = []
    files: dict[tuple[str, str], bytes] = {}
    for job_id, tenant, images in shown:
        for position, image in enumerate(images):
            digest = image_digest(image)
            links.append({"job_id": job_id, "position": position, "tenant": tenant, "digest": digest})
            files[tenant, digest] = image
    if not links:
        return
    await connection.execute(insert(JobImageRow), links)
    uses = Counter((link["tenant"], link["digest"]) for link in links)
    new = insert_into(connection, ImageRow)
    once_more = new.on_conflict_do_update(
        index_elements=["tenant", "digest"], set_={"uses": ImageRow.uses + new.excluded.uses}
    )
    rows = [
        {"tenant": tenant, "digest": digest, "uses": uses[tenant, digest], "data": files[tenant, digest]}
        for tenant, digest in sorted(files)
    ]
    for row in rows:  # one at a time: they are large
        await connection.execute(once_more, row)


async def drop_images(connection: AsyncConnection, job_ids: Sequence[str]) -> None:
    """These jobs have ended: what no other job shows is forgotten. Idempotent."""
    if not job_ids:
        return
    links = delete(JobImageRow).where(JobImageRow.job_id.in_(job_ids)).returning(JobImageRow.tenant, JobImageRow.digest)
    uses = Counter((row.tenant, row.digest) for row in await connection.execute(links))
    if not uses:
        return
    named = [{"of_tenant": key[0], "of_digest": key[1], "gone": uses[key]} for key in sorted(uses)]
    fewer = update(ImageRow).where(*_NAMED).values(uses=ImageRow.uses - bindparam("gone"))
    await connection.execute(fewer, named, execution_options={"synchronize_session": None})
    unused = delete(ImageRow).where(*_NAMED, ImageRow.uses <= 0)
    await connection.execute(unused, named, execution_options={"synchronize_session": None})


async def images_of(connection: AsyncConnection, job_id: str) -> tuple[bytes, ...]:
    """What a job shows, in order; less than that once it has ended."""
    same = (ImageRow.tenant == JobImageRow.tenant, ImageRow.digest == JobImageRow.digest)
    query = select(ImageRow.data).join(JobImageRow, same[0] & same[1]).where(JobImageRow.job_id == job_id)
    return tuple((await connection.execute(query.order_by(JobImageRow.position))).scalars())
