from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core.containers import MAX_JOBS_PER_CONTAINER, jobs_of


def brief(found: list[dict[str, object]]) -> list[tuple[object, ...]]:
    return [(job["name"], job["cron_expression"], job["target_model"]) for job in found]


def test_labels_come_first() -> None:
    labels = {
        "fleetproxy.job.nightly-report.cron": "30 2 * * *",
        "fleetproxy.job.nightly-report.model": "llama3.2:3b",
        "fleetproxy.job.nightly-report.timezone": "Europe/Berlin",
        "fleetproxy.job.nightly-report.duration-ms": "90000",
        "fleetproxy.job.hourly.cron": "@hourly",
        "other": "x",
    }
    found = jobs_of("app", labels, ["CRON_SCHEDULE=0 0 * * *", "OLLAMA_MODEL=phi"])
    assert brief(found) == [
        ("app - hourly", "@hourly", "unknown"),
        ("app - nightly report", "30 2 * * *", "llama3.2:3b"),
    ]
    assert found[1]["timezone"] == "Europe/Berlin"
    assert found[1]["expected_duration_ms"] == 90_000
    assert found[1]["description"] == "Auto-discovered from app (fleetproxy.job.nightly-report.cron)"


def test_a_single_job_needs_no_key() -> None:
    found = jobs_of("app", {"fleetproxy.job.cron": "0 3 * * mon-fri", "fleetproxy.job.model": "phi"}, [])
    assert brief(found) == [("app", "0 3 * * mon-fri", "phi")]


def test_the_environment_is_read_as_the_fleet_manager_did() -> None:
    environment = [
        "PATH=/bin",
        "SYNC_CRON=*/5 * * * *",
        "OLLAMA_SUMMARY_MODEL=llama3:8b",
        "OLLAMA_MODEL_EMBED=nomic-embed-text",
        "OLLAMA_MODEL_URL=http://10.0.0.1",
    ]
    assert brief(jobs_of("app", {}, environment)) == [
        ("app - summary", "*/5 * * * *", "llama3:8b"),
        ("app - model embed", "*/5 * * * *", "nomic-embed-text"),
    ]
    assert brief(jobs_of("app", {}, ["SCHEDULE=@daily"])) == [("app", "@daily", "unknown")]
    assert jobs_of("app", {}, ["OLLAMA_MODEL=phi"]) == []


def test_what_is_no_schedule_is_no_job() -> None:
    for value in (
        "",
        "* * * *",
        "now",
        "$(reboot)",
        "0 0 30 2 *",
        "`id` * * * *",
        "* * * * * ; rm -rf /",
        "@reboot",
        "\x00",
    ):
        assert jobs_of("app", {"fleetproxy.job.cron": value}, [f"CRON={value}"]) == []


def test_secrets_are_no_model_names() -> None:
    secrets = ["sk-abcdefghijklmnopqrstuv", "hf_abcdefghijklmnop", "A" * 48, "https://user:pw@host/x", "x y", "{{7*7}}"]
    for secret in secrets:
        found = jobs_of("app", {}, ["CRON=0 0 * * *", f"OLLAMA_MODEL={secret}", f"OLLAMA_MODEL_TOKEN={secret}"])
        assert secret not in str(found)
        assert brief(found) == [("app", "0 0 * * *", "unknown")]


text = st.text(max_size=40)
hostile = st.one_of(text, st.sampled_from(["* * * * *", "@daily", "phi", "0 0 30 2 *"]))


@given(
    text,
    st.dictionaries(st.one_of(text, text.map(lambda t: f"fleetproxy.job.{t}.cron")), st.one_of(hostile, st.integers())),
    st.lists(st.one_of(text, st.tuples(st.sampled_from(["CRON", "OLLAMA_MODEL", "X"]), hostile).map("=".join))),
)
def test_no_container_breaks_the_reading(name: str, labels: dict[str, object], environment: list[str]) -> None:
    found = jobs_of(name, labels, environment)
    assert len(found) <= MAX_JOBS_PER_CONTAINER
    for job in found:
        assert job["source_identifier"] == name
        assert len(str(job["target_model"])) <= 256
