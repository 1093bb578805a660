/** What the analytics page asks, and how the answers become charts. Times in ms since the epoch. */

import { api } from '$/api'
import type { Series as Line } from '$/charts/plot'
import { reasonLabel } from '$/requests/filters'
import type { Unit } from '$/words/quantities'

export type GroupBy = 'none' | 'model' | 'server' | 'source' | 'user' | 'status' | 'dialect' | 'outcome' | 'reason'

export type Metric =
  | 'requests'
  | 'errors'
  | 'retries'
  | 'tokensIn'
  | 'tokensOut'
  | 'ttftP50Ms'
  | 'ttftP95Ms'
  | 'ttftP99Ms'
  | 'itlP50Ms'
  | 'itlP95Ms'
  | 'itlP99Ms'
  | 'queueP50Ms'
  | 'queueP95Ms'
  | 'durationP50Ms'
  | 'durationP95Ms'
  | 'durationP99Ms'

export interface Group {
  key: string | null
  other: boolean
  serverId: number | null
  total: Partial<Record<Metric, number | null>>
  values: Partial<Record<Metric, (number | null)[]>>
}

export interface Answer {
  from: string
  to: string
  bucketSeconds: number
  groupBy: GroupBy
  metrics: Metric[]
  exact: boolean
  percentileError: number
  groups: number
  times: string[]
  series: Group[]
}

export interface Stay {
  serverId: number
  serverName: string
  model: string
  loadedAt: string
  unloadedAt: string | null
  seconds: number
  sizeBytes: number
  vramBytes: number
  parameterSize: string | null
  quantization: string | null
}

export interface Residency {
  from: string
  to: string
  truncated: boolean
  stays: Stay[]
}

export interface ServerEvent {
  id: number
  serverId: number
  serverName: string
  eventType: string
  detail: string | null
  occurredAt: string
}

/** A run of a scheduled job. */
export interface JobRun {
  name: string
  startedAt: string
  outcome: string
}

const MOST_JOBS = 20
const MOST_RUNS = 50

async function jobRuns(signal?: AbortSignal): Promise<JobRun[]> {
  const jobs = await api.get<{ id: number; name: string; action: string }[]>('/api/scheduled-jobs', undefined, signal)
  const acting = jobs.filter((job) => job.action !== 'none').slice(0, MOST_JOBS)
  const runs = acting.map(async ({ id, name }) => {
    const found = await api.get<{ startedAt: string; outcome: string }[]>(`/api/scheduled-jobs/${id}/runs`, { limit: MOST_RUNS }, signal)
    return found.map(({ startedAt, outcome }) => ({ name, startedAt, outcome }))
  })
  return (await Promise.all(runs)).flat()
}

export type Question = Record<string, string | number | null | undefined>

export const routes = {
  series: (query: Question, signal?: AbortSignal) => api.get<Answer>('/api/analytics/series', query, signal),
  residency: (query: Question, signal?: AbortSignal) => api.get<Residency>('/api/analytics/residency', query, signal),
  jobRuns,
  serverEvents: (hours: number, signal?: AbortSignal) => api.get<ServerEvent[]>('/api/server-events', { hours }, signal),
}

export const GROUPS: readonly { value: GroupBy; label: string }[] = [
  { value: 'none', label: 'All together' },
  { value: 'model', label: 'By model' },
  { value: 'server', label: 'By server' },
  { value: 'source', label: 'By source' },
  { value: 'user', label: 'By user' },
  { value: 'status', label: 'By status' },
  { value: 'outcome', label: 'By outcome' },
  { value: 'reason', label: 'By routing reason' },
  { value: 'dialect', label: 'By dialect' },
]

export interface ChartSpec {
  id: string
  title: string
  unit: Unit
  /** Counts add up; percentiles do not. */
  counts?: Metric
  /** Of a time: its percentiles, by their word. */
  times?: Partial<Record<Percentile, Metric>>
}

export type Percentile = 'p50' | 'p95' | 'p99'

export const CHARTS: readonly ChartSpec[] = [
  { id: 'requests', title: 'Requests', unit: 'count', counts: 'requests' },
  { id: 'errors', title: 'Errors', unit: 'count', counts: 'errors' },
  { id: 'ttft', title: 'Time to first token', unit: 'ms', times: { p50: 'ttftP50Ms', p95: 'ttftP95Ms', p99: 'ttftP99Ms' } },
  { id: 'itl', title: 'Time between tokens', unit: 'ms', times: { p50: 'itlP50Ms', p95: 'itlP95Ms', p99: 'itlP99Ms' } },
  { id: 'queue', title: 'Time in line', unit: 'ms', times: { p50: 'queueP50Ms', p95: 'queueP95Ms' } },
  { id: 'duration', title: 'Duration', unit: 'ms', times: { p50: 'durationP50Ms', p95: 'durationP95Ms', p99: 'durationP99Ms' } },
  { id: 'tokens_out', title: 'Answer tokens', unit: 'count', counts: 'tokensOut' },
  { id: 'tokens_in', title: 'Prompt tokens', unit: 'count', counts: 'tokensIn' },
  { id: 'retries', title: 'Retries', unit: 'count', counts: 'retries' },
]

const NOBODY: Record<GroupBy, string> = {
  none: 'All',
  model: 'No model named',
  server: 'No server asked',
  source: 'Unknown',
  user: 'Without a user',
  status: 'No status',
  dialect: 'None',
  outcome: 'None',
  reason: 'No server asked',
}

export function groupLabel(group: Pick<Group, 'key' | 'other'>, by: GroupBy, groups = 0, told = 0): string {
  if (group.other) return groups > told ? `${groups - told} others` : 'Others'
  if (group.key === null) return NOBODY[by]
  return by === 'reason' ? reasonLabel(group.key) : group.key
}

/** A chart's lines: one for each group; without groups, one for each percentile. */
export function lines(answer: Answer, chart: ChartSpec, percentile: Percentile): Line[] {
  if (chart.times && answer.groupBy === 'none') {
    return Object.entries(chart.times).map(([word, metric], index) => ({
      id: word,
      label: word,
      values: answer.series[0]?.values[metric] ?? [],
      color: [1, 2, 4][index],
    }))
  }
  const metric = chart.counts ?? chart.times?.[percentile] ?? chart.times?.p95
  if (!metric) return []
  const told = answer.series.filter((one) => !one.other).length
  return answer.series
    .filter((one) => !(one.other && chart.times))
    .map((one, index) => ({
      id: `${one.other} ${one.key}`,
      label: answer.groupBy === 'none' ? chart.title : groupLabel(one, answer.groupBy, answer.groups, told),
      values: one.values[metric] ?? [],
      ...(one.other ? { color: 8 } : { color: (index % 7) + 1 }),
    }))
}

/** How much larger than before, as a part of one; null where that says nothing. */
export function change(now: number | null | undefined, before: number | null | undefined): number | null {
  return now == null || !before ? null : (now - before) / before
}

export const QUIET_MS = { '15m': 15_000, '1h': 30_000, '6h': 60_000 } as const
