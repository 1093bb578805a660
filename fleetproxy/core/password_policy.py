"""What a password must be. The text is normalised first, so that one password typed on two keyboards is one."""

from __future__ import annotations

import unicodedata

MIN_CHARACTERS = 10
MAX_BYTES = 1024
MAX_USERNAME_CHARACTERS = 64

#: Passwords of ten characters and more that lists of leaked ones begin with.
COMMON = frozenset(
    """
    1234567890 0123456789 9876543210 0987654321 12345678910 123456789a a123456789 1234567891 q1w2e3r4t5 1q2w3e4r5t
    1qaz2wsx3edc qwertyuiop qwerty12345 qwerty123456 asdfghjkl1 1234qwerasdf zaq12wsxcde3 password12 password123
    password1234 password12345 passw0rd123 p@ssword123 p@ssw0rd123 mypassword letmein123 letmein1234 welcome123
    welcome1234 admin12345 admin123456 administrator changeme123 changemenow iloveyou123 sunshine123 princess123
    football123 baseball123 superman123 dragon12345 monkey12345 qazwsxedcrfv abcdefghij abcdefghijk abc1234567
    aaaaaaaaaa 1111111111 0000000000 secret12345 correcthorsebatterystaple
    """.split()  # noqa: SIM905
)


def normalise(password: str) -> str:
    return unicodedata.normalize("NFKC", password)


def password_fault(password: str, username: str) -> str | None:
    """Why this password will not do, as a sentence; None when it will."""
    if len(password) > MAX_BYTES or len(password.encode("utf-8", "replace")) > MAX_BYTES:
        return f"password may have at most {MAX_BYTES} bytes"
    plain = normalise(password)
    if len(plain) < MIN_CHARACTERS:
        return f"password must be at least {MIN_CHARACTERS} characters"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in plain):
        return "password must not contain control characters"
    folded = plain.casefold()
    if folded in (username.strip().casefold(), username.strip().casefold()[::-1]):
        return "password must not be the username"
    if folded in COMMON or len(set(folded)) <= 2:
        return "password is one of those that are guessed first"
    return None


def username_fault(username: str) -> str | None:
    """Why this name will not do; None when it will."""
    name = username.strip()
    if not name:
        return "username required"
    if len(name) > MAX_USERNAME_CHARACTERS:
        return f"username may have at most {MAX_USERNAME_CHARACTERS} characters"
    if any(unicodedata.category(character)[0] == "C" for character in name):
        return "username must not contain control characters"
    return None
