"""What a store's error says: one line that tells what to mend."""

import pytest

from evaluator.tables.causes import cause, lacks_permission

FRAME = "Kernel error -> Generic S3 error\n          \x1b[31m↳\x1b[0m Error performing {method} http://store/x in 1 ms - Server returned non-2xx status code\n"


def told(status: str, code: str, method: str = "GET") -> OSError:
    return OSError(f"{FRAME.format(method=method)}  ↳ {status}\n  ↳ <Error><Code>{code}</Code></Error>\n")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            told("403 Forbidden", "InvalidAccessKeyId"),
            "the store does not accept the key (InvalidAccessKeyId)",
        ),
        (told("403 Forbidden", "ExpiredToken"), "the store does not accept the key (ExpiredToken)"),
        (told("401 Unauthorized", "Other"), "the store does not accept the key (Other)"),
        (told("403 Forbidden", "AccessDenied"), "no permission to read there (AccessDenied)"),
        (told("403 Forbidden", "AccessDenied", "PUT"), "no permission to write there (AccessDenied)"),
        (
            told("403 Forbidden", "AuthorizationPermissionMismatch", "PUT"),
            "no permission to write there (AuthorizationPermissionMismatch)",
        ),
        (told("404 Not Found", "NoSuchBucket"), "there is no such bucket or container (NoSuchBucket)"),
        (
            told("404 Not Found", "ContainerNotFound"),
            "there is no such bucket or container (ContainerNotFound)",
        ),
        (told("503 Service Unavailable", "SlowDown"), "the store answers 503 Service Unavailable"),
        (
            OSError("Generic S3 error\n ↳ error sending request\n  ↳ Connection refused (os error 111)"),
            "the store does not answer (Connection refused (os error 111))",
        ),
        (
            OSError("Generic S3 error\n ↳ Error performing PUT http://169.254.169.254/latest/api/token"),
            "there is no key to the store (set the provider's usual environment variables, or `storage_options`)",
        ),
        (
            OSError("Kernel error: No space left on device (os error 28)"),
            "No space left on device (os error 28)",
        ),
        (ValueError("Schema mismatch\nmore"), "Schema mismatch"),
        (OSError(), "OSError"),
    ],
)
def test_a_store_s_error_is_told_in_a_line(error: Exception, words: str) -> None:
    assert cause(error) == words


def test_only_a_lack_of_permission_is_one() -> None:
    assert lacks_permission(told("403 Forbidden", "AccessDenied"))
    assert lacks_permission(OSError("Permission denied (os error 13)"))
    assert not lacks_permission(told("503 Service Unavailable", "SlowDown"))
