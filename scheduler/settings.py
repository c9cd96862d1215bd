"""Settings that every process of a farm shares; each process extends the class with its own.

Order: flag (set by the command line as environment) > environment > ./farm.toml > FARM_HOME/config.toml > default.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from scheduler.addresses import Kind, read_address
from scheduler.backpressure import Limits
from scheduler.keys import key_id_of
from scheduler.scripts import QueuePolicy

LEAST_WEIGHT, MOST_WEIGHT = 0.001, 1000.0
Weight = Annotated[float, Field(ge=LEAST_WEIGHT, le=MOST_WEIGHT)]
"""A tenant's part of a lane, in relation to the others'."""


class FarmSettings(BaseSettings):
    """Where the farm's data, queue and record are. Unset URLs mean the embedded defaults under `home`."""

    model_config = SettingsConfigDict(env_prefix="FARM_", extra="ignore")

    home: Path = Field(Path("~/.mlx-farm"), description="All data of the embedded defaults.")
    redis_url: str = Field(
        "",
        description="Redis 6.2+ or Valkey: a server, sentinels or a cluster; empty: the embedded Valkey's Unix socket.",
    )
    database_url: str = Field("", description="sqlite+aiosqlite:// or postgresql+asyncpg://; empty: home/farm.db.")
    key_pepper: SecretStr | None = Field(
        None, description="Secret that API keys are checked with, one for all nodes; unset: the file home/pepper."
    )
    secret_key: SecretStr | None = Field(
        None,
        description="Fernet keys, newest first, that open providers' keys; unset: the file home/secret-key.",
    )
    provider_hosts: str = Field(
        "", description="host:port,… where providers may be although not https or not public: gateways of one's own."
    )
    shards: int = Field(1, ge=1, le=256, description="Queue shards (hash slots); the same on every process.")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")
    log_format: str = Field("auto", pattern="^(auto|json|console)$", description="auto: console on a terminal.")
    max_waiting_jobs: int = Field(100_000, ge=1, description="Jobs that may wait, in all.")
    max_waiting_tokens: int = Field(
        200_000_000, ge=1, description="Tokens that may wait (prompts and answers asked for)."
    )
    max_model_jobs: int = Field(100_000, ge=1, description="Jobs that may wait for one model.")
    max_model_tokens: int = Field(200_000_000, ge=1, description="Tokens that may wait for one model.")
    max_tenant_jobs: int = Field(100_000, ge=1, description="Jobs of one tenant that have not ended.")
    max_tenant_tokens: int = Field(200_000_000, ge=1, description="Tokens of one tenant's jobs that have not ended.")
    lease_s: float = Field(10.0, gt=0.2, description="A worker silent for this long loses its jobs.")
    age_s: float = Field(
        30.0, gt=0, description="A lane is overdue when its oldest job waits this long per lane above."
    )
    aged_share: float = Field(
        0.125, gt=0, le=0.5, description="Part of the tokens that an overdue lane has a right to."
    )
    prefix_grace_ms: int = Field(
        75,
        ge=0,
        le=5000,
        description="A job is left to workers that hold its prompt's beginning so long; 0: to anybody.",
    )
    tenant_weights: Annotated[dict[str, Weight], NoDecode] = Field(
        {}, description="Parts of a lane that tenants get, NAME=WEIGHT,…; whoever is not named has weight 1."
    )
    log_ttl_s: float = Field(3600.0, gt=0, description="How long a token log outlives its job.")
    max_crashes: int = Field(3, ge=2, description="Worker deaths that make a job dead.")
    max_retries: int = Field(3, ge=0, description="Retries of a job whose failure may pass; then it is dead.")
    retry_base_s: float = Field(0.5, gt=0, description="Longest wait before the first retry; doubles with each.")
    retry_longest_s: float = Field(60.0, gt=0, description="No retry waits longer than this.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Explicit arguments, then the environment, then the two TOML files."""
        toml = TomlConfigSettingsSource(settings_cls, toml_file=config_files())
        return init_settings, env_settings, toml

    @field_validator("tenant_weights", mode="before")
    @classmethod
    def _named_weights(cls, given: Any) -> Any:
        return _by_name(given, "tenants", "WEIGHT")

    @field_validator("redis_url")
    @classmethod
    def _readable(cls, url: str) -> str:
        if url:
            read_address(url)
        return url

    @property
    def home_path(self) -> Path:
        """`home` with ~ expanded, absolute."""
        return self.home.expanduser().absolute()

    @property
    def files_path(self) -> Path:
        """Where files are; API nodes and batch processes of one farm share it."""
        return self.home_path / "files"

    @property
    def redis(self) -> str:
        """The Redis URL in effect."""
        return self.redis_url or f"unix://{self.home_path / 'run' / 'valkey.sock'}"

    @property
    def database(self) -> str:
        """The SQLAlchemy URL in effect."""
        return self.database_url or f"sqlite+aiosqlite:///{self.home_path / 'farm.db'}"

    @property
    def trusted_provider_hosts(self) -> frozenset[str]:
        """Of `provider_hosts`."""
        return _listed(self.provider_hosts)

    @property
    def queue_policy(self) -> QueuePolicy:
        """Bounds and times for the queue's scripts."""
        return QueuePolicy(
            max_waiting_jobs=self.max_waiting_jobs,
            max_waiting_tokens=self.max_waiting_tokens,
            max_model_jobs=self.max_model_jobs,
            max_model_tokens=self.max_model_tokens,
            max_tenant_jobs=self.max_tenant_jobs,
            max_tenant_tokens=self.max_tenant_tokens,
            max_crashes=self.max_crashes,
            lease_ms=round(self.lease_s * 1000),
            disowned_grace_ms=round(self.lease_s * 500),
            age_ms=round(self.age_s * 1000),
            aged_share=self.aged_share,
            prefix_grace_ms=self.prefix_grace_ms,
            tenant_weights=tuple(sorted(self.tenant_weights.items())),
            log_ttl_ms=round(self.log_ttl_s * 1000),
            max_retries=self.max_retries,
            retry_base_ms=round(self.retry_base_s * 1000),
            retry_longest_ms=round(self.retry_longest_s * 1000),
        )


class ApiSettings(FarmSettings):
    """What `mlx-farm api` needs."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    api_key: SecretStr | None = Field(None, description="An admin's key beside those of `mlx-farm keys`.")
    insecure: bool = Field(False, description="Serve a public address without a key, until there are keys.")
    body_limit_bytes: int = Field(32 * 2**20, gt=0)
    max_connections: int = Field(4096, ge=1, description="Clients' connections at once; more get 503.")
    header_timeout_s: float = Field(10.0, gt=0, description="A request's head must have come within this time.")
    body_timeout_s: float = Field(30.0, gt=0, description="And its body; a large one has a second more per 16 KiB.")
    stalled_reader_s: float = Field(30.0, gt=0, description="A client that takes nothing for this long is cut off.")
    keepalive_s: float = Field(10.0, gt=0, description="A silent stream gets a comment this often.")
    drain_s: float = Field(20.0, ge=0, description="How long open streams may finish after a stop signal.")
    request_timeout_s: float = Field(900.0, gt=0, description="Deadline of a job that names none.")
    limit_requests_per_minute: int = Field(0, ge=0, description="Of one key; 0: no limit.")
    limit_input_tokens_per_minute: int = Field(0, ge=0, description="Prompt tokens not from the cache; 0: no limit.")
    limit_output_tokens_per_minute: int = Field(0, ge=0, description="Generated tokens of one key; 0: no limit.")
    limit_tokens_per_day: int = Field(0, ge=0, description="Tokens of one key, read and generated; 0: no limit.")
    limit_concurrent_jobs: int = Field(0, ge=0, description="Jobs of one key that have not ended; 0: no limit.")
    share_prefixes: bool = Field(
        False, description="Let tenants use each other's cached prefixes: faster, but timing tells what others ask."
    )
    file_limit_bytes: int = Field(512 * 2**20, gt=0, description="The largest file that may be uploaded.")
    files_quota_bytes: int = Field(16 * 2**30, gt=0, description="What all files of one tenant may take.")
    batch_max_requests: int = Field(100_000, ge=1, description="Requests in one batch.")
    webhook_secret: SecretStr | None = Field(None, description="whsec_… signs webhooks; none: no webhooks are sent.")
    webhook_hosts: str = Field("", description="host:port,… that webhooks may go to although not https or not public.")
    remote_images: bool = Field(False, description="Fetch images that requests name by https:// URLs.")
    image_hosts: str = Field("", description="host:port,… that images may come from although not https or not public.")
    batch_result_ttl_s: float = Field(29 * 86400.0, gt=0, description="How long result files of batches are kept.")
    batch_input_bytes: int = Field(256 * 2**20, gt=0, description="The largest batch, its requests as text.")

    @property
    def is_public(self) -> bool:
        """Can other machines reach the address?"""
        try:
            return not ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host != "localhost"

    @property
    def own_key(self) -> str | None:
        """`api_key`, unless it is a generated key: that is meant for a client in the same shell."""
        key = self.api_key.get_secret_value() if self.api_key else None
        return None if key_id_of(key) else key

    @property
    def trusted_webhook_hosts(self) -> frozenset[str]:
        """Of `webhook_hosts`."""
        return _listed(self.webhook_hosts)

    @property
    def trusted_image_hosts(self) -> frozenset[str]:
        """Of `image_hosts`."""
        return _listed(self.image_hosts)

    @property
    def limits(self) -> Limits:
        """What every key may use."""
        return Limits(
            requests_per_minute=self.limit_requests_per_minute,
            input_tokens_per_minute=self.limit_input_tokens_per_minute,
            output_tokens_per_minute=self.limit_output_tokens_per_minute,
            tokens_per_day=self.limit_tokens_per_day,
            concurrent_jobs=self.limit_concurrent_jobs,
        )


class ChoresSettings(FarmSettings):
    """What processes that run arq need: a Redis that is no cluster."""

    chores_redis_url: str = Field(
        "",
        description="Redis for arq, one server or sentinels; empty: redis_url, if that is no cluster.",
    )

    @property
    def chores_redis(self) -> str:
        """The Redis URL of the chores in effect."""
        return self.chores_redis_url or self.redis

    @model_validator(mode="after")
    def _chores_have_a_server(self) -> Self:
        if read_address(self.chores_redis).kind is Kind.CLUSTER:
            raise ValueError(
                "arq, which runs the chores, cannot use a Redis Cluster: "
                "set FARM_CHORES_REDIS_URL to one server or to sentinels (it holds nothing that may not be lost)"
            )
        return self


class BatchSettings(ApiSettings, ChoresSettings):
    """What `mlx-farm batches` needs: it translates lines as an API node does."""

    batch_window: int = Field(256, ge=1, description="Lines of one batch that are jobs at one time.")
    batch_retention_s: float = Field(
        90 * 86400.0, gt=0, description="How long ended batches are listed; then they go, with their result files."
    )


class WorkerSettings(FarmSettings):
    """What `mlx-farm worker` needs."""

    model: str = Field("demo", description="A folder, a Hugging Face id, or demo (bundled).")
    model_name: str = Field("", description="The name it is served under; empty: derived from `model`.")
    models: Annotated[dict[str, str], NoDecode] = Field(
        {}, description="Models that are loaded by demand instead, NAME=FOLDER or NAME=HUGGING_FACE_ID,…"
    )
    model_memory_bytes: int = Field(
        0, ge=0, description="What models that are loaded by demand may take in all; 0: 70 % of the machine's memory."
    )
    preload: str = Field("", description="Of the models, those to load at the start: NAME,…")
    pinned: str = Field("", description="Of the models, those that are loaded at the start and stay: NAME,…")
    keep_alive_s: float = Field(
        300.0, ge=-1, description="A model that nobody has used for this long is unloaded; -1: never."
    )
    model_turn_s: float = Field(
        10.0, gt=0, description="A busy model keeps its place for this long while others wait for it."
    )
    model_copy_after_s: float = Field(
        10.0, gt=0, description="Jobs that wait this long for a model bring a copy to another machine with free memory."
    )
    adapters: Annotated[dict[str, Path], NoDecode] = Field(
        {}, description="LoRA adapters, NAME=FOLDER,…; each is served as a model of its own."
    )
    draft_model: str = Field(
        "", description="A smaller model with the same tokens that guesses ahead: a folder or a Hugging Face id."
    )
    max_sequences: int = Field(32, ge=1, description="Rows of the decoding batch; unset, and the model sees: 8.")
    task: Literal["auto", "generate", "embed", "rerank"] = Field(
        "auto", description="What the model is for; auto: what its files say."
    )
    vision: bool = Field(True, description="Let a model that sees see; false: for text alone, with the paged cache.")
    reserved_rows: int | None = Field(
        None, ge=0, description="Rows of the batch that only the high lane may take; unset: a sixteenth of them."
    )
    engine: Literal["auto", "paged", "batch", "serial"] = Field(
        "auto", description="What computes: our paged cache, mlx-lm's BatchGenerator, or one row at a time."
    )
    step_tokens: int = Field(
        0, ge=0, description="What one step of a generating model reads of prompts at most; 0: 512 on a CPU, else 2048."
    )
    kv_cache_bytes: int = Field(0, ge=0, description="Memory for the paged KV cache; 0: a share of the machine's.")
    kv_bits: Annotated[Literal[0, 8], BeforeValidator(int)] = Field(
        0, description="Bits of the paged cache's keys and values: 8, or 0 for the model's own precision."
    )
    prefix_store_bytes: int = Field(
        0, ge=0, description="Disk under FARM_HOME for computed prefixes, which survive a restart; 0: none."
    )
    drain_s: float = Field(20.0, ge=0, description="How long running jobs may finish after a stop signal.")
    spare_process: bool = Field(
        True, description="Keep a process ready, without a model, that takes the place of one that dies."
    )
    progress_limit_s: float = Field(
        120.0, gt=0, description="No engine step for this long while work is there: killed."
    )

    def sequences_or(self, default: int) -> int:
        """`max_sequences` where somebody has set it."""
        return self.max_sequences if "max_sequences" in self.model_fields_set else default

    @property
    def high_lane_rows(self) -> int:
        """The reserved rows in effect: never all of them."""
        wanted = self.max_sequences // 16 if self.reserved_rows is None else self.reserved_rows
        return min(wanted, self.max_sequences - 1)

    @property
    def preloaded_models(self) -> frozenset[str]:
        """Of `preload`."""
        return frozenset(filter(None, self.preload.split(",")))

    @property
    def pinned_models(self) -> frozenset[str]:
        """Of `pinned`."""
        return frozenset(filter(None, self.pinned.split(",")))

    @field_validator("adapters", "models", mode="before")
    @classmethod
    def _named_folders(cls, given: Any, field: ValidationInfo) -> Any:
        return _by_name(given, str(field.field_name), "FOLDER")

    @model_validator(mode="after")
    def _one_way_to_serve(self) -> Self:
        about_one = {"model", "model_name", "adapters", "draft_model", "task"} & self.model_fields_set
        said = sorted(name for name in about_one if getattr(self, name) != type(self).model_fields[name].default)
        if self.models and said:
            raise ValueError(
                f"{' and '.join(said)} say what one model is served with, and models are named that are loaded by "
                "demand: give one or the other"
            )
        if unknown := sorted((self.preloaded_models | self.pinned_models) - self.models.keys()):
            raise ValueError(f"preload and pinned name {', '.join(unknown)}, which models does not have")
        return self


class ServeSettings(FarmSettings):
    """What `mlx-farm serve` needs besides: models with a worker of their own, next to the one that generates."""

    providers: bool = Field(False, description="Serve the models of providers, too.")

    embedding_model: str = Field("", description="Folder or Hugging Face id of a model for /v1/embeddings.")
    rerank_model: str = Field("", description="Folder or Hugging Face id of a cross-encoder for /v1/rerank.")


class SchedulerSettings(ChoresSettings):
    """What `mlx-farm scheduler` needs."""

    auto_migrate: bool = Field(True, description="Bring the database to the newest schema at start.")
    event_retention_s: float = Field(90 * 86400.0, gt=0, description="How long job_events rows are kept.")
    result_ttl_s: float = Field(7 * 86400.0, gt=0, description="How long results of async jobs are kept.")
    trim_margin_s: float = Field(600.0, ge=0, description="Projected events stay this long in Redis.")


def _listed(given: str) -> frozenset[str]:
    """What stands between commas."""
    return frozenset(filter(None, (item.strip() for item in given.split(","))))


def _by_name(given: Any, things: str, value: str) -> Any:
    """`NAME=VALUE,…` of a variable or a flag as a mapping; a TOML file has a table."""
    if not isinstance(given, str):
        return given
    found: dict[str, str] = {}
    for item in filter(None, given.split(",")):
        name, equals, text = item.partition("=")
        if not (name and equals and text):
            raise ValueError(f"{item!r} is not NAME={value}")
        if name in found:
            raise ValueError(f"two {things} are named {name!r}")
        found[name] = text
    return found


def config_files() -> list[Path]:
    """The TOML files that are read, weakest first."""
    home = Path(os.environ.get("FARM_HOME", "~/.mlx-farm")).expanduser()
    return [home / "config.toml", Path("farm.toml")]
