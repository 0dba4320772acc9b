"""Converts files of examples from one form to another."""

import collections
import json
from pathlib import Path

from llmjax.data import config, documents, examples, forms, records


def convert(
    source: config.ExampleSource,
    output: Path,
    kind: config.Kind,
    form: str,
    *,
    question: str = "",
    advance: documents.Advance = lambda _: None,
) -> tuple[int, collections.Counter[str]]:
    """Writes a source's examples in another form as JSON lines; the file appears when complete.

    Fields that examples of no kind have are kept, unless the form has a field of that name. Others
    are dropped even if this example does not use them: they could make it another example.

    Args:
        source: the examples.
        output: the file to write, `.jsonl`.
        kind: kind of the examples.
        form: a name of `forms.FORMS`.
        question: as for `forms.to_record`.
        advance: called with the number of bytes read since the last call.

    Returns:
        The number of examples written, and the numbers left out by reason.

    Raises:
        FileNotFoundError: the source has no files.
        ValueError: the form is unknown, or the output is not a new .jsonl file.
    """
    if form not in forms.FORMS:
        raise ValueError(f"form is {form!r}: use one of {', '.join(forms.FORMS)}.")
    files = documents.find_files(source, documents.RECORD_SUFFIXES)
    if output.suffix != ".jsonl" or any(f.path.resolve() == output.resolve() for f in files):
        raise ValueError(f"output is {str(output)!r}: name a .jsonl file that is not an input.")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    written, left_out = 0, collections.Counter[str]()
    try:
        with partial.open("w", encoding="utf-8") as stream:
            for item in (item for file in files for item in records.read(file, advance)):
                if isinstance(item, documents.Rejected):
                    left_out[item.reason] += item.count
                    continue
                try:
                    example = examples.parse(item.fields, kind, source)
                    record = forms.to_record(example, form, question)
                except examples.UnfitError as error:
                    left_out[str(error)] += 1
                    continue
                whole = {**examples.others(item.fields, source), **record}
                stream.write(json.dumps(whole, ensure_ascii=False, default=str) + "\n")
                written += 1
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return written, left_out
