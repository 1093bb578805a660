"""What every shape of an answer is made of."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

At = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]


class Answer(msgspec.Struct, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Base of all."""


class Ok(Answer):
    ok: Literal[True]
