"""multipart/form-data streamed to disk: a few short fields, and one file that never passes through memory.

https://www.rfc-editor.org/rfc/rfc7578
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from api.errors import ApiError, InvalidParameter
from scheduler.files import IncomingFile

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_FIELDS = 16
MAX_FIELD_BYTES = 4096
MAX_FILENAME_CHARS = 255


@dataclass(slots=True)
class Form:
    """What was read: fields by name, and the name that the client gave its file (None: no file came)."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None


async def read_form(request: Request, incoming: IncomingFile) -> Form:
    """Read the body to its end, the part `file` into `incoming`. Raises ApiError, FileTooLarge."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise ApiError(415, "The body must be multipart/form-data: -F purpose=batch -F file=@requests.jsonl.")
    reader = _Reader(incoming)
    try:
        parser = MultipartParser(boundary, reader.callbacks())
        async for chunk in request.stream():
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise ApiError(400, f"The body is not valid multipart/form-data: {error}.") from error
    if not reader.ended:
        raise ApiError(400, "The body ends before its last part does.")
    return reader.form


class _Reader:
    """Collects one part after the other."""

    def __init__(self, incoming: IncomingFile) -> None:
        self.form = Form()
        self.ended = False
        self._incoming = incoming
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._name = ""
        self._value = bytearray()
        self._is_file = False

    def callbacks(self) -> MultipartCallbacks:
        """For the parser."""
        return {
            "on_part_begin": self._begin,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_header_field": self._field,
            "on_header_value": self._set_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_end": self._finished,
        }

    def _begin(self) -> None:
        self._disposition, self._name, self._is_file = b"", "", False
        self._value.clear()

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _set_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if not self._name:
            raise ApiError(400, "A part of the body has no name.")
        self._is_file = b"filename" in options
        if not self._is_file:
            if len(self.form.fields) >= MAX_FIELDS:
                raise ApiError(400, f"A form has {MAX_FIELDS} fields at most.")
            return
        if self._name != "file" or self.form.filename is not None:
            raise InvalidParameter(self._name, "A form has one file, named 'file'.")
        self.form.filename = shown_name(options[b"filename"].decode("utf-8", "replace"))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._incoming.write(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > MAX_FIELD_BYTES:
            raise InvalidParameter(self._name, f"A field has {MAX_FIELD_BYTES} bytes at most.")

    def _end(self) -> None:
        if not self._is_file:
            self.form.fields[self._name] = self._value.decode("utf-8", "replace")

    def _finished(self) -> None:
        self.ended = True


def shown_name(filename: str) -> str:
    """A client's file name as a label: its last part, printable. It never becomes part of a path."""
    last = filename.replace("\\", "/").rpartition("/")[2]
    return "".join(char for char in last if char.isprintable())[:MAX_FILENAME_CHARS] or "file"
