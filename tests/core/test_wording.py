from __future__ import annotations

from typing import get_args

from fleetproxy.core import selection, wording
from fleetproxy.core.explain import Verdict
from fleetproxy.core.record import Outcome
from fleetproxy.errors import ConnectFailed


def test_every_word_has_a_sentence() -> None:
    reasons = {value for name, value in vars(selection).items() if name.isupper() and isinstance(value, str)}
    assert wording.REASONS.keys() == reasons
    assert wording.VERDICTS.keys() == set(get_args(Verdict))
    assert wording.OUTCOMES.keys() == set(get_args(Outcome))
    for words in (*wording.REASONS.values(), *wording.VERDICTS.values(), *wording.OUTCOMES.values()):
        assert words.endswith("."), words


def test_errors_are_told_as_their_classes_tell_them() -> None:
    assert wording.error_words("connect_failed") == ConnectFailed.__doc__
    assert wording.error_words("bad_request") == "The request cannot be served as it stands."
    assert (wording.error_words(None), wording.error_words("http_418")) == ("", "http_418")
    assert (wording.reason_words(None), wording.reason_words("new_word")) == ("", "new_word")
