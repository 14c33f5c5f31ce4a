"""What must not leave: personal data and secrets, found in linear time and replaced by placeholders."""

import hashlib
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Protocol

import re2

Validate = Callable[[str], int]
"""How many bytes of a match are what was looked for; 0 where it only looked like it."""


TEXTS_REMEMBERED = 64
"""What was found in the last few texts: several judges read one trace."""


class OwnPattern(Protocol):
    """A pattern of the user's own (RE2) and the word that stands in its place."""

    @property
    def pattern(self) -> str: ...
    @property
    def as_(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something found: its bytes in the UTF-8 text, what it is, and its value as it is compared."""

    start: int
    end: int
    label: str
    value: str


@cache
def compile_pattern(pattern: str) -> "re2._Regexp":
    """An RE2 pattern. Raises ValueError with RE2's own sentence; RE2 has no lookaround and no backreference."""
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        said = error.args[0]
        raise ValueError(said.decode(errors="replace") if isinstance(said, bytes) else str(said)) from error


class Redactor:
    """Finds and replaces what the rules name. `rules` are the names of kinds, or patterns of one's own."""

    def __init__(self, rules: Sequence[str | OwnPattern]) -> None:
        """Raises ValueError: an unknown kind, or a pattern that RE2 does not take."""
        self._shapes: list[_Shape] = []
        for rule in rules:
            if not isinstance(rule, str):
                self._shapes.append(_Shape(label=rule.as_, patterns=(rule.pattern,)))
            elif rule in KINDS:
                self._shapes.extend(KINDS[rule])
            else:
                raise ValueError(f'unknown kind "{rule}" (there are: {", ".join(KINDS)})')
        self._compiled = [[compile_pattern(pattern) for pattern in shape.patterns] for shape in self._shapes]
        self.find_in = lru_cache(maxsize=TEXTS_REMEMBERED)(self._find_in)
        """As `find`, in UTF-8."""

    @property
    def definition(self) -> list[dict[str, str]]:
        """The rules in JSON values, with a hash of what each looks for."""
        return [
            {
                "label": shape.label,
                "patterns": hashlib.sha256("\n".join(shape.patterns).encode()).hexdigest()[:12],
            }
            for shape in self._shapes
        ]

    def redact(self, text: str) -> str:
        """The text with placeholders, numbered within it: the same address twice is the same placeholder."""
        return self.begin().redact(text)

    def begin(self) -> "Redaction":
        """A numbering that several texts share, such as all those of one trace."""
        return Redaction(redactor=self)

    def find(self, text: str) -> list[Finding]:
        """What there is in a text, in its order; where two overlap, the earlier one takes in the other."""
        return list(self.find_in(text.encode("utf-8", "surrogatepass")))

    def _find_in(self, content: bytes) -> Sequence[Finding]:
        found = [
            finding
            for shape, patterns in zip(self._shapes, self._compiled, strict=True)
            for pattern in patterns
            for finding in shape.find(pattern, content)
        ]
        merged: list[Finding] = []
        for finding in sorted(found, key=lambda finding: (finding.start, -finding.end)):
            if not merged or finding.start >= merged[-1].end:
                merged.append(finding)
            elif finding.end > merged[-1].end:
                above = merged.pop()
                merged.append(
                    Finding(start=above.start, end=finding.end, label=above.label, value=above.value)
                )
        return merged


@dataclass(frozen=True, slots=True, kw_only=True)
class Redaction:
    """Placeholders that mean the same in all texts that pass through it."""

    redactor: Redactor
    _numbers: dict[tuple[str, str], str] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)

    def redact(self, text: str) -> str:
        """The text with a placeholder such as `[EMAIL_1]` in the place of each finding."""
        content = text.encode("utf-8", "surrogatepass")
        parts, last = [], 0
        for finding in self.redactor.find_in(content):
            parts += [content[last : finding.start], self._placeholder(finding).encode()]
            last = finding.end
        return b"".join([*parts, content[last:]]).decode("utf-8", "surrogatepass") if parts else text

    def _placeholder(self, finding: Finding) -> str:
        key = (finding.label, finding.value)
        if key not in self._numbers:
            self._counts[finding.label] = self._counts.get(finding.label, 0) + 1
            self._numbers[key] = f"[{finding.label}_{self._counts[finding.label]}]"
        return self._numbers[key]


def _whole(match: str) -> int:
    return len(match.encode("utf-8", "surrogatepass"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """A kind of thing: patterns that find what looks like it (group 1, if there is one, is the thing)."""

    label: str
    patterns: tuple[str, ...]
    validate: Validate = _whole
    compared: Callable[[str], str] = str

    def find(self, pattern: "re2._Regexp", content: bytes) -> Iterator[Finding]:
        position = 0
        while (match := pattern.search(content, position)) is not None:
            start, end = match.span(1) if match.re.groups else match.span()
            text = content[start:end].decode("utf-8", "surrogatepass")
            length = self.validate(text) if end > start else 0
            if length:
                end = start + length
                value = self.compared(content[start:end].decode("utf-8", "surrogatepass"))
                yield Finding(start=start, end=end, label=self.label, value=value)
            # What only looked like it may hold the thing further in: every pattern's match is short.
            position = max(end, match.start() + 1) if length else match.start() + 1
            if position > len(content):
                return


def _digits(text: str) -> str:
    return "".join(character for character in text if character.isdigit())


def _letters_and_digits(text: str) -> str:
    return "".join(character for character in text if character.isalnum())


def _card(text: str) -> int:
    """A payment card: an issuer's prefix and length, and Luhn's checksum (ISO/IEC 7812-1)."""
    digits = _digits(text)
    length, two, four = len(digits), int(digits[:2]), int(digits[:4])
    issued = (
        (digits[0] == "4" and length in (13, 16, 19))
        or ((51 <= two <= 55 or 2221 <= four <= 2720) and length == 16)
        or (two in (34, 37) and length == 15)
        or (two in (30, 36, 38, 39) and length == 14)
        or ((two in (35, 62, 64, 65) or four == 6011) and 16 <= length <= 19)
    )
    doubled = (int(digit) * (1 + index % 2) for index, digit in enumerate(reversed(digits)))
    luhn = sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0
    return len(text) if issued and luhn and len(set(digits)) > 1 else 0


def _phone(text: str) -> int:
    """An international number of 9 to 15 digits (ITU-T E.164), or 10 to 12 digits as they are written at home."""
    fewest, most = (9, 15) if text.startswith("+") else (10, 12)
    return len(text) if fewest <= len(_digits(text)) <= most else 0


def _address(text: str) -> int:
    """An IP address; neither a version number of more parts nor a name in a program, such as `a::b`."""
    try:
        address = ipaddress.ip_address(text.rstrip(".:"))
    except ValueError:
        return 0
    groups = [group for group in text.split(":") if group]
    if address.is_loopback or address.is_unspecified or text.endswith(".0.0.0"):
        return 0  # nobody's address: this machine, a network, or a browser's version
    if address.version == 6 and (len(groups) < 2 or not any(character.isdigit() for character in text)):
        return 0
    return len(text.rstrip(".:"))


def _iban(text: str) -> int:
    """An account number of its country's length whose remainder by 97 is 1 (ISO 13616); what follows is not part."""
    length = _IBAN_LENGTHS.get(text[:2].upper(), 0)
    number = _letters_and_digits(text)[:length]
    if not length or len(number) < length:
        return 0
    turned = "".join(str(int(character, 36)) for character in number[4:] + number[:4])
    if int(turned) % 97 != 1:
        return 0
    ends = [index + 1 for index, character in enumerate(text) if character.isalnum()]
    return ends[length - 1]


def _assigned(text: str) -> int:
    """The value of a password or key in a text: one with a digit or in mixed case, for `password: required` is none.

    What names the value instead of being it (a variable, a placeholder, a masked one) is none either.
    """
    value = text.rstrip(".,:")
    if not value or value.startswith(_NAMES_A_VALUE) or "..." in value or set(value) <= set("xX*._-"):
        return 0
    return len(value) if _MIXED.search(value) else 0


_NAMES_A_VALUE = ("$", "%", "*", "?", ".", "=", "os.", "env.", "process.")
_MIXED = re.compile("[0-9]|[a-z][A-Z]|[a-z][^A-Za-z.][A-Z]")
_IBANS = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 "
    "FI18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 "
    "LI21 LT20 LU20 LV21 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 "
    "SC31 SE24 SI19 SK24 SM27 ST25 SV28 TN24 TR26 UA29 VA22 VG24 XK20"
)
"""The countries of the IBAN registry, and how long their numbers are."""
_IBAN_LENGTHS = {entry[:2]: int(entry[2:]) for entry in _IBANS.split()}
_TOKENS = "|".join(
    (
        r"sk-[A-Za-z0-9_-]{20,}",  # OpenAI, Anthropic, OpenRouter, DeepSeek
        r"(?:gsk_|xai-|pplx-|r8_|hf_|nvapi-|co_)[A-Za-z0-9_-]{30,}",  # Groq, xAI, Perplexity, Replicate, Hugging Face, NVIDIA
        r"gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,}|gl(?:pat|dt|rt|ptt)-[A-Za-z0-9_-]{20,}",
        r"xox[abceoprs]-[A-Za-z0-9-]{10,}|xapp-\d-[A-Za-z0-9-]{10,}",  # Slack
        r"https://hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/_-]{20,}",
        r"(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}",  # AWS
        r"AIza[0-9A-Za-z_-]{35}|GOCSPX-[0-9A-Za-z_-]{20,}|ya29\.[0-9A-Za-z_-]{20,}|1//0[0-9A-Za-z_-]{30,}",  # Google
        r"[A-Za-z0-9_~.]{3}8Q~[A-Za-z0-9_~.-]{31,34}",  # Microsoft Entra ID, a client's secret
        r"dapi[0-9a-f]{32}(?:-\d)?|dose[0-9a-f]{32}",  # Databricks
        r"[rs]k_(?:live|test)_[A-Za-z0-9]{16,}|whsec_[A-Za-z0-9]{24,}",  # Stripe
        r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}|key-[0-9a-f]{32}",  # SendGrid, Mailgun
        r"npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,}|dckr_pat_[A-Za-z0-9_-]{20,}",
        r"(?:dop|doo|dor)_v1_[0-9a-f]{64}|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}|sq0[a-z]{3}-[A-Za-z0-9_-]{22,}",
        r"hv[sbr]\.[A-Za-z0-9_-]{24,}|ATATT3[A-Za-z0-9_=-]{50,}|lin_api_[A-Za-z0-9]{32,}|ntn_[A-Za-z0-9]{40,}",
        r"\d{8,10}:AA[A-Za-z0-9_-]{33}|[MNO][A-Za-z0-9_-]{23,25}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,38}",  # Telegram, Discord
        r"SK[0-9a-f]{32}|[0-9a-f]{32}-us\d{1,2}|AKC[A-Za-z0-9]{40,}",  # Twilio, Mailchimp, Artifactory
        r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",  # JSON Web Token
    )
)
_NAMED = (
    r"pass(?:word|wd|phrase)?|pwd|secret|token|api[ _-]?key|access[_-]?key|account[_-]?key|private[_-]?key"
    r"|client[_-]?secret|subscription[_-]?key|shared[_-]?access[_-]?(?:key|signature)|credentials?|[?&;]sig"
)
_LINE = r"(?:\s|\\[nrt])"
"""The end of a line, also as JSON writes it."""
_PEM = (
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
    rf"(?:{_LINE}|(?:Proc-Type|DEK-Info|Version|Comment): ?[^\n\\]{{0,100}}|[A-Za-z0-9+/=]{{16,}}|=[A-Za-z0-9+/]{{4}})*"
    rf"[A-Za-z0-9+/=]{{0,76}}{_LINE}{{0,8}}"
    r"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)?"
)
KINDS: Mapping[str, tuple[_Shape, ...]] = {
    "email": (
        _Shape(
            label="EMAIL",
            patterns=(r"[\pL\pN._%+-]+(?:'[\pL\pN._%+-]+)?(?:@|%40|＠)(?:[\pL\pN-]+\.)+\pL{2,24}",),
            compared=lambda text: text.lower().replace("%40", "@").replace("＠", "@"),
        ),
    ),
    "phone": (
        _Shape(
            label="PHONE",
            patterns=(
                r"(?:^|[^\w+])(\+\d{1,3}[ ./-]?(?:\(\d{1,4}\)[ ./-]?)?\d(?:[ ./-]?\d){5,13})\b",
                r"\b(\d{3}-\d{3}-\d{4})\b(?:[^-]|$)",
                r"\b(\d{3}\.\d{3}\.\d{4})\b",
                r"(?:^|[^\w(])(\(\d{2,5}\) ?\d{3,4}[ .-]?\d{3,5})\b",
                # Not behind another group of digits: then it is a part of something longer.
                r"(?:^|[^\w.,:/+ -]|[^\d] )(0\d{1,4}[ /-]\d{3,8}(?:[ -]\d{2,5}){0,3})\b",
                r"(?:^|[^\w.,:/+ -]|[^\d] )(0\d(?:[ .]\d{2}){4})\b",
                r"(?i)\btel:(\+?\d(?:[().-]?\d){6,14})\b",
            ),
            validate=_phone,
            compared=_digits,
        ),
    ),
    "credit_card": (
        _Shape(
            label="CREDIT_CARD",
            patterns=(
                r"\b(?:\d{13,19}|\d{4}[ -]\d{4}[ -]\d{4}[ -]\d{4}(?:[ -]\d{3})?|\d{4}[ -]\d{6}[ -]\d{4,5})\b",
            ),
            validate=_card,
            compared=_digits,
        ),
    ),
    "ip_address": (
        _Shape(
            label="IP_ADDRESS",
            patterns=(
                r"(?:^|[^\w.])(\d{1,3}(?:\.\d{1,3}){3,7})\b",
                r"(?:^|[^\w:])([0-9A-Fa-f]{0,4}(?::{1,2}[0-9A-Fa-f]{1,4}){1,7}(?:\.\d{1,3}){0,3})\b",
            ),
            validate=_address,
            compared=str.lower,
        ),
    ),
    "iban": (
        _Shape(
            label="IBAN",
            patterns=(r"(?i)\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,3})?\b",),
            validate=_iban,
            compared=lambda text: _letters_and_digits(text).upper(),
        ),
    ),
    "secret": (
        _Shape(
            label="SECRET",
            patterns=(
                rf"\b(?:{_TOKENS})",
                _PEM,
                r"(?i)\bbearer\s{1,4}([a-z0-9._~+/-]{20,}=*)",
                r"(?i)authorization[\"']?\s{0,4}[:=]\s{0,4}[\"']?basic\s{1,4}([a-z0-9+/_-]{8,}=*)",
                r"(?i)\b[a-z][a-z0-9+.-]+://[^\s/:@\"']*:([^\s/@\"']+)@",
            ),
        ),
        _Shape(
            label="SECRET",
            validate=_assigned,
            patterns=(
                rf"""(?i)(?:{_NAMED})\\?["']?\s{{0,4}}(?::|=>?)\s{{0,4}}\\?["'`]?([a-z0-9!#$%*+./:?@^_|~=-]{{6,500}})""",
                r"""(?i)(?:pass(?:word|wd|phrase)?|pwd) is:? {1,2}["'`]?([a-z0-9!#$%*+/:?@^_|~=-]{6,100})""",
                r"(?i)\s(?:--password|--token|--api-key)[ =]([a-z0-9!#$%*+./:?@^_|~=-]{6,200})",
            ),
        ),
    ),
}
"""The kinds by their name in the configuration."""
