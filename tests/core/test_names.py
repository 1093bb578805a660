from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core.names import alias_key, canonical

PARTS = st.text("abAZ0./:-_ \n", max_size=12)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("phi", "phi:latest"),
        ("phi:latest", "phi:latest"),
        ("Phi:Latest", "phi:latest"),
        ("library/phi", "phi:latest"),
        ("registry.ollama.ai/library/phi", "phi:latest"),
        ("https://registry.ollama.ai/library/phi:3b", "phi:3b"),
        ("registry.ollama.ai/me/phi", "me/phi:latest"),
        ("me/phi:3b", "me/phi:3b"),
        ("hf.co/org/Repo:Q4_K_M", "hf.co/org/repo:q4_k_m"),
        ("localhost:5000/library/phi", "localhost:5000/library/phi:latest"),
        ("meta-llama/Llama-3-8B", "meta-llama/llama-3-8b:latest"),
        ("library/library/phi", "library/library/phi:latest"),
        ("a/b/c/d", "a/b/c/d:latest"),
        ("/models/phi.gguf", "/models/phi.gguf"),
        ("", ""),
        ("phi:", "phi:"),
        ("library/", "library/"),
        ("library//phi", "library//phi"),
        ("me/phi:", "me/phi:"),
        ("gpt-oss:120b-cloud", "gpt-oss:120b-cloud"),
    ],
)
def test_equal_spellings_have_one_canonical_name(model: str, expected: str) -> None:
    assert canonical(model) == expected


@given(PARTS | st.text(max_size=20))
def test_canonical_twice_is_canonical_once(model: str) -> None:
    assert canonical(canonical(model)) == canonical(model)


@given(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,10}", fullmatch=True), st.from_regex(r"[a-z0-9_.-]{1,8}", fullmatch=True))
def test_defaults_may_be_written_or_left_out(model: str, tag: str) -> None:
    full = f"{model}:{tag}"
    assert canonical(full) == canonical(full.upper()) == canonical(f"library/{full}") == full
    assert canonical(f"registry.ollama.ai/library/{full}") == full
    assert canonical(model) == canonical(f"{model}:latest")


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ("llama2:7b-q4_0", "llama2:7b"),
        ("llama2:7b", "llama2:7b"),
        ("llama2:7b-instruct-fp16", "llama2:7b"),
        ("mistral:7b-q5_k_m", "mistral:7b"),
        ("qwen2.5-coder:32b-base-q8_0", "qwen2.5-coder:32b"),
        ("llama3:latest", "llama3:latest"),
        ("a:b:c-d", "a:b:c"),
        ("hf.co/org/repo:Q4_K_M", "hf.co/org/repo:Q4_K_M"),
        ("llama2-7b-q4_0", ""),
        ("gpt-oss", ""),
        ("x:", ""),
        ("x:-q4", ""),
        ("x:7b-", ""),
        (":7b", ""),
        ("x:7b q4", ""),
    ],
)
def test_alias_keys_are_those_of_nfrx(model: str, key: str) -> None:
    assert alias_key(model) == key


@given(PARTS)
def test_an_alias_key_is_its_own_alias_key(model: str) -> None:
    key = alias_key(model)
    assert alias_key(key) == key
    assert model.startswith(key)
