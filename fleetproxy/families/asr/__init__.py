"""Speech recognition by dial-in workers: `/api/asr/v1/*`, in OpenAI's words."""

from __future__ import annotations

from fleetproxy.core.operation import Endpoint
from fleetproxy.families.base import Family

_PREFIX = "/api/asr"

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        name="asr_transcriptions",
        methods=("POST",),
        path=f"{_PREFIX}/v1/audio/transcriptions",
        family="asr",
        dialect="openai",
        read=False,
        generates=True,
        upload=True,
        form=True,
        patient=True,
        surface="family",
        table="asr",
        forward=b"/v1/audio/transcriptions",
        doc="Text from speech, by the dial-in workers that have the model; the form goes through as it comes.",
    ),
    Endpoint(
        name="asr_models",
        methods=("GET", "HEAD"),
        path=f"{_PREFIX}/v1/models",
        family="asr",
        dialect="openai",
        shape="gather",
        surface="family",
        table="asr",
        doc="All models of the speech workers.",
    ),
    Endpoint(
        name="asr_model",
        methods=("GET", "HEAD"),
        path=f"{_PREFIX}/v1/models/{{id}}",
        family="asr",
        dialect="openai",
        shape="gather",
        surface="family",
        table="asr",
        doc="One of them; its id may hold slashes and colons, plain or percent-encoded.",
    ),
)

family = Family(name="asr", summary="Transcription by dial-in workers.", endpoints=ENDPOINTS)
