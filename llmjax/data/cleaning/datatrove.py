"""Uses cleaning steps in a datatrove pipeline, between its readers, filters and writers."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from llmjax.data.cleaning.document import Document, Rejected, Step, clean


class Cleaning:
    """Cleaning steps as one block of a datatrove pipeline.

        LocalPipelineExecutor([JsonlReader("raw"), Cleaning([Repair(), GopherQuality()]),
                               JsonlWriter("clean")]).run()

    Args:
        steps: steps that documents pass.
        exclusion_writer: datatrove's writer for rejected documents, with `filter_step`,
            `filter_reason` and `filter_score` in their metadata; None drops them.
    """

    def __init__(self, steps: Iterable[Step], exclusion_writer: Any = None) -> None:
        self._steps = tuple(steps)
        self._writer = exclusion_writer

    def __call__(self, data: Iterable[Any], rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Passes datatrove's documents through the steps."""
        del world_size
        with self._writer or contextlib.nullcontext():
            for item in data:
                result = clean(Document(item.text, item.id, metadata=item.metadata), self._steps)
                document = result.document if isinstance(result, Rejected) else result
                item.text, item.metadata = document.text, dict(document.metadata)
                if not isinstance(result, Rejected):
                    yield item
                elif self._writer is not None:
                    why = {"step": result.step, "reason": result.reason, "score": result.score}
                    item.metadata |= {f"filter_{name}": value for name, value in why.items()}
                    self._writer.write(item, rank)

    def __repr__(self) -> str:
        """The name in logs."""
        return f"llmjax: {len(self._steps)} steps"
