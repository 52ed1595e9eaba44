"""POST /v1/layout: a document as text, without asking a model."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from turret_server.api.account import account
from turret_server.api.disconnect import ClientDisconnected, or_disconnect
from turret_server.api.documents.body import DocumentRoute
from turret_server.api.documents.input import document_input
from turret_server.api.schema.documents import LayoutBody
from turret_server.api.schema.responses import Layout
from turret_server.api.service import Service, service_of
from turret_server.pipeline.documents.layout import PageText
from turret_server.pipeline.documents.page import Page
from turret_server.telemetry.record import record_of

router = APIRouter(route_class=DocumentRoute, tags=["Documents"])


@router.post("/v1/layout", summary="Lay a document out as text", response_model=Layout)
async def lay_out(
    body: LayoutBody, request: Request, service: Annotated[Service, Depends(service_of)]
) -> Response:
    """Read a picture, a PDF or an OCR result, and return the text of each page.

    The text is what the chat route puts into prompts: spaces and line breaks keep the layout.
    """
    service.admission.check_draining()
    kind = next(name for name in ("document", "image_url", "file") if getattr(body, name))
    source = document_input(getattr(body, kind), kind)
    record = record_of(request.scope)
    with account(service.settings.tenancy, record) as charged:
        try:
            (document,) = await or_disconnect(
                request.receive, service.documents.read([source], body, record.tenant)
            )
        except ClientDisconnected:
            record.disconnected = True
            return Response(status_code=499)  # nobody reads it
        charged.read_pages(len(document.pages))
        await charged.accept_tokens(0)
    pages = [
        _page(page, text, words=bool(body.boxes))
        for page, text in zip(document.pages, document.texts, strict=True)
    ]
    answer = {
        "object": "layout",
        "pages": pages,
        "num_words": sum(page["num_words"] for page in pages),
    }
    return Response(msgspec.json.encode(answer), media_type="application/json")


def _page(page: Page, text: PageText, *, words: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "page": page.number,
        "width": page.width,
        "height": page.height,
        "unit": page.unit,
        "text": text.text,
        "num_words": len(page.words),
    }
    if words:
        fields["words"] = [
            {
                "text": word.text,
                "quad": word.quad,
                "start": start,
                "end": end,
                "confidence": word.confidence,
            }
            for word, (start, end) in zip(page.words, text.spans, strict=True)
        ]
    return fields
