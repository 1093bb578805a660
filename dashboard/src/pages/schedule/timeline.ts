/** The plan of the next hours as shapes: where each run stands between two moments, in px. */

import { moment, zone } from '$/words/instants.svelte'

import type { Conflict, Execution } from './jobs'

export interface Span {
  from_ms: number
  to_ms: number
}

export interface Lane {
  jobId: number
  name: string
  model: string
  runs: readonly Execution[]
  clashes: number
  /** Those of the runs in conflict that are so with a run of the same model. */
  grave: ReadonlySet<Execution>
}

/** Narrower than this, a run could not be seen. */
const LEAST_PX = 3

/** A row for each job that is due, those due first first. */
export function lanes(executions: readonly Execution[], conflicts: readonly Conflict[]): readonly Lane[] {
  const grave = conflicts.filter((one) => one.conflictType === 'same_model')
  const found = new Map<number, Execution[]>()
  for (const one of executions) {
    const known = found.get(one.jobId)
    if (known) known.push(one)
    else found.set(one.jobId, [one])
  }
  return [...found].map(([jobId, runs]) => ({
    jobId,
    name: runs[0]?.jobName ?? '',
    model: runs[0]?.targetModel ?? '',
    runs,
    clashes: runs.filter((run) => run.isConflict).length,
    grave: within(runs, grave.filter((one) => one.jobs.some((job) => job.jobId === jobId))),
  }))
}

/** The runs that some conflict lies in. Both come in order of time. */
function within(runs: readonly Execution[], conflicts: readonly Conflict[]): ReadonlySet<Execution> {
  const found = new Set<Execution>()
  let from = 0
  for (const run of runs) {
    const [begin, end] = [Date.parse(run.startTime), Date.parse(run.endTime)]
    while (from < conflicts.length && Date.parse(conflicts[from]?.endTime ?? '') <= begin) from += 1
    const next = conflicts[from]
    if (run.isConflict && next && Date.parse(next.startTime) < end) found.add(run)
  }
  return found
}

function spot(at_ms: number, span: Span, width_px: number): number {
  return ((at_ms - span.from_ms) / (span.to_ms - span.from_ms)) * width_px
}

/** One path for many runs: those that touch on the screen are drawn as one. */
export function outline(runs: readonly Execution[], span: Span, width_px: number, top: number, height: number): string {
  let path = ''
  let left = -1
  let right = -1
  const close = () => {
    if (left >= 0) path += `M${left.toFixed(1)} ${top}h${(right - left).toFixed(1)}v${height}H${left.toFixed(1)}z`
  }
  for (const run of runs) {
    const begin = Math.max(0, spot(Date.parse(run.startTime), span, width_px))
    const end = Math.min(width_px, Math.max(begin + LEAST_PX, spot(Date.parse(run.endTime), span, width_px)))
    if (begin >= width_px) break
    if (left >= 0 && begin <= right + 1) right = Math.max(right, end)
    else {
      close()
      left = begin
      right = end
    }
  }
  close()
  return path
}

/** Where conflicts are, as bands over every row. */
export function bands(conflicts: readonly Conflict[], span: Span, width_px: number): { left: number; width: number; grave: boolean }[] {
  const found: { left: number; width: number; grave: boolean }[] = []
  for (const one of conflicts) {
    const left = Math.max(0, spot(Date.parse(one.startTime), span, width_px))
    const width = Math.max(LEAST_PX, Math.min(width_px, spot(Date.parse(one.endTime), span, width_px)) - left)
    const grave = one.conflictType === 'same_model'
    const last = found[found.length - 1]
    if (last && left <= last.left + last.width + 1) {
      last.width = Math.max(last.width, left + width - last.left)
      last.grave ||= grave
    } else if (left < width_px) found.push({ left, width, grave })
  }
  return found
}

const HOUR_MS = 3_600_000
const STEPS_H = [1, 2, 3, 6, 12, 24]

/** Full hours between two moments, at least 64 px apart, in the reader's zone. */
export function ticks(span: Span, width_px: number): { at_px: number; label: string; day: boolean }[] {
  const hours = (span.to_ms - span.from_ms) / HOUR_MS
  const step_h = STEPS_H.find((one) => (width_px / hours) * one >= 64) ?? 48
  const shown: { at_px: number; label: string; day: boolean }[] = []
  // Where clocks are half an hour off, so are their full hours.
  const past_ms = (minuteOf(span.from_ms) * 60_000 + (span.from_ms % 60_000)) % HOUR_MS
  for (let at = span.from_ms + ((HOUR_MS - past_ms) % HOUR_MS); at < span.to_ms; at += HOUR_MS) {
    const hour = hourOf(at)
    const at_px = spot(at, span, width_px)
    if (hour % step_h !== 0 || at_px > width_px - 30) continue
    shown.push({ at_px, day: hour === 0, label: hour === 0 ? dayOf(at) : `${String(hour).padStart(2, '0')}:00` })
  }
  return shown
}

function hourOf(at_ms: number): number {
  const text = new Date(at_ms).toLocaleString('en-GB', { hour: 'numeric', hourCycle: 'h23', timeZone: zone.name })
  return Number.parseInt(text, 10)
}

function minuteOf(at_ms: number): number {
  return Number.parseInt(new Date(at_ms).toLocaleString('en-GB', { minute: 'numeric', timeZone: zone.name }), 10)
}

function dayOf(at_ms: number): string {
  return moment(at_ms)?.toLocaleString(undefined, { weekday: 'short', day: 'numeric', timeZone: zone.name }) ?? ''
}

/** The run nearest to a place on the screen, if one is there. */
export function nearest(runs: readonly Execution[], span: Span, width_px: number, at_px: number): Execution | null {
  let found: Execution | null = null
  let least = 6
  for (const run of runs) {
    const begin = spot(Date.parse(run.startTime), span, width_px)
    const end = spot(Date.parse(run.endTime), span, width_px)
    const away = at_px < begin ? begin - at_px : at_px > end ? at_px - end : 0
    if (away < least) {
      least = away
      found = run
    }
  }
  return found
}
