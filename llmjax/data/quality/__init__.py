"""Text quality as numbers: language quality, information density, duplication and diversity.

In short:

    found = quality.measure(documents)  # a Quality; or language_quality, information_density, ...
    report = quality.report(before, after, rejected, steps=("language", "gopher_quality"))
    quality.write(report, directory)  # quality.html, one page, and quality.json

`Measurement` and `Survey` count documents one by one in bounded memory, and merging parts of a
corpus gives the numbers of the whole.
"""

from llmjax.data.quality.copies import Duplication, DuplicationSizes
from llmjax.data.quality.density import InformationDensity
from llmjax.data.quality.language import LanguageQuality, Scorer
from llmjax.data.quality.measuring import (
    FAMILIES,
    Amount,
    Measurement,
    Quality,
    QualityConfig,
    diversity,
    duplication,
    information_density,
    language_quality,
    measure,
)
from llmjax.data.quality.metrics import Metric
from llmjax.data.quality.survey import PAGE_FILE, REPORT_FILE, Report, Survey, report, write
from llmjax.data.quality.topics import Embed, Topics
from llmjax.data.quality.variety import Diversity, DiversitySizes, Growth

__all__ = [
    "FAMILIES",
    "PAGE_FILE",
    "REPORT_FILE",
    "Amount",
    "Diversity",
    "DiversitySizes",
    "Duplication",
    "DuplicationSizes",
    "Embed",
    "Growth",
    "InformationDensity",
    "LanguageQuality",
    "Measurement",
    "Metric",
    "Quality",
    "QualityConfig",
    "Report",
    "Scorer",
    "Survey",
    "Topics",
    "diversity",
    "duplication",
    "information_density",
    "language_quality",
    "measure",
    "report",
    "write",
]
