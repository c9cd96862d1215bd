"""The flags of the processes: each one is a field of the settings classes, passed on as its FARM_… variable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

Home = Annotated[
    str | None, typer.Option("--home", metavar="DIR", help="Folder of all data.", show_default="~/.mlx-farm")
]
RedisUrl = Annotated[
    str | None,
    typer.Option("--redis-url", metavar="URL", help="Redis 6.2+ or Valkey.", show_default="the embedded Valkey"),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        metavar="URL",
        help="postgresql+asyncpg://… or sqlite+aiosqlite:///…",
        show_default="SQLite under the home folder",
    ),
]
LogLevel = Annotated[
    str | None, typer.Option("--log-level", help="DEBUG, INFO, WARNING or ERROR.", show_default="INFO")
]
LogFormat = Annotated[
    str | None, typer.Option("--log-format", help="auto, json or console.", show_default="console on a terminal")
]
Host = Annotated[str | None, typer.Option("--host", help="Address to listen on.", show_default="127.0.0.1")]
Port = Annotated[int | None, typer.Option("--port", help="Port to listen on; 0 picks a free one.", show_default="8000")]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", help="Key that every request must bring (better: FARM_API_KEY).")
]
Insecure = Annotated[
    bool | None, typer.Option("--insecure/--no-insecure", help="Allow a public address without a key.")
]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="A folder, a Hugging Face id, or demo.", show_default="demo"),
]
ModelName = Annotated[
    str | None, typer.Option("--model-name", help="Name it is served under.", show_default="derived from the model")
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="NAME=FOLDER",
        help="A LoRA adapter, served as a model of its own; may be repeated.",
        show_default="none",
    ),
]
DraftModel = Annotated[
    str | None,
    typer.Option(
        "--draft-model",
        metavar="MODEL",
        help="A smaller model with the same tokens that guesses ahead: a folder or a Hugging Face id.",
        show_default="none",
    ),
]
EmbeddingModel = Annotated[
    str | None,
    typer.Option(
        "--embedding-model",
        metavar="MODEL",
        help="A model for /v1/embeddings, beside the other: a folder or a Hugging Face id.",
        show_default="none",
    ),
]
RerankModel = Annotated[
    str | None,
    typer.Option(
        "--rerank-model",
        metavar="MODEL",
        help="A cross-encoder for /v1/rerank, beside the others: a folder or a Hugging Face id.",
        show_default="none",
    ),
]
Task = Annotated[
    str | None,
    typer.Option("--task", help="generate, embed or rerank.", show_default="what the model's files say"),
]
Providers = Annotated[
    bool | None, typer.Option("--providers/--no-providers", help="Serve the models of providers, too.")
]
MaxSequences = Annotated[
    int | None,
    typer.Option("--max-sequences", help="Rows of the decoding batch.", show_default="32; 8 of a model that sees"),
]
KvBits = Annotated[
    int | None,
    typer.Option(
        "--kv-bits", help="8: keys and values in a fourth to a half of the memory.", show_default="0, as computed"
    ),
]

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def environment(params: Mapping[str, Any]) -> dict[str, str]:
    """`{"max_sequences": 8, "host": None}` → `{"FARM_MAX_SEQUENCES": "8"}`: flags not given stay out.

    What was given several times is joined by commas.
    """
    given = {name: value for name, value in params.items() if value is not None and value not in ([], ())}
    joined = {name: ",".join(value) if isinstance(value, list | tuple) else value for name, value in given.items()}
    return {f"FARM_{name.upper()}": str(value) for name, value in joined.items()}
