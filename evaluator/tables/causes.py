"""What a store's error says, in words: the Delta library gives a tree of causes, the telling one at its end."""

import re

_COLOURS = re.compile(r"\x1b\[\d*m|↳")
_CODE = re.compile(r"<Code>(\w+)</Code>|\"(?:code|status)\": ?\"(\w+)\"|ErrorCode: ?(\w+)")
_STATUS = re.compile(r"^(\d{3}) [A-Z][A-Za-z ]+$", re.MULTILINE)
_METHOD = re.compile(r"Error performing (GET|HEAD|PUT|POST|DELETE)")
_FRAMES = re.compile(
    r"^(Kernel error -> |Kernel error: |External error: |Generic [A-Za-z0-9]+ error(?:: ?|$))+"
)

_BAD_KEYS = {
    "AuthenticationFailed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidAuthenticationInfo",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "UNAUTHENTICATED",
}
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted", "FilesystemNotFound"}
_OUT_OF_REACH = (
    "connection refused",
    "connection reset",
    "dns error",
    "timed out",
    "error sending request",
)


def cause(error: BaseException) -> str:
    """One line for a foreign error."""
    text = _COLOURS.sub("", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    code = next((group for match in _CODE.finditer(text) for group in match.groups() if group), None)
    status = next((line for line in lines if _STATUS.match(line)), None)
    if code in _BAD_KEYS or (status or "").startswith("401"):
        return f"the store does not accept the key ({code or status})"
    if code in _NO_BUCKET:
        return f"there is no such bucket or container ({code})"
    if "169.254.169.254" in text or "metadata.google.internal" in text:
        return "there is no key to the store (set the provider's usual environment variables, or `storage_options`)"
    if lacks_permission(error):
        method = _METHOD.search(text)
        doing = "read" if method is None or method[1] in ("GET", "HEAD") else "write"
        return f"no permission to {doing} there ({code or status or 'refused'})"
    if status is not None and status.startswith("5"):
        return f"the store answers {status}"
    if any(sign in text.lower() for sign in _OUT_OF_REACH):
        return f"the store does not answer ({lines[-1]})"
    first = _FRAMES.sub("", lines[0])
    return first or lines[-1]


def lacks_permission(error: BaseException) -> bool:
    """Whether trying again is of no use without another key, or another right of it."""
    text = str(error)
    return "lacked the necessary privileges" in text or "403 Forbidden" in text or "Permission denied" in text
