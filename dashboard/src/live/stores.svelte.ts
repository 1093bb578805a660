/** What the stream has said so far: the fleet, the models, the tail of requests, what has changed, pulls under way. */

import type {
  Change,
  ChangesFrame,
  FleetFrame,
  LiveModel,
  LiveRelay,
  LiveServer,
  LiveWorker,
  ModelsFrame,
  Pull,
  RequestRow,
  RequestsFrame,
  Totals,
  Transfers,
} from './shapes'

/** The newest of the tail that are kept; older ones are in the history. */
export const TAIL_ROWS = 1000
export const CHANGES = 200
/** Rates are sampled this often, this many times: the small lines beside them. */
export const SAMPLE_MS = 2000
export const SAMPLES = 60

let servers = $state.raw<readonly LiveServer[]>([])
let workers = $state.raw<readonly LiveWorker[]>([])
let relays = $state.raw<readonly LiveRelay[]>([])
let totals = $state.raw<Totals | null>(null)
let transfers = $state.raw<Transfers | null>(null)
let models = $state.raw<readonly LiveModel[]>([])
let rows = $state.raw<readonly RequestRow[]>([])
let skipped = $state(0)
let changes = $state.raw<readonly Change[]>([])
let pulls = $state.raw<readonly Pull[]>([])
let rates = $state.raw<ReadonlyMap<number | 'all', readonly number[]>>(new Map())

/** Every server, worker and relay there is now, and their sums. `totals` is null until the first frame. */
export const fleet = {
  get servers() {
    return servers
  },
  get workers() {
    return workers
  },
  get relays() {
    return relays
  },
  get totals() {
    return totals
  },
  get transfers() {
    return transfers
  },
  get models() {
    return models
  },
  get pulls() {
    return pulls
  },
  /** Answer tokens per second of the last two minutes, oldest first; of one backend or of all. */
  rates(of: number | 'all'): readonly number[] {
    return rates.get(of) ?? []
  },
  /** The name of a server or worker by its number. */
  name(id: number | null): string | null {
    if (id === null) return null
    return servers.find((one) => one.id === id)?.name ?? workers.find((one) => one.id === id)?.name ?? null
  },
}

/** Requests that have ended, newest first, and how many the stream had to leave out. */
export const tail = {
  get rows() {
    return rows
  },
  get skipped() {
    return skipped
  },
}

/** What has happened to the fleet, newest first. */
export const recent = {
  get changes() {
    return changes
  },
}

type Heard = (row: RequestRow) => void
const listeners = new Set<Heard>()

/** Be told of each request as it ends. Answers how to stop. */
export function onRequest(heard: Heard): () => void {
  listeners.add(heard)
  return () => listeners.delete(heard)
}

export const take = {
  fleet(frame: FleetFrame) {
    servers = merged(servers, frame.servers, frame.removed.servers, frame.whole)
    workers = merged(workers, frame.workers, frame.removed.workers, frame.whole)
    relays = merged(relays, frame.relays, frame.removed.relays, frame.whole)
    totals = frame.totals
    transfers = frame.transfers
  },
  models(frame: ModelsFrame) {
    const known = new Map(frame.whole ? [] : models.map((one) => [one.name, one]))
    for (const name of frame.removed) known.delete(name)
    for (const model of frame.models) known.set(model.name, model)
    models = [...known.values()].sort((one, other) => one.name.localeCompare(other.name))
  },
  requests(frame: RequestsFrame) {
    const known = new Set(rows.slice(0, 200).map((row) => row.requestId))
    const fresh = frame.rows.filter((row) => !known.has(row.requestId))
    rows = [...fresh].reverse().concat(rows).slice(0, TAIL_ROWS)
    skipped += frame.skipped
    for (const row of fresh) for (const heard of listeners) heard(row)
  },
  events(frame: ChangesFrame) {
    const known = new Map([...(frame.whole ? [] : changes), ...frame.events].map((one) => [one.n, one]))
    changes = [...known.values()].sort((one, other) => other.n - one.n).slice(0, CHANGES)
  },
  pulls(frame: { pulls: Pull[] }) {
    pulls = frame.pulls
  },
}

/** Take a sample of the rates. */
export function sample(): void {
  if (!totals) return
  const next = new Map<number | 'all', readonly number[]>()
  const add = (of: number | 'all', rate: number) => next.set(of, [...(rates.get(of) ?? []), rate].slice(-SAMPLES))
  add('all', totals.tokensPerSecond)
  for (const backend of [...servers, ...workers]) add(backend.id, backend.tokensPerSecond)
  rates = next
}

/** Everything, for a tab that has just been opened. */
export function everything() {
  return { servers, workers, relays, totals, transfers, models, rows: rows.slice(0, 300), skipped, changes, pulls, rates }
}

export function adopt(given: ReturnType<typeof everything>): void {
  ;({ servers, workers, relays, totals, transfers, models, rows, skipped, changes, pulls, rates } = given)
}

/** Change what is shown before the stream says so: an action that is under way. Answers how to take it back. */
export function assume(id: number, change: Partial<LiveServer>): () => void {
  const before = servers.find((one) => one.id === id)
  servers = servers.map((one) => (one.id === id ? { ...one, ...change } : one))
  return () => {
    if (before) servers = servers.map((one) => (one.id === id ? before : one))
  }
}

export function forgetAll(): void {
  servers = workers = relays = models = rows = changes = pulls = []
  totals = transfers = null
  skipped = 0
  rates = new Map()
}

function merged<One extends { id: number }>(
  old: readonly One[],
  changed: readonly One[],
  removed: readonly number[],
  whole: boolean,
): readonly One[] {
  if (!whole && changed.length === 0 && removed.length === 0) return old
  const known = new Map(whole ? [] : old.map((one) => [one.id, one]))
  for (const id of removed) known.delete(id)
  for (const one of changed) known.set(one.id, one)
  return [...known.values()].sort((one, other) => one.id - other.id)
}
