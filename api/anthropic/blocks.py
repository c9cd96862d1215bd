"""From content blocks to the parts of OpenAI's messages, the form in which chats go on from here; pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from api.anthropic.schemas import Block, Content
from api.errors import InvalidParameter, Unsupported

Part = dict[str, Any]

LEFT_OUT = frozenset(
    {
        "redacted_thinking",
        "server_tool_use",
        "web_search_tool_result",
        "web_fetch_tool_result",
        "code_execution_tool_result",
        "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
        "tool_reference",
        "container_upload",
        "browser_state",
        "compaction",
    }
)
"""What only Anthropic's servers can read or have made: left out of the prompt, and listed."""


class Blocks:
    """Reads contents; collects the paths of what is left out in `ignored`."""

    def __init__(self) -> None:
        self.ignored: list[str] = []

    def parts(self, content: Content, path: str) -> list[tuple[str, Part]]:
        """Each part with the path of its block. Raises ApiError by path."""
        return [found for at, block in numbered(content, path) for found in self.block_parts(block, at)]

    def block_parts(self, block: Block, path: str) -> list[tuple[str, Part]]:
        """What one block says. Raises ApiError by path."""
        match block.type:
            case "text":
                return [(path, text_part(required(block.text, path, "text", block.type)))]
            case "image":
                return [(path, _image(block, path))]
            case "document":
                return self._document(block, path)
            case "search_result":
                return self._search_result(block, path)
            case kind if kind in LEFT_OUT:
                self.ignored.append(path)
                return []
            case kind:
                raise Unsupported(f"{path}.type", f"No block of type {kind!r} can stand here.")

    def text(self, content: Content, path: str) -> str:
        """A content that must be text: system prompts. Raises ApiError by path."""
        texts = []
        for at, block in numbered(content, path):
            if block.type != "text":
                raise Unsupported(f"{at}.type", "System prompts are text.")
            texts.append(required(block.text, at, "text", block.type))
        return "\n\n".join(text for text in texts if text and not is_billing(text))

    def _document(self, block: Block, path: str) -> list[tuple[str, Part]]:
        source = block.source if isinstance(block.source, dict) else {}
        kind = source.get("type")
        head = "".join(f"{line}\n" for line in (block.title, block.context) if line)
        if isinstance(block.citations, dict) and block.citations.get("enabled"):
            self.ignored.append(f"{path}.citations")
        match kind, source.get("data", source.get("content")):
            case "text", str(text):
                return [(path, text_part(head + text))]
            case "content", str(text):
                return [(path, text_part(head + text))]
            case "content", list(inner):
                blocks = [Block.model_validate(each) for each in inner if isinstance(each, dict)]
                lead = [(path, text_part(head.rstrip("\n")))] if head else []
                return lead + self.parts(blocks, f"{path}.source.content")
        raise Unsupported(
            f"{path}.source.type", "Documents are read as text only: send a source of type 'text' or 'content'."
        )

    def _search_result(self, block: Block, path: str) -> list[tuple[str, Part]]:
        source = block.source if isinstance(block.source, str) else ""
        head = "\n".join(filter(None, [block.title, source]))
        return [(path, text_part(head)), *self.parts(block.content or [], f"{path}.content")]


def numbered(content: Content, path: str) -> Iterator[tuple[str, Block]]:
    """A content's blocks with their paths; a text is one block."""
    if isinstance(content, str):
        yield path, Block(type="text", text=content)
        return
    for index, block in enumerate(content):
        yield f"{path}.{index}", block


def is_billing(text: str) -> bool:
    """Claude Code's first system block, which changes from request to request and would spoil every cached prefix."""
    return text.startswith("x-anthropic-billing-header:")


def text_part(text: str) -> Part:
    """A part of text."""
    return {"type": "text", "text": text}


def required(value: str | None, path: str, field: str, kind: str) -> str:
    """A field that a block's type needs. Raises InvalidParameter."""
    if value is None:
        raise InvalidParameter(f"{path}.{field}", f"A block of type {kind!r} needs {field!r}.")
    return value


def _image(block: Block, path: str) -> Part:
    """An image as OpenAI's part: what becomes of it depends on the model."""
    source = block.source if isinstance(block.source, dict) else {}
    match source:
        case {"type": "base64", "media_type": str(media_type), "data": str(data)}:
            url = f"data:{media_type};base64,{data}"
        case {"type": "url", "url": str(url)}:
            pass
        case {"type": "file"}:
            raise Unsupported(f"{path}.source.type", "Send the image itself, as base64.")
        case _:
            raise InvalidParameter(
                f"{path}.source", "An image is {type: base64, media_type, data} or {type: url, url}."
            )
    return {"type": "image_url", "image_url": {"url": url}}
