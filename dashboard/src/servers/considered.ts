/** Who was considered for a request, and what came of it (`GET /api/models/explain`, `now` of a request's story). */

import type { At } from '$/live/shapes'
import type { Tone } from '$/parts/State.svelte'

export type Verdict =
  | 'chosen'
  | 'next'
  | 'waited_for'
  | 'offline'
  | 'maintenance'
  | 'not_pinned'
  | 'dialect'
  | 'model_missing'
  | 'full'
  | 'tripped'
  | 'not_allowed'
  | 'not_preferred'

export interface Explanation {
  model: string
  path: string
  outcome: 'candidates' | 'wait' | 'refuse'
  reason: string
  words: string
  message: string
  pinIgnored: boolean
  at: At
  considered: {
    serverId: number
    serverName: string
    place: number | null
    verdict: Verdict
    words: string
    tier: 'resident' | 'on_disk' | 'not_listed'
    model: string | null
    inFlight: number
    slots: number | null
    waiting: number
    freeVramBytes: number | null
    tripped: boolean
  }[]
}

export const VERDICTS: Record<Verdict, { tone: Tone; word: string }> = {
  chosen: { tone: 'good', word: 'First' },
  next: { tone: 'good', word: 'Next' },
  waited_for: { tone: 'busy', word: 'In line' },
  offline: { tone: 'bad', word: 'Offline' },
  maintenance: { tone: 'idle', word: 'Off' },
  not_pinned: { tone: 'idle', word: 'Not named' },
  dialect: { tone: 'idle', word: 'Other path' },
  model_missing: { tone: 'idle', word: 'Not there' },
  full: { tone: 'warn', word: 'Full' },
  tripped: { tone: 'bad', word: 'Tripped' },
  not_allowed: { tone: 'bad', word: 'Forbidden' },
  not_preferred: { tone: 'idle', word: 'Not needed' },
}

export const TIERS = { resident: 'in memory', on_disk: 'on disk', not_listed: 'not listed' } as const
