/** One tab of a browser at a time may do something. The next one takes over when it is closed, hidden or gone. */

const LEASE_MS = 4000
const RENEW_MS = 1000

/** Run `work` while leading, until `signal`. Waits its turn; rejects with the signal's reason when told to stop. */
export async function whileLeading(
  name: string,
  work: (signal: AbortSignal) => Promise<void>,
  signal: AbortSignal,
): Promise<void> {
  // Browsers have locks on pages they trust alone: HTTPS and localhost.
  if ('locks' in navigator) await navigator.locks.request(name, { signal }, () => work(signal))
  else await byLease(`${name}.lease`, work, signal)
}

/** The same with a note in the storage all tabs share: who leads, and until when unless it is renewed. */
async function byLease(key: string, work: (signal: AbortSignal) => Promise<void>, signal: AbortSignal): Promise<void> {
  const me = Array.from(crypto.getRandomValues(new Uint32Array(2)), (word) => word.toString(36)).join('')
  const holder = (): { who: string; until_ms: number } => {
    try {
      return JSON.parse(localStorage.getItem(key) ?? '') as { who: string; until_ms: number }
    } catch {
      return { who: '', until_ms: 0 }
    }
  }
  const sign = () => localStorage.setItem(key, JSON.stringify({ who: me, until_ms: Date.now() + LEASE_MS }))
  try {
    for (;;) {
      if (holder().until_ms < Date.now()) {
        sign()
        // Several may have signed at once: the last one to have done so leads.
        await pause(120, signal)
        if (holder().who === me) break
      }
      await pause(RENEW_MS, signal)
    }
  } catch (error) {
    if (signal.aborted) throw error
    await work(signal) // no storage: every tab for itself
    return
  }
  const deposed = new AbortController()
  const renewing = setInterval(() => {
    if (holder().who === me) sign()
    else deposed.abort()
  }, RENEW_MS)
  const resign = () => holder().who === me && localStorage.removeItem(key)
  addEventListener('pagehide', resign)
  try {
    await work(AbortSignal.any([signal, deposed.signal]))
  } finally {
    clearInterval(renewing)
    removeEventListener('pagehide', resign)
    resign()
  }
}

export function pause(length_ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted()
    const stop = () => {
      clearTimeout(timer)
      reject(signal.reason as Error)
    }
    const timer = setTimeout(() => {
      signal.removeEventListener('abort', stop)
      resolve()
    }, length_ms)
    signal.addEventListener('abort', stop, { once: true })
  })
}
