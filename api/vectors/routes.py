"""The endpoints that are answered with numbers."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from api.answer import answer
from api.bodies import JsonRoute
from api.call import CurrentCall
from api.node import CurrentNode
from api.vectors.embeddings import embedding_draft
from api.vectors.schemas import EmbeddingRequest, RerankRequest, ScoreRequest
from api.vectors.scores import rerank_draft, score_draft

router = APIRouter(tags=["vectors"], route_class=JsonRoute)


@router.post("/v1/embeddings")
async def create_embeddings(body: EmbeddingRequest, node: CurrentNode, call: CurrentCall, request: Request) -> Response:
    """A vector for each input; the same headers as /v1/chat/completions."""
    return await answer(node, call, embedding_draft(body), request)


@router.post("/v1/rerank")
@router.post("/v2/rerank", include_in_schema=False)
async def rerank(body: RerankRequest, node: CurrentNode, call: CurrentCall, request: Request) -> Response:
    """Documents in the order of how well they answer a query; Cohere's clients ask at /v2/rerank."""
    return await answer(node, call, rerank_draft(body), request)


@router.post("/v1/score")
async def score(body: ScoreRequest, node: CurrentNode, call: CurrentCall, request: Request) -> Response:
    """The scores of pairs of texts, in their order."""
    return await answer(node, call, score_draft(body), request)
