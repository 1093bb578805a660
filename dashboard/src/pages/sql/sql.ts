/** Asking the store in SQL: the routes, and what can be told of an answer. */

import { api, send } from '$/api'
import type { Series } from '$/charts/plot'
import type { Cell } from '$/parts/columns'

export interface Result {
  columns: { name: string; type: string }[]
  rows: Cell[][]
  /** There was more than `rows` or `bytes` allow. */
  truncated: 'rows' | 'bytes' | null
  elapsedMs: number
}

export interface Relation {
  name: string
  kind: 'table' | 'view'
  doc: string | null
  rows: number | null
  columns: { name: string; type: string; doc: string | null }[]
}

export interface Dictionary {
  tables: Relation[]
  /** Of one query. */
  limits?: { rows: number; seconds: number; atOnce: number }
}

export interface Saved {
  id: number
  name: string
  description: string | null
  sql: string
  shared: boolean
  owner: string | null
  own: boolean
  createdAt: string
  updatedAt: string
}

export const routes = {
  run: (sql: string, signal?: AbortSignal) => api.post<Result>('/api/query', { sql, shape: 'table' }, signal ? { signal } : {}),
  file: async (sql: string, shape: 'csv' | 'objects'): Promise<Blob> => {
    const response = await send('POST', '/api/query', { body: { sql, shape } })
    return response.blob()
  },
  tables: (signal?: AbortSignal) => api.get<Dictionary>('/api/query/tables', undefined, signal),
  saved: async (signal?: AbortSignal) => (await api.get<{ queries: Saved[] }>('/api/query/saved', undefined, signal)).queries,
  save: (query: { id?: number; name: string; description: string | null; sql: string; shared: boolean }) => api.post<Saved>('/api/query/saved', query),
  forget: (id: number) => api.delete<{ success: boolean }>(`/api/query/saved/${id}`),
}

/** To begin with. */
export const FIRST = `-- The slowest requests of the last hour
SELECT started_at, model, backend, source, status, total_ms, queue_ms, ttft_ms
FROM requests
WHERE started_at >= (now() AT TIME ZONE 'UTC') - INTERVAL 1 HOUR
ORDER BY total_ms DESC
LIMIT 100`

export const EXAMPLES: readonly { name: string; sql: string }[] = [
  { name: 'Slowest requests of the last hour', sql: FIRST },
  { name: 'Traffic by hour and model', sql: "SELECT * FROM v_hourly_model\nWHERE hour >= (now() AT TIME ZONE 'UTC') - INTERVAL 7 DAY\nLIMIT 1000" },
  {
    name: 'Requests and errors by minute',
    sql: "SELECT date_trunc('minute', started_at) AS minute, count(*) AS requests,\n       count(*) FILTER (outcome <> 'ok') AS not_ok\nFROM requests\nWHERE started_at >= (now() AT TIME ZONE 'UTC') - INTERVAL 6 HOUR\nGROUP BY ALL ORDER BY minute",
  },
  { name: 'What went wrong today', sql: "SELECT * FROM v_errors\nWHERE hour >= (now() AT TIME ZONE 'UTC') - INTERVAL 1 DAY" },
  { name: 'Tokens by user, key and day', sql: 'SELECT * FROM v_key_cost LIMIT 500' },
]

const NUMBERS = /^(U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL)/
const TIMES = /^(TIMESTAMP|DATE\b)/

export function isNumber(type: string): boolean {
  return NUMBERS.test(type)
}

export function isTime(type: string): boolean {
  return TIMES.test(type)
}

const MOST_LINES = 8

/**
 * Lines over time, when the answer's first column is a time and others are numbers; null when it is none. One column of
 * words tells lines apart when there is one number: `hour, model, requests`.
 */
export function plotted(result: Result): { times: number[]; series: Series[]; left_out: number } | null {
  const [first, ...others] = result.columns
  if (!first || !isTime(first.type) || result.rows.length < 2) return null
  const numbers = others.map((column, index) => ({ ...column, at: index + 1 })).filter((column) => isNumber(column.type))
  const words = others.map((column, index) => ({ ...column, at: index + 1 })).filter((column) => column.type === 'VARCHAR')
  if (numbers.length === 0) return null
  const when = (row: Cell[]) => moment(String(row[0]))
  const times = [...new Set(result.rows.map(when))].filter((at) => !Number.isNaN(at)).sort((one, other) => one - other)
  if (times.length < 2) return null
  const place = new Map(times.map((at, index) => [at, index]))
  const found = new Map<string, (number | null)[]>()
  const split = words.length === 1 && words[0] ? words[0] : null
  const told = split ? numbers.slice(0, 1) : numbers
  for (const row of result.rows) {
    const index = place.get(when(row))
    if (index === undefined) continue
    for (const column of told) {
      const name = split ? String(row[split.at] ?? 'none') : column.name
      const values = found.get(name) ?? new Array<number | null>(times.length).fill(null)
      const value = row[column.at]
      if (typeof value === 'number') values[index] = (values[index] ?? 0) + value
      found.set(name, values)
    }
  }
  const sum = (values: (number | null)[]) => values.reduce<number>((all, one) => all + (one ?? 0), 0)
  const all = [...found].sort(([, one], [, other]) => (split ? sum(other) - sum(one) : 0))
  return {
    times,
    series: all.slice(0, MOST_LINES).map(([name, values]) => ({ id: name, label: name, values })),
    left_out: Math.max(0, all.length - MOST_LINES),
  }
}

/** A time as the store writes it: `2026-11-22T05:20:08.33Z`, or with its zone, `2026-11-22 05:20:08.33+00`. */
function moment(text: string): number {
  return Date.parse(text.replace(' ', 'T').replace(/([+-]\d\d)$/, '$1:00'))
}

/** A name as SQL takes it: bare where that is possible. */
export function identifier(name: string): string {
  return /^[a-z_][a-z0-9_]*$/.test(name) && !RESERVED.has(name) ? name : `"${name.replaceAll('"', '""')}"`
}

const RESERVED = new Set(['user', 'table', 'order', 'group', 'select', 'from', 'where', 'limit', 'end', 'case', 'all'])

/** Where in the query (from 1) a refusal of DuckDB's points: `LINE 3: …` with a caret below it, or a name it does not know. */
export function pointedAt(message: string, sql: string): { line: number; column: number } | null {
  const lines = message.split('\n')
  const at = lines.findIndex((line) => /^LINE \d+: /.test(line))
  const head = /^LINE (\d+): /.exec(lines[at] ?? '')
  const caret = lines[at + 1]?.indexOf('^') ?? -1
  if (head && caret >= 0) {
    const cut = (lines[at] ?? '').slice(head[0].length).startsWith('...')
    return { line: Number(head[1]), column: cut ? 1 : Math.max(1, caret - head[0].length + 1) }
  }
  const name = /(?:column|Function with name|Table with name|table) "?([\w.]+)"?/i.exec(message)?.[1]
  const found = name ? new RegExp(`\\b${name.replaceAll('.', '\\.')}\\b`, 'i').exec(sql) : null
  if (!found) return null
  const before = sql.slice(0, found.index).split('\n')
  return { line: before.length, column: (before.at(-1)?.length ?? 0) + 1 }
}

/** A short word for what an answer consists of: chosen columns are remembered by it. */
export function signature(result: Result): string {
  let sum = 5381
  for (const letter of result.columns.map((one) => one.name).join(' ')) sum = ((sum * 33) ^ letter.charCodeAt(0)) >>> 0
  return `query-${sum.toString(36)}`
}
