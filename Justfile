# What one does with this project, in words people guess. CI (.ci/run) calls the same words.

python := if path_exists(".venv/bin/python") == "true" { ".venv/bin/python" } else { "python3" }
bin := if path_exists(".venv/bin/ruff") == "true" { ".venv/bin/" } else { "" }

# This list.
[private]
default:
    @just --list --unsorted

# Make .venv with the project (editable) and everything needed to work on it.
setup:
    .ci/setup

# Run it here, with text logs, on port 11434; words after it go to `fleetproxy serve`.
dev *words:
    {{python}} -m fleetproxy serve --log-format text --data-dir .venv/data {{words}}

# A made-up fleet with traffic, to look around.
demo *words:
    {{python}} -m fleetproxy demo {{words}}

# Build the dashboard into the package (needs Node 20.19 or newer).
ui:
    {{python}} hatch_build.py

# The dashboard with hot reload on port 5173; its data comes from a running fleetproxy ($FLEETPROXY_URL, port 11434).
ui-dev:
    cd dashboard && ([ -d node_modules ] || npm ci --ignore-scripts) && npm run dev

# Pictures of every page of the dashboard, in docs/screenshots (needs Chromium).
screenshots *words:
    {{python}} docs/screenshots.py {{words}}

# Types and accessibility of the dashboard's components.
ui-check:
    cd dashboard && ([ -d node_modules ] || npm ci --ignore-scripts) && npm run check

# Every test; words after it go to pytest.
test *words:
    {{python}} -m pytest -n 3 --dist loadfile --durations 30 {{words}}

# The tests without real processes: seconds.
test-fast *words:
    {{python}} -m pytest -n 2 --ignore tests/e2e --ignore tests/serve --ignore tests/bench --ignore tests/cli {{words}}

# Style and the usual mistakes.
lint:
    {{bin}}ruff check .
    {{bin}}ruff format --check .

# Mend what a tool can mend.
fmt:
    {{bin}}ruff check --fix .
    {{bin}}ruff format .

# Types, strictly.
types:
    {{bin}}mypy

# Who may import whom.
arch:
    {{bin}}lint-imports

# Real processes, real sockets, real clients.
e2e *words:
    {{python}} -m pytest tests/e2e {{words}}

# The fault catalogue, each case a few times.
faults *words:
    {{python}} -m pytest tests/e2e tests/serve -k "fault or supervisor" {{words}}

# The fault catalogue as often as it asks.
faults-full *words:
    FLEETPROXY_FAULT_ROUNDS=full HYPOTHESIS_PROFILE=full {{python}} -m pytest tests/e2e tests/serve -k "fault or supervisor" --timeout 600 -o faulthandler_timeout=0 {{words}}

# CPU per request and per chunk next to nginx.
bench *words:
    {{python}} -m bench {{words}}

# How quickly a history of ten million requests answers, and how fast rows are loaded.
bench-analytics *words:
    {{python}} -m bench.analytics {{words}}

# Load tests (loadtests/README.md) on a fake fleet at two proxy processes; words after it go to them and to Locust.
# Everything once, 30 s.
load-smoke *words:
    {{python}} -m loadtests smoke {{words}}

# As many users to the end, 2 minutes.
load-steady *words:
    {{python}} -m loadtests steady {{words}}

# Four times as many users at once, twice, 2 minutes.
load-spike *words:
    {{python}} -m loadtests spike {{words}}

# Slow waves of users, an hour.
load-soak *words:
    {{python}} -m loadtests soak {{words}}

# Write the reference pages that are made from the code, and llms.txt.
docs:
    {{python}} docs/generate.py

# The site of all pages, in dist/site; needs no network.
docs-site:
    {{python}} docs/site.py

# The Grafana dashboards out of deploy/grafana/make.py, and promtool over the Prometheus rules.
deploy:
    {{python}} deploy/grafana/make.py
    cd deploy/prometheus && promtool check rules rules/*.yml && promtool test rules tests.yml

# The container images; without an engine it says what to run elsewhere.
image tag="latest":
    docker/image {{tag}}

# A wheel with the dashboard in it, and its checksum, in dist/.
release:
    {{python}} -m pip wheel --quiet --no-deps --wheel-dir dist .
    cd dist && sha256sum *.whl > SHA256SUMS && cat SHA256SUMS

# What CI runs, from a clean checkout.
ci:
    .ci/run
