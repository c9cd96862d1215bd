"""`mlx-farm run`: one streamed answer, or a conversation on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from farm.client import DONE, Client, ServerEvent
from farm.errors import CommandError, UsageRefused

with suppress(ImportError):
    import readline  # noqa: F401  (gives input() its line editing and history)

HELP = 'Type a message. """ begins and ends one of several lines. /clear forgets the conversation, /bye leaves.'
_QUOTES = '"""'


@dataclass
class Conversation:
    """The messages so far and the options that go with every request."""

    model: str
    options: dict[str, Any]
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)

    def body(self) -> dict[str, Any]:
        """The chat completion request."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return {"model": self.model, "messages": [*system, *self.messages], "stream": True, **self.options}


def run(
    model: Annotated[str, typer.Argument(help="Name of a served model (mlx-farm ls).")],
    prompt: Annotated[list[str] | None, typer.Argument(help="The prompt; none on a terminal: a conversation.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of one answer.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
) -> None:
    """Ask a model; the answer streams. Text piped in is added to the prompt."""
    options = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    given = {name: value for name, value in options.items() if value is not None}
    conversation = Conversation(model, given, system)
    client = Client.from_environment()
    piped = "" if sys.stdin.isatty() else sys.stdin.read()
    text = "\n\n".join(part for part in (" ".join(prompt or []), piped.strip()) if part)
    if text:
        _ask_once(client, conversation, text)
    elif sys.stdin.isatty():
        _converse(client, conversation)
    else:
        raise UsageRefused("There is no prompt: give one as an argument or through a pipe.")


def _ask_once(client: Client, conversation: Conversation, text: str) -> None:
    try:
        _ask(client, conversation, text)
    except KeyboardInterrupt:
        typer.echo()
        raise typer.Exit(130) from None


def _converse(client: Client, conversation: Conversation) -> None:
    typer.echo(HELP)
    while True:
        try:
            text = _read_message()
        except (EOFError, KeyboardInterrupt):
            typer.echo()
            return
        if text in ("/bye", "/exit", "/quit"):
            return
        if text == "/clear":
            conversation.messages.clear()
            typer.echo("Forgotten.")
        elif text.startswith("/") and " " not in text:
            typer.echo(HELP)
        elif text:
            try:
                _ask(client, conversation, text)
            except KeyboardInterrupt:
                typer.echo("\n(stopped)")
            except CommandError as error:
                typer.echo(str(error), err=True)


def _read_message() -> str:
    line = input(">>> ")
    if not line.startswith(_QUOTES):
        return line.strip()
    lines = [line.removeprefix(_QUOTES)]
    while not (lines[-1].endswith(_QUOTES) and (len(lines) > 1 or lines[-1])):
        lines.append(input("... "))
    lines[-1] = lines[-1].removesuffix(_QUOTES)
    return "\n".join(lines).strip()


def _ask(client: Client, conversation: Conversation, text: str) -> None:
    """Stream one answer and keep both messages; a failed turn leaves the conversation as it was."""
    conversation.messages.append({"role": "user", "content": text})
    answer: list[str] = []
    try:
        for piece in _pieces(client.stream("POST", "/v1/chat/completions", conversation.body())):
            answer.append(piece)
            sys.stdout.write(piece)
            sys.stdout.flush()
    finally:
        if answer:
            conversation.messages.append({"role": "assistant", "content": "".join(answer)})
        else:
            conversation.messages.pop()
    typer.echo()


def _pieces(events: Iterator[ServerEvent]) -> Iterator[str]:
    for event in events:
        if event.comment and sys.stderr.isatty():
            _show_wait(event.comment)
        if not event.data or event.data == DONE:
            continue
        piece = text_of(json.loads(event.data))
        if piece:
            _show_wait("")
            yield piece


def text_of(chunk: dict[str, Any]) -> str:
    """The new text in one chunk of a chat or text completion. Raises CommandError for an error in the stream."""
    if chunk.get("error"):
        raise CommandError(str(chunk["error"].get("message", chunk["error"])))
    texts = []
    for choice in chunk.get("choices", []):
        delta = choice.get("delta") or {}
        texts += [delta.get("reasoning_content"), delta.get("content"), choice.get("text")]
    return "".join(text for text in texts if text)


def _show_wait(what: str) -> None:
    """Show on a terminal what the farm says while nothing comes yet; '' wipes it."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{what}")
        sys.stderr.flush()
