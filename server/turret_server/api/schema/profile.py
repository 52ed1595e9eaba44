"""Bodies of the profiling route."""

from __future__ import annotations

from pydantic import BaseModel, Field

from turret_server.api.schema.base import RequestBody

MAX_STEPS = 32  # a step is a megabyte or two of trace
MAX_WAIT_S = 60.0


class ProfileBody(RequestBody):
    """What to watch."""

    steps: int = Field(8, ge=1, le=MAX_STEPS)
    wait_s: float = Field(
        30.0, gt=0, le=MAX_WAIT_S, description="How long at most; an idle engine makes no steps."
    )
    trace: bool = Field(False, description="Answer with a Chrome trace, for Perfetto.")


class OperationCard(BaseModel):
    """One kind of operation; on a GPU its time there."""

    name: str
    calls: int
    own_s: float = Field(description="Without the operations that it called.")
    total_s: float


class ProfileCard(BaseModel):
    """What the steps spent their time on, what took most first."""

    steps: int = Field(description="Steps watched; fewer than asked for if they did not come.")
    seconds: float = Field(description="From the first to the last of them, pauses included.")
    operations: list[OperationCard]
