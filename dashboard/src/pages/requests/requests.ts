/** Requests: what the routes say of them, and the columns they are shown in. */

import { api, send } from '$/api'
import type { RequestRow } from '$/live/shapes'
import type { Filters } from '$/requests/filters'
import type { Explanation } from '$/servers/considered'

export interface Phase {
  phase: 'queue' | 'overhead' | 'connect' | 'wait' | 'stream' | 'failed'
  label: string
  serverName: string | null
  startMs: number
  durationMs: number
}

export interface Attempt {
  n: number
  serverName: string
  status: number | null
  error: string | null
  words: string | null
  startedMs: number
  connectMs: number | null
  firstByteMs: number | null
  totalMs: number
}

export interface Story {
  request: RequestRow & {
    remoteIp: string | null
    userAgent: string | null
    keyPrefix: string | null
    keyUnknown: boolean
    process: string
    chunksOut: number
    loadMs: number | null
    promptEvalMs: number | null
    evalMs: number | null
  }
  why: { reason: string | null; words: string; outcome: string; error: string | null }
  attempts: Attempt[]
  timeline: Phase[]
  /** Who would be asked now; null where no server is chosen. */
  now: Explanation | null
}

export interface Asker {
  sourceIp: string
  model: string | null
  targetHost: string | null
  count: number
  avgDuration: number | null
}

export interface Page {
  requests: RequestRow[]
  summary: Asker[]
}

export const PAGE_ROWS = 200
/** What the server can sort by; the other columns are sorted in the tail alone. */
export const SORTS: ReadonlySet<string> = new Set([
  'started',
  'duration',
  'queue',
  'ttft',
  'overhead',
  'tokens_in',
  'tokens_out',
  'bytes_in',
  'bytes_out',
  'retries',
  'status',
])
export const NEWEST = '-started'

export type FileKind = 'csv' | 'ndjson' | 'parquet'

export const routes = {
  list: (query: Record<string, string | number | null>, signal?: AbortSignal) => api.get<Page>('/api/requests', query, signal),
  story: (requestId: string, signal?: AbortSignal) =>
    api.get<Story>(`/api/requests/${encodeURIComponent(requestId)}`, undefined, signal),
  file: async (query: Record<string, string | number | null>, format: FileKind): Promise<Blob> => {
    const response = await send('GET', '/api/requests', { query: { ...query, format } })
    return response.blob()
  },
}

/** Unique among rows, also where callers give several requests one id. */
export function keyOf(row: RequestRow): string {
  return `${row.requestId} ${row.createdAt}`
}

/** Answer tokens per second, from the first byte to the last. */
export function speed(row: RequestRow): number | null {
  const spent_ms = row.durationMs - (row.ttftMs ?? 0)
  return row.streamed && row.tokensOut && row.ttftMs !== null && spent_ms > 0 ? (1000 * row.tokensOut) / spent_ms : null
}

/** Whether a row is one somebody should look at. */
export function toneOf(row: RequestRow): 'bad' | 'warn' | null {
  if (['backend_error', 'truncated', 'aborted'].includes(row.outcome) || (row.statusCode ?? 0) >= 500) return 'bad'
  return row.outcome === 'refused' || (row.statusCode ?? 0) >= 400 || row.retries > 0 ? 'warn' : null
}

export function only(filters: Filters): Record<string, string> {
  return Object.fromEntries(Object.entries(filters).filter(([, value]) => value))
}
