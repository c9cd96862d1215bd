"""What can go wrong between a request and its record; the message of each class says what to do.

FarmError
├── QueueUnavailable        Redis does not answer, or refuses writes
├── QueueFull, RateLimited, OverLimit: a bound of the queue or of the caller's key is reached
├── NoLease                 a worker claims without a live lease
├── LogShortened            a job cannot be ended: the queue lost the end of its token log
├── IdempotencyConflict     one Idempotency-Key, two different bodies
├── UnknownJob, UnknownModel, NoTokenizer, ModelFailed, UnknownFile, UnknownBatch, UnknownKey
├── InvalidKey ── TooManyFailures (from one address); Forbidden (the key's role, models or lanes)
├── InvalidTerms, KeyEnded, PepperUnusable: a key cannot be made, or rotated, or checked
├── InvalidProvider, UnknownProvider, ProviderExists, VaultUnusable (the secret that opens providers' keys)
├── ContextTooLong, TemplateRefused, UnsupportedServer, AgentSilent, OrderRefused
├── AnswerDiverged          a resumed job went on with other tokens than those already told
├── LogRewritten            the queue forgot frames that a client has read
├── RecordUnavailable       the SQL database does not answer
├── FileTooLarge, QuotaExceeded: a content, or all of a tenant's files
├── BatchMoved              a batch was moved on by somebody else meanwhile
├── InvalidQuery            an audit query that is not a read-only SELECT
└── InvalidRule, UnknownRules, RulesMoved (the routing rules were changed by somebody else meanwhile)
"""

from __future__ import annotations

from scheduler.backpressure import Standing


class FarmError(Exception):
    """Every error that a user or an operator can cause or meet."""


class QueueUnavailable(FarmError):
    """The queue (Redis) does not answer; nothing was accepted, try again."""

    def __init__(self, reason: str = "", retry_after_s: float = 2.0) -> None:
        super().__init__("The queue (Redis) is not reachable" + (f": {reason}" if reason else "") + ". Try again soon.")
        self.retry_after_s = retry_after_s


class UnsupportedServer(FarmError):
    """The farm cannot run on this Redis, and waiting would not help."""

    def __init__(self, why: str) -> None:
        super().__init__(f"The queue's server cannot be used: {why}.")


class QueueFull(FarmError):
    """A bound of the queue is reached; the request was refused whole."""

    def __init__(self, scope: str, limit: int, retry_after_s: float) -> None:
        super().__init__(f"The queue is full ({scope}: {limit}). Try again in {retry_after_s:.0f} s.")
        self.scope = scope
        self.retry_after_s = retry_after_s


class RateLimited(FarmError):
    """A limit of the caller's key is reached; nothing was charged."""

    def __init__(self, limit: int, what: str, standing: Standing, retry_after_s: float) -> None:
        super().__init__(f"The limit of this key, {limit} {what}, is reached. Try again in {retry_after_s:.0f} s.")
        self.standing = standing
        self.retry_after_s = retry_after_s


class OverLimit(FarmError):
    """One request asks for more than its key may use in a whole minute: waiting would not help."""

    def __init__(self, limit: int, what: str, needed: int, standing: Standing) -> None:
        super().__init__(
            f"This request is {needed} of the {limit} {what} of this key, and can never be served. Shorten it."
        )
        self.standing = standing


class NoLease(FarmError):
    """The worker's lease has ended: it must drop its jobs and register again under a new id."""


class LogShortened(FarmError):
    """The queue lost frames of the job that its worker is ending: they have to be written again first."""


class IdempotencyConflict(FarmError):
    """The Idempotency-Key was used before with a different body."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"Idempotency-Key {key!r} was already used with a different request body. Use a new key for a new request."
        )


class UnknownJob(FarmError):
    """No job has this id, or its record is past its retention."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"No job {job_id!r} is known here (or its retention time is over).")


class AnswerDiverged(FarmError):
    """A job was computed again and its tokens differ from those its client has: going on would make nonsense."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"Job {job_id} was computed again and took another turn than the text already sent. Send the request again."
        )


class LogRewritten(FarmError):
    """The queue lost the frame that a client has read last: what follows it is cut into other frames now."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"The events of job {job_id} were written again after the queue had lost some of them. "
            f"Read them from the start: GET /v1/jobs/{job_id}/events without Last-Event-ID."
        )


class UnknownModel(FarmError):
    """No worker serves a model of this name."""

    def __init__(self, name: str, nearest: list[str]) -> None:
        hint = f" Did you mean {' or '.join(repr(n) for n in nearest)}?" if nearest else " GET /v1/models lists them."
        super().__init__(f"The model {name!r} is not served here.{hint}")
        self.name = name
        self.nearest = nearest


class NoTokenizer(FarmError):
    """What needs a model's tokenizer was asked of one that a provider has."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The model {name!r} is a provider's: its tokenizer is not here, so that nothing can be counted."
        )


class ModelFailed(FarmError):
    """The model is known, and no node agent can load it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            f"The model {name!r} cannot be served: {reason}. It is tried again when an operator loads it "
            f"(mlx-farm load {name})."
        )


class AgentSilent(FarmError):
    """A node agent has not answered in time."""

    def __init__(self, agent: str) -> None:
        super().__init__(f"The node agent {agent} does not answer. Is it running? mlx-farm ps shows those that are.")


class OrderRefused(FarmError):
    """A node agent cannot do what it was asked for."""

    def __init__(self, what: str, model: str, reason: str) -> None:
        super().__init__(f"Cannot {what} {model!r}: {reason}.")


class ContextTooLong(FarmError):
    """The prompt, with the tokens asked for, does not fit the model's context."""

    def __init__(self, prompt_tokens: int, context_tokens: int, max_tokens: int | None = None) -> None:
        asked = f" plus max_tokens={max_tokens}" if max_tokens is not None else ""
        super().__init__(
            f"This model's context is {context_tokens} tokens, but the prompt has {prompt_tokens} tokens{asked}. "
            "Shorten the prompt or ask for fewer tokens."
        )
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens


class TemplateRefused(FarmError):
    """The model's chat template raised an error for these messages."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The model's chat template refused the messages: {reason}")


class ImagesMisplaced(FarmError):
    """A rendered conversation stands for another number of images than it has."""

    def __init__(self, images: int, mark: str) -> None:
        reason = f"its text has {mark!r} in it, which stands for an image: leave it out"
        other = " (or the model's chat template does not show images at their places)" if images else ""
        super().__init__(f"The conversation has {images} images, and {reason}{other}.")


class InvalidKey(FarmError):
    """The API key is missing, wrong or has ended."""

    def __init__(self, message: str = "") -> None:
        super().__init__(
            message or "Missing or wrong API key. Send it as 'Authorization: Bearer <key>' or as 'x-api-key'."
        )


class TooManyFailures(InvalidKey):
    """Wrong keys, again and again, from one address."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(
            f"Too many wrong API keys came from this address. Correct the key, and try again in {retry_after_s:.0f} s."
        )
        self.retry_after_s = retry_after_s


class Forbidden(FarmError):
    """The key is valid, but does not open this."""


class InvalidTerms(FarmError):
    """A key cannot be made with these terms."""

    def __init__(self, param: str, allowed: str) -> None:
        super().__init__(f"Invalid {param!r} of a key: it must be {allowed}.")
        self.param = param


class UnknownKey(FarmError):
    """No key has this id."""

    def __init__(self, key_id: str) -> None:
        super().__init__(f"No key {key_id!r} is known here. GET /admin/keys lists them.")


class KeyEnded(FarmError):
    """The key cannot be used any more, nor made usable."""

    def __init__(self, key_id: str, state: str) -> None:
        super().__init__(f"The key {key_id} is {state}. Create another: mlx-farm keys create.")


class PepperUnusable(FarmError):
    """The secret that keys are checked with is not as it should be."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"The pepper ({where}) {why}.")


class InvalidProvider(FarmError):
    """A provider cannot be as it was described."""

    def __init__(self, param: str, why: str) -> None:
        super().__init__(f"Invalid {param!r} of a provider: {why.rstrip('.')}.")
        self.param = param


class UnknownProvider(FarmError):
    """No provider has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"No provider {name!r} is known here. GET /admin/providers lists them.")


class ProviderExists(FarmError):
    """The name is taken."""

    def __init__(self, name: str) -> None:
        super().__init__(f"There is a provider {name!r} already. Change it, or choose another name.")


class VaultUnusable(FarmError):
    """The secret that keys of providers are encrypted with is not as it should be."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"The secret of providers' keys ({where}) {why}.")


class RecordUnavailable(FarmError):
    """The SQL database does not answer."""

    def __init__(self, reason: str = "", retry_after_s: float = 2.0) -> None:
        super().__init__("The record (SQL) is not reachable" + (f": {reason}" if reason else "") + ". Try again soon.")
        self.retry_after_s = retry_after_s


class UnknownFile(FarmError):
    """The tenant has no file of this id."""

    def __init__(self, file_id: str) -> None:
        super().__init__(f"No file {file_id!r} is known here (it may have expired). GET /v1/files lists them.")


class FileTooLarge(FarmError):
    """A content is over its limit; nothing of it was kept."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The content is over the limit of {limit_bytes} bytes. Split it.")


class QuotaExceeded(FarmError):
    """A tenant's files would take more than they may; nothing was kept."""

    def __init__(self, used_bytes: int, quota_bytes: int) -> None:
        super().__init__(
            f"Files may take {quota_bytes} bytes in all and take {used_bytes} now. Delete some: DELETE /v1/files/ID."
        )


class UnknownBatch(FarmError):
    """The tenant has no batch of this id."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"No batch {batch_id!r} is known here.")


class BatchMoved(FarmError):
    """A batch is no longer as it was read: what was computed from that reading is void."""


class InvalidQuery(FarmError):
    """An audit query that is not one read-only SELECT, or that the database refused."""


class InvalidRule(FarmError):
    """A routing rule that cannot be applied."""


class UnknownRules(FarmError):
    """No version or draft of the routing rules is called so."""

    def __init__(self, name: str | int) -> None:
        super().__init__(f"The routing rules have no version or draft {name!r}. GET /admin/rules lists them.")


class RulesMoved(FarmError):
    """The routing rules in effect are not those that a change was made from; nothing was changed."""

    def __init__(self, base: int, current: int) -> None:
        super().__init__(
            f"The draft was made from version {base} of the routing rules, and version {current} is in effect. "
            "Look at what has changed, and make the draft again from there."
        )
