/** Numbers as people read them. Every quantity is written by one of these, with its unit. */

export type Unit = 'count' | 'bytes' | 'ms' | 's' | 'per_s' | 'tokens_per_s' | 'percent' | 'celsius'

/** What stands where there is no value. */
export const NONE = '–'

const whole = new Intl.NumberFormat(undefined, { maximumFractionDigits: 0 })
const short = new Intl.NumberFormat(undefined, { notation: 'compact', maximumFractionDigits: 1 })

function figures(value: number): string {
  const size = Math.abs(value)
  const digits = size >= 100 || Number.isInteger(value) ? 0 : size >= 10 ? 1 : 2
  return value.toLocaleString(undefined, { maximumFractionDigits: digits })
}

export function count(value: number | null | undefined): string {
  return value == null ? NONE : whole.format(value)
}

/** 1.2K, 3.4M: for places too narrow for the exact number. */
export function brief(value: number | null | undefined): string {
  return value == null ? NONE : Math.abs(value) < 10_000 ? whole.format(value) : short.format(value)
}

export function bytes(value: number | null | undefined): string {
  if (value == null) return NONE
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB']
  let size = value
  let at = 0
  while (Math.abs(size) >= 1024 && at < units.length - 1) {
    size /= 1024
    at += 1
  }
  return `${figures(at === 0 ? Math.round(size) : size)} ${units[at]}`
}

/** A length of time in milliseconds: `840 µs`, `12.4 ms`, `3.1 s`, `4 min 10 s`, `2 h 5 min`, `3 d 4 h`. */
export function milliseconds(value: number | null | undefined): string {
  if (value == null) return NONE
  const size = Math.abs(value)
  if (size === 0) return '0 ms'
  if (size < 1) return `${Math.round(value * 1000)} µs`
  if (size < 1000) return `${figures(value)} ms`
  return seconds(value / 1000)
}

export function seconds(value: number | null | undefined): string {
  if (value == null) return NONE
  const size = Math.abs(value)
  if (size < 1) return milliseconds(value * 1000)
  if (size < 60) return `${figures(value)} s`
  const total = Math.round(value)
  if (size < 3600) return pair(Math.floor(total / 60), 'min', total % 60, 's')
  if (size < 86_400) return pair(Math.floor(total / 3600), 'h', Math.floor((total % 3600) / 60), 'min')
  return pair(Math.floor(total / 86_400), 'd', Math.floor((total % 86_400) / 3600), 'h')
}

/** One unit alone, for ages and countdowns: `12 s`, `4 min`, `3 h`, `2 d`. */
export function roughly(value_s: number): string {
  const size = Math.max(0, value_s)
  if (size < 60) return `${Math.floor(size)} s`
  if (size < 3600) return `${Math.floor(size / 60)} min`
  if (size < 86_400) return `${Math.floor(size / 3600)} h`
  return `${Math.floor(size / 86_400)} d`
}

function pair(large: number, large_unit: string, small: number, small_unit: string): string {
  return small ? `${large} ${large_unit} ${small} ${small_unit}` : `${large} ${large_unit}`
}

/** `share` is a part of one: 0.123 is `12.3 %`. */
export function percent(share: number | null | undefined): string {
  return share == null ? NONE : `${figures(Math.round(share * 1000) / 10)} %`
}

const WRITERS: Record<Unit, (value: number | null | undefined) => string> = {
  count,
  bytes,
  ms: milliseconds,
  s: seconds,
  per_s: (value) => (value == null ? NONE : `${figures(value)} /s`),
  tokens_per_s: (value) => (value == null ? NONE : `${figures(value)} tok/s`),
  percent,
  celsius: (value) => (value == null ? NONE : `${Math.round(value)} °C`),
}

/** A value with its unit. */
export function quantity(value: number | null | undefined, unit: Unit): string {
  return WRITERS[unit](value)
}

/** `1 server`, `3 servers`. */
export function several(number: number, one: string, many = `${one}s`): string {
  return `${count(number)} ${number === 1 ? one : many}`
}
