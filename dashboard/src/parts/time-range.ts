/** A stretch of time as a page keeps it in its address: `24h`, or two instants, `2026-11-20T00:00Z..2026-11-21T00:00Z`. */

export const PRESETS = [
  { id: '15m', label: '15 min', length_s: 900 },
  { id: '1h', label: '1 h', length_s: 3600 },
  { id: '6h', label: '6 h', length_s: 21_600 },
  { id: '24h', label: '24 h', length_s: 86_400 },
  { id: '7d', label: '7 d', length_s: 604_800 },
  { id: '30d', label: '30 d', length_s: 2_592_000 },
] as const

export interface Stretch {
  from_ms: number
  to_ms: number
  /** It ends now, and moves on. */
  rolling: boolean
}

/** The stretch a text stands for; an unknown text is the last 24 hours. */
export function stretch(range: string, now_ms: number): Stretch {
  const [begin, end] = range.split('..')
  if (begin && end) {
    const from_ms = Date.parse(begin)
    const to_ms = Date.parse(end)
    if (from_ms < to_ms) return { from_ms, to_ms, rolling: false }
  }
  const preset = PRESETS.find((one) => one.id === range)
  return { from_ms: now_ms - (preset?.length_s ?? 86_400) * 1000, to_ms: now_ms, rolling: true }
}

/** The text for a stretch of one's own, to the second. */
export function between(from_ms: number, to_ms: number): string {
  const written = (at_ms: number) => new Date(at_ms).toISOString().replace(/\.\d+Z$/, 'Z')
  return `${written(Math.floor(from_ms / 1000) * 1000)}..${written(Math.ceil(to_ms / 1000) * 1000)}`
}

/** Parameters of the routes that take a stretch: `hours` while it rolls, else `from` and `to`. */
export function asked(range: string, now_ms: number): Record<string, string> {
  const { from_ms, to_ms } = stretch(range, now_ms)
  return { from: new Date(from_ms).toISOString(), to: new Date(to_ms).toISOString() }
}
