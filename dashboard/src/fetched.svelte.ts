/** What a route answers, kept fresh: asked at once, again whenever what it is asked by changes, and every so often. */

import { untrack } from 'svelte'

import { words } from '$/api'

export interface Fetched<Value> {
  /** The latest answer; null before the first. */
  readonly value: Value | null
  /** There is an answer, be it null. */
  readonly known: boolean
  /** Why the last try brought none; the value before it stays. */
  readonly failure: string | null
  readonly busy: boolean
  refresh: () => Promise<void>
  /** Show this until the next answer: what a change has just made of it. */
  assume: (value: Value) => void
}

/**
 * `ask` is called in an effect: what it reads before its first await makes it ask again when it changes. It rests while
 * nobody looks at the tab, and asks as soon as somebody does.
 */
export function fetched<Value>(ask: (signal: AbortSignal) => Promise<Value>, every_ms?: number): Fetched<Value> {
  let value = $state.raw<Value | null>(null)
  let known = $state(false)
  let failure = $state<string | null>(null)
  let busy = $state(false)
  let current: AbortController | null = null

  async function refresh(): Promise<void> {
    current?.abort()
    const mine = new AbortController()
    current = mine
    const asking = ask(mine.signal)
    busy = true
    try {
      const answer = await asking
      if (current !== mine) return
      value = answer
      known = true
      failure = null
    } catch (error) {
      if (current === mine) failure = words(error)
    } finally {
      if (current === mine) busy = false
    }
  }

  $effect(() => {
    void refresh()
    // What is slower than its beat is waited for, not asked anew each time.
    const again = () => {
      if (document.visibilityState === 'visible' && !untrack(() => busy)) void refresh()
    }
    const timer = every_ms === undefined ? undefined : setInterval(again, every_ms)
    document.addEventListener('visibilitychange', again)
    return () => {
      clearInterval(timer)
      document.removeEventListener('visibilitychange', again)
      current?.abort()
      current = null
    }
  })

  return {
    get value() {
      return value
    },
    get known() {
      return known
    },
    get failure() {
      return failure
    },
    get busy() {
      return busy
    },
    refresh,
    assume(next) {
      current?.abort()
      current = null
      value = next
      known = true
      busy = false
    },
  }
}
