/** What a breaker that is not closed means, in words. */

import type { Breaker } from '$/live/shapes'

export const TRIPPED: Record<Breaker, string | null> = {
  closed: null,
  open: 'Tripped: it failed several times in a row, and rests before it is tried again.',
  half_open: 'Was tripped; one request is let through to see whether it works again.',
}

export const BREAKERS: Record<Breaker, string> = {
  closed: 'closed: requests pass',
  open: 'open: it rests',
  half_open: 'half open: being tried',
}
