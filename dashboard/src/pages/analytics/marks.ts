/** What happened, as marks on charts: few enough to be read. */

import type { Mark } from '$/charts/plot'

import type { JobRun, ServerEvent, Stay } from './series'

const WORST: NonNullable<Mark['tone']>[] = ['info', 'good', 'warn', 'bad']
const TOLD = 3
/** More lines than this are noise: what lies close together is one. */
const MOST = 48

/** Marks by time; those closer together than `near_ms` are one, as bad as the worst of them. */
export function gathered(marks: readonly Mark[], near_ms: number): Mark[] {
  const found: { first: Mark; all: Mark[] }[] = []
  for (const mark of [...marks].sort((one, other) => one.at_ms - other.at_ms)) {
    const last = found.at(-1)
    if (last && mark.at_ms - last.first.at_ms < near_ms) last.all.push(mark)
    else found.push({ first: mark, all: [mark] })
  }
  return found.map(({ first, all }) => ({
    at_ms: first.at_ms,
    label:
      all.slice(0, TOLD).map((one) => one.label).join(', ') + (all.length > TOLD ? ` and ${all.length - TOLD} more` : ''),
    tone: WORST[Math.max(...all.map((one) => WORST.indexOf(one.tone ?? 'info')))] ?? 'info',
  }))
}

const OWN_ID = 0

/** A server that came, went, was rebooted or has a new version. */
function ofServer(event: ServerEvent): Mark {
  const at_ms = Date.parse(event.occurredAt)
  if (event.eventType === 'deploy') return { at_ms, label: `deploy ${event.serverName}: ${event.detail ?? 'new version'}`, tone: 'info' }
  return { at_ms, label: `${event.serverName} ${event.eventType}`, tone: event.eventType === 'online' ? 'good' : 'bad' }
}

/** Servers that came and went, models that were loaded and jobs that ran, in a stretch of time; of one server where one is named, and fleetproxy's own versions. */
export function happened(
  told: { events: readonly ServerEvent[]; stays: readonly Stay[]; runs: readonly JobRun[] },
  server: string,
  from_ms: number,
  to_ms: number,
): Mark[] {
  const all = [
    ...told.events
      .filter((one) => !server || one.serverName === server || one.serverId === OWN_ID)
      .map(ofServer),
    ...told.stays.map<Mark>((stay) => ({ at_ms: Date.parse(stay.loadedAt), label: `${stay.model} loaded on ${stay.serverName}`, tone: 'info' })),
    ...told.runs.map<Mark>((run) => ({ at_ms: Date.parse(run.startedAt), label: `job ${run.name} (${run.outcome})`, tone: run.outcome === 'failed' ? 'bad' : 'info' })),
  ]
  return gathered(all.filter(({ at_ms }) => at_ms >= from_ms && at_ms <= to_ms), (to_ms - from_ms) / MOST)
}
