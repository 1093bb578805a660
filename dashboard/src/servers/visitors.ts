/** How a worker or relay is, in one word. */

import type { LiveRelay, LiveWorker } from '$/live/shapes'
import type { Tone } from '$/parts/State.svelte'

import { TRIPPED } from './breaker'
import { draining } from './drain.svelte'

export interface How {
  tone: Tone
  word: string
  /** What somebody should know about it. */
  trouble: string | null
}

export const FAMILIES = { llm: 'Language models', asr: 'Speech recognition' } as const

export function howWorker(one: LiveWorker): How {
  if (draining(one)) return { tone: 'warn', word: 'Draining', trouble: null }
  if (one.state === 'not_ready') return { tone: 'warn', word: 'Not ready', trouble: 'It is connected, but the server beside it does not answer.' }
  const tripped = TRIPPED[one.breaker]
  if (tripped) return { tone: one.breaker === 'open' ? 'bad' : 'warn', word: 'Tripped', trouble: tripped }
  return one.inFlight ? { tone: 'busy', word: 'Working', trouble: null } : { tone: 'good', word: 'Ready', trouble: null }
}

export function howRelay(one: LiveRelay): How {
  if (draining(one)) return { tone: 'warn', word: 'Draining', trouble: null }
  return one.inFlight ? { tone: 'busy', word: 'Working', trouble: null } : { tone: 'good', word: 'Ready', trouble: null }
}
