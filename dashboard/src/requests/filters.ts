/** What requests may be narrowed by, on every page that shows some: one value each, exactly as the routes take it. */

import type { Outcome, RequestRow } from '$/live/shapes'
import type { Tone } from '$/parts/State.svelte'

export type FilterId = 'model' | 'server' | 'source' | 'user' | 'outcome' | 'status' | 'request_id'

export type Filters = Partial<Record<FilterId, string>>

export interface Filter {
  id: FilterId
  label: string
  /** Its column in the table `requests`. */
  column: string
  /** What stands there while nothing is asked. */
  hint: string
  /** Wider than the others, px. */
  width?: number
}

export const FILTERS: readonly Filter[] = [
  { id: 'model', label: 'Model', column: 'model', hint: 'any', width: 168 },
  { id: 'server', label: 'Server', column: 'backend', hint: 'any' },
  { id: 'source', label: 'Source', column: 'source', hint: 'anyone' },
  { id: 'user', label: 'User', column: '"user"', hint: 'anyone' },
  { id: 'outcome', label: 'Outcome', column: 'outcome', hint: 'any' },
  { id: 'status', label: 'Status', column: 'status', hint: '5xx', width: 104 },
  { id: 'request_id', label: 'Request id', column: 'request_id', hint: 'any', width: 150 },
]

export const OUTCOMES: Record<Outcome, { tone: Tone; word: string }> = {
  ok: { tone: 'good', word: 'Answered' },
  refused: { tone: 'warn', word: 'Refused' },
  backend_error: { tone: 'bad', word: 'Server failed' },
  truncated: { tone: 'bad', word: 'Broke off' },
  client_gone: { tone: 'idle', word: 'Caller left' },
  aborted: { tone: 'bad', word: 'Stopped' },
}

/** Why a server was asked, in few words; unknown reasons are shown as they are. */
export const REASONS: Record<string, string> = {
  model_loaded: 'In memory',
  model_loaded_busy: 'In memory, waited',
  model_available: 'Loaded from disk',
  model_available_busy: 'On disk, waited',
  model_available_busy_redirect: 'Sent elsewhere, others full',
  fallback_most_vram: 'Not listed, most room',
  any_online: 'Any server',
  pinned_by_header: 'Named by the caller',
  affinity: 'Same as before',
  most_free_space: 'Most room on disk',
}

export function reasonLabel(reason: string | null): string {
  return reason === null ? 'No server asked' : (REASONS[reason] ?? reason.replaceAll('_', ' '))
}

/** How a request ended: an answer of the server's that is an error is no success either. */
export function ending(row: Pick<RequestRow, 'outcome' | 'statusCode'>): { tone: Tone; word: string } {
  const how = OUTCOMES[row.outcome]
  if (row.outcome !== 'ok' || (row.statusCode ?? 0) < 400) return how
  return { tone: (row.statusCode ?? 0) < 500 ? 'warn' : 'bad', word: 'Error passed on' }
}

/** Whether a request is among those asked for, as the routes would judge it. */
export function matches(row: RequestRow, filters: Filters): boolean {
  const status = filters.status?.toLowerCase()
  return (
    (!filters.model || row.model === filters.model) &&
    (!filters.server || row.serverName?.toLowerCase() === filters.server.toLowerCase()) &&
    (!filters.source || row.sourceIp === filters.source) &&
    (!filters.user || row.user === filters.user) &&
    (!filters.outcome || row.outcome === filters.outcome) &&
    (!filters.request_id || row.requestId === filters.request_id) &&
    (!status || String(row.statusCode) === status || `${Math.floor((row.statusCode ?? 0) / 100)}xx` === status)
  )
}

export function quoted(text: string): string {
  return `'${text.replaceAll("'", "''")}'`
}

/** A moment as SQL has it. */
export function stamped(at_ms: number): string {
  return `TIMESTAMP '${new Date(at_ms).toISOString().replace('T', ' ').replace('Z', '')}'`
}

/** The same requests, asked in SQL. */
export function asSql(filters: Filters, from_ms: number, to_ms: number, order = 'started_at DESC'): string {
  const where = [`started_at >= ${stamped(from_ms)}`, `started_at <= ${stamped(to_ms)}`]
  for (const filter of FILTERS) {
    const value = filters[filter.id]
    if (!value) continue
    if (filter.id === 'status') {
      where.push(/^[1-5]xx$/i.test(value) ? `status // 100 = ${value[0]}` : `status = ${Number.parseInt(value) || 0}`)
    } else where.push(`${filter.column} = ${quoted(value)}`)
  }
  return `SELECT * FROM requests\nWHERE ${where.join('\n  AND ')}\nORDER BY ${order}\nLIMIT 500`
}

/** A call of ours as a line for the shell. */
export function asCurl(path: string, query: Record<string, string | number | null | undefined> = {}): string {
  const asked = Object.entries(query)
    .filter(([, value]) => value != null && value !== '')
    .map(([name, value]) => ` \\\n  --data-urlencode ${shell(`${name}=${value}`)}`)
  return `curl -fsS${asked.length ? ' -G' : ''} ${shell(location.origin + path)} \\\n  -H "Authorization: Bearer $FLEETPROXY_KEY"${asked.join('')}`
}

function shell(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`
}
