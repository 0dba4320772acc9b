"""Finds secrets in texts: API keys, tokens, private keys, passwords.

The formats are those that issuers publish and that repository scanners (gitleaks, trufflehog) look
for. Secrets without a format of their own are found by name and by how random they look.
"""

import collections
import math
import re
from collections.abc import Iterator

_FORMS = (
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}",  # Amazon Web Services, access key id
    r"gh[pousr]_[A-Za-z0-9]{36,251}",  # GitHub
    r"github_pat_[A-Za-z0-9_]{36,255}",
    r"glpat-[\w-]{20,}",  # GitLab
    r"xox[abeoprs]-[A-Za-z0-9-]{10,250}",  # Slack
    r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,99}",  # Stripe
    # OpenAI, Anthropic; addresses have words after such letters, in lower case.
    r"sk-(?=[\w-]*[A-Z])(?=[\w-]*\d)[A-Za-z0-9_-]{32,220}",
    r"hf_[A-Za-z]{34}",  # Hugging Face
    r"AIza[\w-]{35}",  # Google
    r"ya29\.[\w-]{20,}",
    r"npm_[A-Za-z0-9]{36}",
    r"pypi-AgEIcHlwaS5vcmc[\w-]{50,}",
    r"SG\.[\w-]{22}\.[\w-]{43}",  # SendGrid
    r"eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{16,}",  # a JSON Web Token
)
_FORM = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(_FORMS)})(?![A-Za-z0-9])")
# Every format contains one of these, which are cheap to look for.
_BEGINNINGS = (
    *("AKIA", "ASIA", "ABIA", "ACCA", "AIza", "ya29.", "npm_", "pypi-", "SG.", "eyJ", "hf_", "sk-"),
    *("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xox", "_live_", "_test_"),
)

# A private key in PEM (RFC 7468), also if its end is missing.
_PEM = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
    r"(?:(?:[^-]|-(?!----)){0,16384}-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
    r"|(?:\s*[A-Za-z0-9+/=]{16,76}(?!\S))*)"
)

_NAMED = re.compile(
    r"(?:api[_ -]?key|access[_ -]?key|secret(?:[_ -]?key)?|auth[_ -]?token|access[_ -]?token|"
    r"client[_ -]?secret|bearer|token|passw(?:or)?d|pwd)"
    r"[\"']?\s{0,3}(?::=|=>|[:= ])\s{0,3}[\"']?(?P<secret>[\w+/=.~-]{16,256})",
    re.IGNORECASE,
)
_NAMES = ("key", "secret", "token", "bearer", "passw", "pwd")
# Bits per character: English words have 2.5 to 3.3, random base64 of 20 characters has 4.
_RANDOM = 3.4


def find(text: str) -> Iterator[tuple[int, int]]:
    """Spans of secrets in a text, as (start, end), in no particular order."""
    if any(beginning in text for beginning in _BEGINNINGS):
        yield from (match.span() for match in _FORM.finditer(text))
    if "PRIVATE KEY" in text:
        yield from (match.span() for match in _PEM.finditer(text))
    lowered = text.lower()
    if any(name in lowered for name in _NAMES):
        for match in _NAMED.finditer(text):
            if _looks_random(match["secret"]):
                yield match.span("secret")


def _looks_random(secret: str) -> bool:
    """Whether letters and digits are mixed with more entropy than language has."""
    has_both = re.search(r"\d", secret) and re.search(r"[A-Za-z]", secret)
    return bool(has_both) and entropy(secret) >= _RANDOM


def entropy(text: str) -> float:
    """Entropy of the text's character distribution, in bits per character."""
    counts = collections.Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)
