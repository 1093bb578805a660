"use strict";
// Shows the envelope of /api/state/stream. Each element's HTML comes from /api/state/view/{id}.html, without script;
// what is in it is filled in here, always as text:
//   data-text="server.version"     the value at that path
//   data-status="server.state"     the same, and the attribute says it too (for colour)
//   data-each="workers"            a <template>: repeated for every entry; paths inside start at the entry
//   data-none="workers"            shown while that list is empty
//   data-as="duration"             how a value is written: duration (s), bytes, ago (an instant), list, yes

const STORED = "fleetproxy.key", STALE_MS = 15000, AGAIN_MS = 1000;
const elements = document.getElementById("elements");
const connection = document.getElementById("connection");
const sort = document.getElementById("sort");
const form = document.getElementById("ask");
const views = new Map();
let latest = null;
let waiting = null;

const SORTS = {
  oldest: (a, b) => text(a.connected_at).localeCompare(text(b.connected_at)),
  youngest: (a, b) => text(b.connected_at).localeCompare(text(a.connected_at)),
  busyness: (a, b) => b.inflight - a.inflight,
  name: (a, b) => text(a.name).localeCompare(text(b.name)),
  completed: (a, b) => b.processed_total - a.processed_total,
  errors: (a, b) => b.failures_total - a.failures_total,
};

const WRITTEN = {
  duration: (value) => {
    const s = Math.floor(value), d = Math.floor(s / 86400), h = Math.floor(s / 3600) % 24, m = Math.floor(s / 60) % 60;
    return d ? `${d} d ${h} h` : h ? `${h} h ${m} min` : m ? `${m} min ${s % 60} s` : `${s} s`;
  },
  bytes: (value) => value >= 1 << 30 ? `${(value / (1 << 30)).toFixed(1)} GiB` : `${Math.round(value / (1 << 20))} MiB`,
  ago: (value) => {
    const s = Math.max(0, Math.round((Date.now() - Date.parse(value)) / 1000));
    return Number.isFinite(s) ? `${WRITTEN.duration(s)} ago` : "";
  },
  list: (value) => Array.isArray(value) ? value.join(", ") : "",
  yes: (value) => value ? "yes" : "no",
};

function text(value) {
  return value === null || value === undefined ? "" : String(value);
}

function at(state, path) {
  return path.split(".").reduce((found, part) => found !== null && typeof found === "object" ? found[part] : undefined, state);
}

function written(node, path, state) {
  const value = at(state, path);
  const how = WRITTEN[node.dataset.as];
  return how && value !== null && value !== undefined ? how(value) : text(value);
}

function put(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

function fill(root, state) {
  for (const node of root.querySelectorAll("[data-text]")) {
    if (!node.closest("[data-row]") || root.matches?.("[data-row]")) put(node, written(node, node.dataset.text, state));
  }
  for (const node of root.querySelectorAll("[data-path]")) {
    if (node.closest("[data-row]") && !root.matches?.("[data-row]")) continue;
    const value = written(node, node.dataset.path, state);
    node.dataset.status = value;
    put(node, value);
  }
}

function rows(template, entries) {
  const parent = template.parentNode;
  const there = [...parent.children].filter((child) => child !== template);
  entries.forEach((entry, number) => {
    let row = there[number];
    if (!row) {
      row = template.content.firstElementChild.cloneNode(true);
      row.dataset.row = "";
      parent.append(row);
    }
    fill(row, entry);
    row.toggleAttribute("data-stale", Date.now() - Date.parse(entry.last_heartbeat ?? "") > STALE_MS);
  });
  there.slice(entries.length).forEach((row) => row.remove());
}

function show(section, state) {
  fill(section, state);
  for (const template of section.querySelectorAll("template[data-each]")) {
    const entries = at(state, template.dataset.each);
    const list = Array.isArray(entries) ? [...entries] : [];
    if (template.hasAttribute("data-sorted")) list.sort(SORTS[sort.value]);
    rows(template, list);
    template.closest("table")?.toggleAttribute("hidden", list.length === 0);  // heads of nothing
  }
  for (const node of section.querySelectorAll("[data-none]")) {
    const entries = at(state, node.dataset.none);
    node.hidden = Array.isArray(entries) && entries.length > 0;
  }
}

function headers() {
  const key = sessionStorage.getItem(STORED);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function ask(path, options = {}) {
  for (;;) {
    const answer = await fetch(path, { ...options, headers: headers(), cache: "no-store" });
    if (answer.status !== 401 && answer.status !== 403) return answer;
    await keyFromPerson(sessionStorage.getItem(STORED) !== null);
  }
}

function keyFromPerson(refused) {
  waiting ??= new Promise((resolve) => {
    document.getElementById("refused").hidden = !refused;
    put(connection, "");
    form.hidden = false;
    document.getElementById("key").focus();
    form.onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(STORED, document.getElementById("key").value.trim());
      document.getElementById("key").value = "";
      form.hidden = true;
      waiting = null;
      resolve();
    };
  });
  return waiting;
}

async function view(id) {
  const section = document.createElement("section");
  section.dataset.pluginId = id;
  elements.append(section);
  const answer = await ask(`/api/state/view/${encodeURIComponent(id)}.html`);
  if (answer.status !== 200) {
    section.remove();
    return;
  }
  const parsed = new DOMParser().parseFromString(await answer.text(), "text/html");
  parsed.querySelectorAll("script").forEach((node) => node.remove());
  for (const node of parsed.querySelectorAll("[data-status]")) {
    node.dataset.path = node.dataset.status;  // where the value is; the attribute itself will hold the value
    node.dataset.status = "";
  }
  section.replaceChildren(...[...parsed.body.childNodes].map((node) => document.adoptNode(node)));
  for (const template of section.querySelectorAll("template")) {
    for (const node of template.content.querySelectorAll("[data-status]")) {
      node.dataset.path = node.dataset.status;
      node.dataset.status = "";
    }
  }
  if (latest) show(section, latest.plugins[id]);
}

function render(envelope) {
  latest = envelope;
  for (const id of Object.keys(envelope.plugins)) {
    if (!views.has(id)) views.set(id, view(id));
  }
  for (const section of elements.children) {
    const state = envelope.plugins[section.dataset.pluginId];
    section.hidden = state === undefined;
    if (state !== undefined && section.firstChild) show(section, state);
  }
}

async function watch() {
  const answer = await ask("/api/state/stream");
  if (!answer.ok || !answer.body) throw new Error(`status ${answer.status}`);
  put(connection, "live");
  connection.removeAttribute("data-lost");
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    const last = events.filter((event) => event.startsWith("data: ")).pop();
    if (last) render(JSON.parse(last.slice(6)));
  }
}

async function forever() {
  for (;;) {
    try {
      await watch();
    } catch {
      // said below
    }
    put(connection, "connection lost; trying again");
    connection.setAttribute("data-lost", "");
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

sort.addEventListener("change", () => latest && render(latest));
forever();
