"""What sidecars hold beyond their frame, as far as others read it: forms to check it by.

Options, results and the details of inputs are each kind's own. Only the types of what is there are
checked, and that what is always read together is there; the rest may be anything.
"""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, model_validator


def _ascending(rows: list[int]) -> list[int]:
    if not 0 <= rows[0] < rows[1]:
        raise ValueError("the range is no range")
    return rows


Range = Annotated[list[int], Field(min_length=2, max_length=2), AfterValidator(_ascending)]


class Part(BaseModel):
    """A part of a sidecar that its readers rely on; it may hold more."""

    model_config = ConfigDict(strict=True)


class InputDetails(Part):
    """What an input records beside role, id and digest; of rows also which, and how often."""

    windows: list[str] = []
    rows: str = ""
    range: Range | None = None
    seq_len: int | None = Field(None, ge=0)
    passes: int | None = Field(None, ge=0)
    name: str | None = None
    text: str | None = None
    tokenizer: str | None = None
    hub: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> "InputDetails":
        given = self.model_fields_set  # what is there is a number, and never null
        for name in {"range", "seq_len", "passes"} & given:
            if getattr(self, name) is None:
                raise ValueError(f"{name} is null")
        if given & {"rows", "passes"} and not given >= {"range", "seq_len"}:
            raise ValueError("rows have no range, or no length")
        return self


class Outputs(Part):
    """What was written; models are known by its digest."""

    digest: str | None = None


class Counts(Part):
    """What is counted of a model, by whoever made or measured it."""

    method: str | None = None
    granularity: str | None = None
    ratio: float | None = None
    params: int | None = None
    nonzero: int | None = None
    flops: float | None = None
    flops_tokens: int | None = None
    sizes: dict[str, int | list[int] | None] = {}


class Timed(Part):
    """A measured time beside another model's."""

    speedup: float | None = None


class Speed(Counts):
    """Results of `speed`."""

    measured: dict[str, Timed | float | str | list[Any] | None] = {}


class Loss(Part):
    """The loss on one D, in nats per token."""

    source: str
    digest: str
    windows: int
    seq_len: int
    loss: FiniteFloat
    perplexity: float | None
    window_losses: list[FiniteFloat] = []

    @model_validator(mode="after")
    def _of_all(self) -> "Loss":
        if len(self.window_losses) not in (0, self.windows):
            raise ValueError("there are not as many window_losses as windows")
        return self


class Task(Part):
    """What a task came to."""

    name: str
    version: Any
    num_fewshot: int | None
    metric: str
    value: float
    sigma: float | None
    n: int
    digest: str
    bos: str = ""
    metrics: dict[str, float] = {}
    sigmas: dict[str, float | None] = {}
    counts: dict[str, int] = {}
    lower_is_better: list[str] = []


class Evaluation(Counts):
    """Results of `eval`; `model` is what the sidecar of the model counts."""

    data: list[Loss] = []
    tasks: list[Task] = []
    model: Counts | None = None


class Candidate(Counts):
    """A shape that `search-arch` has tried."""

    role: str
    ratio: float
    params: int
    loss: float | None = None


class Search(Part):
    """Results of `search-arch`."""

    candidates: list[Candidate] = Field(min_length=1)


RESULTS: dict[str, type[Part]] = {
    "checkpoint": Counts, "eval": Evaluation, "speed": Speed, "arch": Search,
}  # fmt: skip
