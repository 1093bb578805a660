/** Short messages about what has just been done, or could not be. */

export type Tone = 'good' | 'bad' | 'info'

export interface Toast {
  id: number
  tone: Tone
  text: string
  detail?: string
  /** One thing to do about it: "Undo", "Retry". */
  action?: { label: string; run: () => void }
}

/** Failures stay until they are closed, or pushed out. */
const STAYS_MS: Record<Tone, number | null> = { good: 5000, info: 6000, bad: null }
const MOST = 4

let shown = $state.raw<readonly Toast[]>([])
let last = 0

export function toasts(): readonly Toast[] {
  return shown
}

export function toast(tone: Tone, text: string, more: Pick<Toast, 'detail' | 'action'> = {}): void {
  last += 1
  const made: Toast = { id: last, tone, text, ...more }
  shown = [...shown, made].slice(-MOST)
  const stays_ms = STAYS_MS[tone]
  if (stays_ms !== null) setTimeout(() => dismiss(made.id), stays_ms)
}

export function dismiss(id: number): void {
  shown = shown.filter((one) => one.id !== id)
}

/** Do something, and say how it went. Answers whether it worked. */
export async function attempt(
  work: () => Promise<unknown>,
  says: { done?: string; failed: string; retry?: boolean },
): Promise<boolean> {
  try {
    await work()
    if (says.done) toast('good', says.done)
    return true
  } catch (error) {
    const detail = error instanceof Error ? error.message : String(error)
    const again = says.retry ? { action: { label: 'Retry', run: () => void attempt(work, says) } } : {}
    toast('bad', says.failed, { detail, ...again })
    return false
  }
}
