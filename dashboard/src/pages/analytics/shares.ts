/** What answers by routing reason, status, outcome and asker come to: parts of a whole, and what they mean. */

import type { Outcome } from '$/live/shapes'
import { OUTCOMES, reasonLabel } from '$/requests/filters'
import { milliseconds, NONE } from '$/words/quantities'

import { groupLabel, type Answer, type Group, type GroupBy } from './series'

export interface Share {
  id: string
  label: string
  value: number
  /** Of them, those that went wrong. */
  errors?: number
  /** Said beside it, in small. */
  note?: string
  tone?: 'good' | 'warn' | 'bad'
  onpick?: () => void
}

type Pick = (key: string) => void

/** What met its model in memory; what waited for that rather than load it; the rest had to load. */
const RESIDENT: ReadonlySet<string | null> = new Set(['model_loaded', 'model_loaded_busy'])
const AVOIDED = 'model_loaded_busy'
const FORCED: ReadonlySet<string | null> = new Set(['model_available', 'model_available_busy', 'model_available_busy_redirect', 'fallback_most_vram'])

const STATUSES: Record<string, string> = {
  400: 'Bad request',
  401: 'No key, or a wrong one',
  403: 'Not allowed',
  404: 'No such model or path',
  408: 'Too slow',
  413: 'Too large',
  429: 'Too many requests',
  499: 'Caller left',
  500: 'Server error',
  502: 'Server failed',
  503: 'Nobody could serve',
  504: 'Took too long',
}

/** How requests came to their servers, as parts of those that came to one; null when none did. */
export function routing(reasons: Answer | null): { resident: number; avoided: number; forced: number } | null {
  const groups = reasons?.series.filter((one) => one.key !== null && !one.other) ?? []
  const of = (chosen: (key: string | null) => boolean) => groups.filter((one) => chosen(one.key)).reduce((sum, one) => sum + (one.total.requests ?? 0), 0)
  const all = of(() => true)
  if (!all) return null
  return { resident: of((key) => RESIDENT.has(key)) / all, avoided: of((key) => key === AVOIDED) / all, forced: of((key) => FORCED.has(key)) / all }
}

export function metShare(reasons: Answer | null): number | null {
  return routing(reasons)?.resident ?? null
}

function shares(answer: Answer | null, of: (group: Group) => Partial<Share>, only: (group: Group) => boolean = () => true): Share[] {
  const told = answer?.series.filter((one) => !one.other).length ?? 0
  return (answer?.series ?? [])
    .filter((one) => (one.total.requests ?? 0) > 0 && only(one))
    .map((one) => ({
      id: `${one.other} ${one.key}`,
      label: groupLabel(one, answer?.groupBy ?? 'none', answer?.groups, told),
      value: one.total.requests ?? 0,
      ...of(one),
    }))
}

/** Errors by status. */
export function statusShares(statuses: Answer | null, pick: Pick): Share[] {
  return shares(
    statuses,
    (one) => ({ label: `${one.key} ${STATUSES[one.key ?? ''] ?? ''}`, tone: Number(one.key) >= 500 ? 'bad' : 'warn', onpick: () => pick(one.key ?? '') }),
    (one) => Number(one.key) >= 400,
  )
}

export function outcomeShares(outcomes: Answer | null, pick: Pick): Share[] {
  return shares(outcomes, (one) => {
    const how = OUTCOMES[one.key as Outcome]
    const { key } = one
    return {
      label: how?.word ?? key ?? NONE,
      ...(how && how.tone !== 'busy' && how.tone !== 'idle' ? { tone: how.tone } : {}),
      ...(key ? { onpick: () => pick(key) } : {}),
    }
  })
}

export function reasonShares(reasons: Answer | null): Share[] {
  return shares(
    reasons,
    (one) => ({
      label: one.other ? 'Others' : reasonLabel(one.key),
      ...(RESIDENT.has(one.key) ? { tone: 'good' as const } : FORCED.has(one.key) ? { tone: 'warn' as const } : {}),
    }),
    (one) => one.key !== null,
  )
}

/** Who or what there was most of; also who asks for a model. */
export function mostAsked(tops: (Answer & { by: GroupBy }) | null, pick: Pick): Share[] {
  return shares(tops, (one) => {
    const { key } = one
    return {
      errors: one.total.errors ?? 0,
      note: one.total.ttftP95Ms == null ? '' : `first token p95 ${milliseconds(one.total.ttftP95Ms)}`,
      ...(key !== null && !one.other ? { onpick: () => pick(key) } : {}),
    }
  })
}
