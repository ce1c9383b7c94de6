"""What the endpoints for texts accept and return, for the OpenAPI document: every field with its description and bounds.

Requests are not parsed with these models: `classify.py` checks them, and tests hold both to the same verdict.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.tasks.state_schema import InstanceState, PredictionState, SequenceFields

MAX_CHARACTERS = 100_000
"""The longest text. Whatever is read of it, all of it is split into tokens first: 60 ms and 10 MB."""

Text = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS, pattern=r"\S")]


class ClassifyInstance(SequenceFields):
    """One text."""

    model_config = ConfigDict(extra="forbid")

    text: Text = Field(
        description="The text, in any characters; at most 100,000 of them, and not only white space.",
        examples=["A quiet, moving film."],
    )
    state: InstanceState = None


class ClassifyParameters(SequenceFields):
    """Defaults for every instance of the request."""

    model_config = ConfigDict(extra="forbid")

    explain: Literal["prefix", "occlusion"] | None = Field(
        default=None,
        description="Have the predictions say what was read word by word, in `explanation`: `prefix` what the text is classified "
        "as after each of its words, `occlusion` what it is classified as without each. `classify.explain` of "
        "`GET /models/{name}` lists what the model can.",
        examples=["occlusion"],
    )


class WordExplanation(BaseModel):
    """What a classifier read in a text, word by word."""

    method: Literal["prefix", "occlusion"] = Field(description="As the request named it.", examples=["occlusion"])
    words: list[str] = Field(
        description="The words of the text in their order: what stands between white space, or a character of Chinese and "
        "Japanese.",
        examples=[["A", "quiet,", "moving", "film."]],
    )
    probabilities: dict[str, list[float]] = Field(
        description="Label → a probability for each word: of the text up to and with the word (`prefix`), or of the text without "
        "it (`occlusion`). Each is what a request with that text alone gets.",
        examples=[{"negative": [0.41, 0.22, 0.16, 0.04], "positive": [0.59, 0.78, 0.84, 0.96]}],
    )


class Classification(BaseModel):
    """The labels of one text with their probabilities."""

    label: str = Field(description="The most probable label.", examples=["positive"])
    score: float = Field(description="Its probability, 0 to 1.", examples=[0.97])
    probabilities: dict[str, float] = Field(
        description="Label → probability; they sum to 1.", examples=[{"negative": 0.03, "positive": 0.97}]
    )
    truncated: bool | None = Field(
        default=None,
        description="True if the text was too long and only its beginning and end were read; else absent.",
        examples=[True],
    )
    explanation: WordExplanation | None = Field(
        default=None,
        description="What was read word by word, where the request has the parameter `explain`; else absent.",
        examples=[
            {
                "method": "occlusion",
                "words": ["quiet", "film"],
                "probabilities": {"negative": [0.3, 0.1], "positive": [0.7, 0.9]},
            }
        ],
    )
    state: PredictionState = None
    known_tokens: int | None = Field(
        default=None,
        description="How many tokens of the text the model knows; absent where its manifest has no `min_known`.",
        examples=[6],
    )
    uncertain: bool | None = Field(
        default=None,
        description="True if the model knows less than the share `min_known` of the text's tokens: the answer says little; else "
        "absent.",
        examples=[True],
    )


class ClassifyDescription(BaseModel):
    """What a text classifier accepts and returns."""

    model_config = ConfigDict(extra="allow")

    labels: list[str] = Field(description="Every label, in the order of the output.", examples=[["negative", "positive"]])
    max_length: int = Field(description="Number of tokens read of one text, or of a piece of it.", examples=[256])
    long_texts: str = Field(
        default="cut", description="`cut`: longer texts are cut; `pieces`: they are read whole, in pieces.", examples=["pieces"]
    )
    min_known: float | None = Field(
        default=None, description="Share of a text's tokens below which an answer is `uncertain`.", examples=[0.5]
    )
    language: str = Field(description="BCP 47 tag of the texts, or `und`.", examples=["en"])
    explain: list[Literal["prefix", "occlusion"]] = Field(
        description="How its predictions can be explained word by word: `prefix` only where the network reads in one direction.",
        examples=[["prefix", "occlusion"]],
    )


EXAMPLES = (
    {"instances": ["A quiet, moving film.", {"text": "A dull plot, badly acted."}]},
    {"model": "sentiment-en", "instances": ["A quiet, moving film."], "parameters": {"explain": "occlusion"}},
)
