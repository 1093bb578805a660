/** Jobs as the routes tell of them, and what may be done to them. */

import { api } from '$/api'
import type { At } from '$/live/shapes'
import type { Tone } from '$/parts/State.svelte'
import { zone } from '$/words/instants.svelte'
import { milliseconds } from '$/words/quantities'

export type Overlap = 'skip' | 'wait' | 'allow'
export type Action = 'none' | 'preload' | 'unload' | 'pull' | 'prompt' | 'retention' | 'export'

export interface Job {
  id: number
  name: string
  description: string | null
  sourceIdentifier: string
  cronExpression: string
  timezone: string
  targetModel: string
  preferredServerId: number | null
  preferredServerName: string | null
  expectedDurationMs: number
  isEnabled: boolean
  nextExecutions: At[]
  createdAt: At
  updatedAt: At
  cronDescription: string | null
  action: Action
  actionOptions: Record<string, unknown>
  overlap: Overlap
  misfireGraceSeconds: number
}

export interface Execution {
  jobId: number
  jobName: string
  sourceIdentifier: string
  targetModel: string
  startTime: At
  endTime: At
  isConflict: boolean
}

export interface Conflict {
  startTime: At
  endTime: At
  jobs: { jobId: number; jobName: string; targetModel: string }[]
  conflictType: 'same_model' | 'time_overlap'
}

export interface Timeline {
  executions: Execution[]
  conflicts: Conflict[]
  /** The plan is whole up to here; null: up to its end. */
  completeUntil: At | null
}

export interface Run {
  id: number
  jobId: number
  scheduledFor: At | null
  startedAt: At
  finishedAt: At | null
  outcome: 'running' | 'ok' | 'failed' | 'skipped' | 'missed' | 'aborted'
  detail: string | null
  triggeredBy: string
}

/** What a job does, in words, and what it needs to be told. */
export const ACTIONS: Record<Action, { label: string; does: string; model: boolean }> = {
  none: { label: 'Only planned', does: 'Somebody else does it; it is here so that others keep out of its way.', model: true },
  preload: { label: 'Load model', does: 'Brings the model into memory before it is asked for.', model: true },
  unload: { label: 'Unload model', does: 'Lets the model go from memory.', model: true },
  pull: { label: 'Pull model', does: 'Fetches the model, or its newer version.', model: true },
  prompt: { label: 'Ask', does: 'Asks the model something; the answer is not kept.', model: true },
  retention: { label: 'Forget history', does: 'Drops rows of the request history that are older.', model: false },
  export: { label: 'Export requests', does: 'Writes the requests of the last days to a file in the data folder.', model: false },
}

export const OVERLAPS: Record<Overlap, string> = {
  skip: 'leave this run out',
  wait: 'wait for the end',
  allow: 'run both',
}

export const OUTCOMES: Record<Run['outcome'], { tone: Tone; word: string }> = {
  running: { tone: 'busy', word: 'Running' },
  ok: { tone: 'good', word: 'Done' },
  failed: { tone: 'bad', word: 'Failed' },
  skipped: { tone: 'idle', word: 'Left out' },
  missed: { tone: 'warn', word: 'Missed' },
  aborted: { tone: 'warn', word: 'Aborted' },
}

export const CONFLICTS: Record<Conflict['conflictType'], string> = {
  same_model: 'Same model at the same time',
  time_overlap: 'At the same time',
}

/** Expressions people want most. */
export const USUAL: readonly { label: string; cron: string }[] = [
  { label: 'Every hour', cron: '0 * * * *' },
  { label: 'Nightly', cron: '0 3 * * *' },
  { label: 'Weekdays at 8', cron: '0 8 * * 1-5' },
  { label: 'Sundays', cron: '0 4 * * 0' },
  { label: 'Monthly', cron: '0 5 1 * *' },
]

/** What stands for the model of jobs that are about none: the route wants one. */
export function placeholder(action: Action): string {
  return `(${action})`
}

/** The browser's own zone, for new jobs. */
export function ownZone(): string {
  return zone.chosen === 'utc' ? 'UTC' : Intl.DateTimeFormat().resolvedOptions().timeZone || 'UTC'
}

export function zones(): readonly string[] {
  return ['UTC', ...Intl.supportedValuesOf('timeZone').filter((one) => one !== 'UTC')]
}

/** A moment as the clocks of a zone show it: `Mon, Nov 23, 03:00`. */
export function inZone(at: At, timezone: string): string {
  const options: Intl.DateTimeFormatOptions = {
    weekday: 'short',
    month: 'short',
    day: 'numeric',
    hour: '2-digit',
    minute: '2-digit',
    hourCycle: 'h23',
  }
  try {
    return new Date(at).toLocaleString(undefined, { ...options, timeZone: timezone })
  } catch {
    return new Date(at).toLocaleString(undefined, { ...options, timeZone: 'UTC' })
  }
}

/** An expression that is due daily at this moment's time of day, in a zone. */
export function dailyAt(at: At, timezone: string): string {
  const parts = new Intl.DateTimeFormat('en-GB', {
    hour: 'numeric',
    minute: 'numeric',
    hourCycle: 'h23',
    timeZone: timezone,
  }).formatToParts(new Date(at))
  const part = (type: string) => Number(parts.find((one) => one.type === type)?.value ?? 0)
  return `${part('minute')} ${part('hour')} * * *`
}

/** Jobs that are in some other's way in this plan, and how badly. */
export function clashing(timeline: Timeline | null): ReadonlyMap<number, Conflict['conflictType']> {
  const found = new Map<number, Conflict['conflictType']>()
  for (const one of timeline?.conflicts ?? []) {
    for (const job of one.jobs) {
      if (one.conflictType === 'same_model' || !found.has(job.jobId)) found.set(job.jobId, one.conflictType)
    }
  }
  return found
}

export function about(job: Job): string {
  return ACTIONS[job.action].model ? job.targetModel : ''
}

/** The options of an action in words: `keep for 10m`, `older than 30 days`. */
export function optionWords(job: Job): string {
  const { keepAlive, prompt, days } = job.actionOptions as { keepAlive?: string; prompt?: string; days?: number }
  if (job.action === 'preload') return keepAlive ? `kept for ${keepAlive}` : 'kept as long as the server likes'
  if (job.action === 'prompt') return prompt ?? ''
  if (job.action === 'retention') return `older than ${days} days`
  if (job.action === 'export') return `the last ${days ?? 7} days`
  return ''
}

export function took(run: Run): string {
  return run.finishedAt ? milliseconds(Date.parse(run.finishedAt) - Date.parse(run.startedAt)) : ''
}

export const routes = {
  jobs: (signal: AbortSignal) => api.get<Job[]>('/api/scheduled-jobs', undefined, signal),
  timeline: (hours: number, signal: AbortSignal) => api.get<Timeline>('/api/scheduled-jobs/timeline', { hours }, signal),
  runs: (id: number, signal: AbortSignal) => api.get<Run[]>(`/api/scheduled-jobs/${id}/runs`, { limit: 50 }, signal),
  change: (id: number, fields: Partial<Job>) => api.put<Job>(`/api/scheduled-jobs/${id}`, fields),
  create: (fields: Partial<Job>) => api.post<Job & { conflicts: Conflict[] }>('/api/scheduled-jobs', fields),
  remove: (id: number) => api.delete(`/api/scheduled-jobs/${id}`),
  run: (id: number) => api.post<{ runId: number }>(`/api/scheduled-jobs/${id}/run`),
  slots: (model: string, durationMs: number, hours: number) =>
    api.get<{ openSlots: { startTime: At; endTime: At; durationMs: number }[] }>('/api/scheduled-jobs/suggestions', {
      model,
      durationMs,
      hours,
    }),
  validate: (cronExpression: string, timezone: string, signal: AbortSignal) =>
    api.get<Checked>('/api/scheduled-jobs/validate', { cronExpression, timezone }, signal),
}

export interface Checked {
  valid: boolean
  error: string | null
  description: string | null
  nextExecutions: At[]
}
