/** Moments, in the zone the reader chose, and the one clock that ages and countdowns run by. */

import { remembered } from '$/shell/remembered.svelte'
import { NONE, roughly } from './quantities'

export type Zone = 'local' | 'utc'

const chosen = remembered<Zone>('zone', 'local')

export const zone = {
  get chosen(): Zone {
    return chosen.value
  },
  set chosen(value: Zone) {
    chosen.value = value
  },
  /** For `Intl`: undefined is the browser's own. */
  get name(): string | undefined {
    return chosen.value === 'utc' ? 'UTC' : undefined
  },
  get label(): string {
    return chosen.value === 'utc' ? 'UTC' : Intl.DateTimeFormat().resolvedOptions().timeZone
  },
}

let now_ms = $state(Date.now())
let watchers = 0
let timer: ReturnType<typeof setInterval> | undefined

/** The current time, in ms, that changes once a second while a component reads it (call in its script). */
export function ticking(): { readonly ms: number } {
  $effect(() => {
    watchers += 1
    now_ms = Date.now()
    timer ??= setInterval(() => (now_ms = Date.now()), 1000)
    return () => {
      watchers -= 1
      if (watchers === 0) {
        clearInterval(timer)
        timer = undefined
      }
    }
  })
  return {
    get ms() {
      return now_ms
    },
  }
}

type Moment = string | number | Date | null | undefined

/** Of an ISO text, a number of ms, or a Date. */
export function moment(value: Moment): Date | null {
  if (value == null || value === '') return null
  const date = value instanceof Date ? value : new Date(value)
  return Number.isNaN(date.getTime()) ? null : date
}

function written(value: Moment, options: Intl.DateTimeFormatOptions): string {
  const date = moment(value)
  return date ? date.toLocaleString(undefined, { ...options, timeZone: zone.name }) : NONE
}

/** `Nov 22, 14:03:07` */
export function instant(value: Moment): string {
  return written(value, {
    month: 'short',
    day: 'numeric',
    hour: '2-digit',
    minute: '2-digit',
    second: '2-digit',
    hourCycle: 'h23',
  })
}

/** `14:03:07` */
export function clock(value: Moment): string {
  return written(value, { hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23' })
}

/** `Sun, Nov 22, 2026, 14:03:07.123 UTC`: for titles and drawers. */
export function exactly(value: Moment): string {
  return written(value, {
    weekday: 'short',
    year: 'numeric',
    month: 'short',
    day: 'numeric',
    hour: '2-digit',
    minute: '2-digit',
    second: '2-digit',
    fractionalSecondDigits: 3,
    hourCycle: 'h23',
    timeZoneName: 'short',
  })
}

/** `12 s ago`, `in 4 min`, `now`. */
export function ago(value: Moment, from_ms: number): string {
  const date = moment(value)
  if (!date) return NONE
  const past_s = (from_ms - date.getTime()) / 1000
  if (Math.abs(past_s) < 1) return 'now'
  return past_s > 0 ? `${roughly(past_s)} ago` : `in ${roughly(-past_s)}`
}
