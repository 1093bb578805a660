/** What happened, as marks on charts: few enough to be read. */

import type { Mark } from '$/charts/plot'

const WORST: NonNullable<Mark['tone']>[] = ['info', 'good', 'warn', 'bad']
const TOLD = 3

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
