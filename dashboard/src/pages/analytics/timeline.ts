/** Stays of models in servers' memory, as rows of bars. */

import { order } from '$/parts/columns'

import type { Stay } from './series'

export interface Lane {
  id: string
  server: string
  model: string
  /** It is the first of its server's (or model's). */
  heads: boolean
  stays: Stay[]
  seconds: number
}

export type By = 'server' | 'model'

/** One row for each model on each server, together by one of the two; those in memory longest first. */
export function lanes(stays: readonly Stay[], by: By): Lane[] {
  const found = new Map<string, Lane>()
  for (const stay of stays) {
    const id = `${stay.serverId} ${stay.model}`
    const lane = found.get(id) ?? { id, server: stay.serverName, model: stay.model, heads: false, stays: [], seconds: 0 }
    lane.stays.push(stay)
    lane.seconds += stay.seconds
    found.set(id, lane)
  }
  const all = [...found.values()].sort((one, other) => order(one[by], other[by]) || other.seconds - one.seconds)
  all.forEach((lane, index) => (lane.heads = index === 0 || all[index - 1]?.[by] !== lane[by]))
  return all
}

/** The bars of a row as one outline: an SVG path of a width in px, from one moment to another. */
export function outline(stays: readonly Stay[], from_ms: number, to_ms: number, width: number, top: number, height: number): string {
  const scale = width / Math.max(1, to_ms - from_ms)
  return stays
    .map((stay) => {
      const left = Math.max(0, (Date.parse(stay.loadedAt) - from_ms) * scale)
      const right = Math.min(width, ((stay.unloadedAt ? Date.parse(stay.unloadedAt) : to_ms) - from_ms) * scale)
      const wide = Math.max(1.5, right - left)
      return `M${left.toFixed(1)} ${top}h${wide.toFixed(1)}v${height}h${(-wide).toFixed(1)}z`
    })
    .join('')
}

/** The stay at a moment, or the nearest within `near_ms`. */
export function at(stays: readonly Stay[], at_ms: number, to_ms: number, near_ms: number): Stay | null {
  let best: Stay | null = null
  let least = near_ms
  for (const stay of stays) {
    const begin = Date.parse(stay.loadedAt)
    const end = stay.unloadedAt ? Date.parse(stay.unloadedAt) : to_ms
    const far = at_ms < begin ? begin - at_ms : at_ms > end ? at_ms - end : 0
    if (far <= least) {
      best = stay
      least = far
      if (far === 0) break
    }
  }
  return best
}

const STEPS_MS = [60_000, 300_000, 900_000, 1_800_000, 3_600_000, 10_800_000, 21_600_000, 43_200_000, 86_400_000, 172_800_000, 604_800_000]

/** Moments to mark, at least 80 px apart. */
export function ticks(from_ms: number, to_ms: number, width: number): { at_ms: number; step_ms: number }[] {
  const least = ((to_ms - from_ms) * 80) / Math.max(80, width)
  const step_ms = STEPS_MS.find((step) => step >= least) ?? 30 * 86_400_000
  const first = Math.ceil(from_ms / step_ms) * step_ms
  const found = []
  for (let at_ms = first; at_ms <= to_ms; at_ms += step_ms) found.push({ at_ms, step_ms })
  return found
}
