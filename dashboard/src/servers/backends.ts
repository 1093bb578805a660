/** Servers and workers alike, as the fleet page shows them. */

import type { Busy, LiveServer, LiveWorker, Machine, Resident } from '$/live/shapes'
import type { Tone } from '$/parts/State.svelte'

import { TRIPPED } from './breaker'

export interface Backend extends Busy {
  id: number
  name: string
  what: 'server' | 'worker'
  /** Ollama, OpenAI, nfrx agent … */
  kind: string
  version: string | null
  where: string
  tone: Tone
  word: string
  /** It could take a request now, or would if it were not full. */
  usable: boolean
  /** Somebody should look at it, and why; null when all is well. */
  trouble: string | null
  since: string | null
  heardAt: string | null
  machine: Machine | null
  server: LiveServer | null
  worker: LiveWorker | null
}

const KINDS = { ollama: 'Ollama', vllm: 'OpenAI', generic: 'OpenAI' } as const

const SERVER: Record<LiveServer['state'], [Tone, string]> = {
  online: ['good', 'Online'],
  offline: ['bad', 'Offline'],
  disabled: ['idle', 'Maintenance'],
  draining: ['warn', 'Draining'],
  leaving: ['idle', 'Leaving'],
  unknown: ['busy', 'Not polled yet'],
}

const WORKER: Record<LiveWorker['state'], [Tone, string]> = {
  idle: ['good', 'Ready'],
  working: ['good', 'Working'],
  not_ready: ['warn', 'Not ready'],
  draining: ['warn', 'Draining'],
}

export function ofServer(server: LiveServer): Backend {
  const [tone, word] = SERVER[server.state]
  return {
    ...server,
    what: 'server',
    kind: KINDS[server.backendType],
    where: server.url,
    tone: server.state === 'online' && server.breaker !== 'closed' ? 'warn' : tone,
    word: server.state === 'online' && server.breaker === 'open' ? 'Tripped' : word,
    usable: server.state === 'online',
    trouble:
      server.state === 'offline'
        ? (server.lastError ?? 'It does not answer.')
        : server.state === 'online'
          ? (TRIPPED[server.breaker] ?? server.lastError)
          : null,
    heardAt: server.polledAt,
    machine: server.systemMetrics,
    server,
    worker: null,
  }
}

export function ofWorker(worker: LiveWorker): Backend {
  const [tone, word] = WORKER[worker.state]
  return {
    ...worker,
    what: 'worker',
    kind: worker.family === 'asr' ? 'Speech worker' : 'Worker',
    version: worker.version || null,
    where: worker.host || worker.remote,
    tone: worker.breaker !== 'closed' && tone === 'good' ? 'warn' : tone,
    word: worker.breaker === 'open' ? 'Tripped' : word,
    usable: worker.state === 'idle' || worker.state === 'working',
    trouble: worker.state === 'not_ready' ? 'Its own server does not answer.' : TRIPPED[worker.breaker],
    since: worker.connectedAt,
    heardAt: worker.lastHeartbeat,
    machine: null,
    server: null,
    worker,
  }
}

export type Show = 'all' | 'well' | 'trouble' | 'off'

/** Which of the page's filters a backend is under. */
export function standing(backend: Backend): Exclude<Show, 'all'> {
  if (backend.server?.isDisabled || backend.server?.isDraining || backend.worker?.isDraining) return 'off'
  return backend.tone === 'good' && backend.trouble === null ? 'well' : 'trouble'
}

/** How long until a model leaves memory, in ms; `stays` when it was told to, null when nobody said. */
export function expiry(model: Pick<Resident, 'expiresAt'>, now_ms: number): number | 'stays' | null {
  const at_ms = Date.parse(model.expiresAt ?? '')
  if (Number.isNaN(at_ms)) return null
  // Ollama writes "never" as a time centuries ahead.
  return at_ms - now_ms > 50 * 365 * 86_400_000 ? 'stays' : Math.max(0, at_ms - now_ms)
}

/** What its memory holds is known: servers other than Ollama do not say. */
export function tellsMemory(backend: Backend): boolean {
  return backend.vramUsedBytes > 0 || (backend.kind === 'Ollama' && backend.vramTotalBytes !== null)
}

/** The hottest reading of a machine. */
export function hottest(machine: Machine | null): number | null {
  const known = [machine?.cpuTempC, machine?.gpuTempC].filter((value): value is number => value != null)
  return known.length ? Math.max(...known) : null
}
