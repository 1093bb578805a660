/**
 * The live stream, once per browser: the tab that leads holds the connection and tells the others what it hears. It is
 * resumed where it was (Last-Event-ID), tried again with growing pauses, and rests while every tab is hidden.
 */

import { send, Refused, words } from '$/api'

import { readEvents, type Message } from './event-stream'
import { pause, whileLeading } from './leadership'
import type { Frames, Hello } from './shapes'
import { adopt, everything, forgetAll, sample, SAMPLE_MS, take } from './stores.svelte'

export type Status = 'connecting' | 'live' | 'waiting' | 'paused'

/** Nothing in this time, not even a ping: the connection is dead, whatever the system says. */
const SILENCE_MS = 40_000
const FIRST_PAUSE_MS = 500
const LONGEST_PAUSE_MS = 15_000
/** A tab may be hidden for this long before it lets go. */
const HIDDEN_MS = 15_000

type Shared =
  | { kind: 'frame'; event: keyof Frames; data: unknown; id: string | null }
  | { kind: 'status'; status: Status; why: string | null }
  | { kind: 'heard' }
  | { kind: 'who?' }
  | { kind: 'everything'; state: ReturnType<typeof everything>; id: string | null; hello: Hello | null; skew_ms: number; status: Status }
  | { kind: 'session' }

let status = $state<Status>('connecting')
let why = $state<string | null>(null)
let heard_ms = $state(0)
let framed_ms = $state(0)
let hello = $state.raw<Hello | null>(null)
let skew_ms = $state(0)
let last_id: string | null = null
let leading = false

/** How the connection is. Reads of its fields are reactive. */
export const live = {
  get status() {
    return status
  },
  /** Why it is not live, in words. */
  get why() {
    return why
  },
  /** When anything was last heard, pings included; ms, 0 for never. */
  get heard_ms() {
    return heard_ms
  },
  /** When data last came; ms, 0 for never. */
  get framed_ms() {
    return framed_ms
  },
  get hello() {
    return hello
  },
  /** What to add to this machine's clock to get fleetproxy's; ms. */
  get skew_ms() {
    return skew_ms
  },
}

const channel = 'BroadcastChannel' in globalThis ? new BroadcastChannel('fleetproxy.live') : null
let sessionChanged: () => void = () => {}

/** Listen until the returned function is called. `changed` is called when the session has ended, here or in another tab. */
export function listen(changed: () => void): () => void {
  sessionChanged = changed
  const ended = new AbortController()
  let turn: AbortController | null = null
  let hiding: ReturnType<typeof setTimeout> | undefined

  const begin = () => {
    clearTimeout(hiding)
    if (turn || ended.signal.aborted) return
    turn = new AbortController()
    const mine = turn
    whileLeading('fleetproxy.live', lead, mine.signal).catch(() => {
      // Told to stop, or deposed: the next turn comes with the next look at the page.
    }).finally(() => {
      if (turn === mine) turn = null
      if (!mine.signal.aborted && !ended.signal.aborted && !document.hidden) setTimeout(begin, 1000)
    })
  }
  const rest = () => {
    turn?.abort()
    turn = null
    if (leading || !channel) show('paused', null)
  }
  const look = () => {
    clearTimeout(hiding)
    if (document.hidden) hiding = setTimeout(rest, HIDDEN_MS)
    else begin()
  }
  document.addEventListener('visibilitychange', look)
  channel?.addEventListener('message', told)
  channel?.postMessage({ kind: 'who?' } satisfies Shared)
  const sampling = setInterval(() => status === 'live' && sample(), SAMPLE_MS)
  begin()
  return () => {
    ended.abort()
    turn?.abort()
    clearTimeout(hiding)
    clearInterval(sampling)
    document.removeEventListener('visibilitychange', look)
    channel?.removeEventListener('message', told)
    last_id = null
    hello = null
    status = 'connecting'
    heard_ms = framed_ms = 0
    forgetAll()
  }
}

/** Tell the other tabs that the session has changed: logged in or out. */
export function tellSession(): void {
  channel?.postMessage({ kind: 'session' } satisfies Shared)
}

/** Be told when another tab has logged in or out. */
export function onSession(changed: () => void): () => void {
  const hear = (event: MessageEvent<Shared>) => event.data.kind === 'session' && changed()
  channel?.addEventListener('message', hear)
  return () => channel?.removeEventListener('message', hear)
}

// --- the tab that leads ---

async function lead(signal: AbortSignal): Promise<void> {
  leading = true
  let tries = 0
  try {
    while (!signal.aborted) {
      show('connecting', null)
      try {
        await connection(signal, () => (tries = 0))
        show('waiting', 'fleetproxy closed the stream.')
      } catch (error) {
        if (signal.aborted) return
        if (error instanceof Refused && error.status === 401) {
          sessionChanged()
          return
        }
        show('waiting', words(error))
      }
      const longest = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** tries)
      tries += 1
      await pause(longest * (0.6 + 0.4 * Math.random()), signal).catch(() => {})
    }
  } finally {
    leading = false
  }
}

/** One connection, from its request to its end. */
async function connection(signal: AbortSignal, well: () => void): Promise<void> {
  const own = new AbortController()
  const stop = () => own.abort()
  signal.addEventListener('abort', stop, { once: true })
  let watch: ReturnType<typeof setTimeout> | undefined
  const arrived = () => {
    clearTimeout(watch)
    watch = setTimeout(() => own.abort(), SILENCE_MS)
    heard()
    share({ kind: 'heard' })
  }
  try {
    const response = await send('GET', '/api/state/live', { query: { lastEventId: last_id }, signal: own.signal })
    if (!response.body) throw new Refused(0, 'The browser cannot read streams.')
    arrived()
    await readEvents(
      response.body,
      (message) => {
        if (message.event === 'hello') {
          well()
          show('live', null)
        }
        receive(message)
      },
      arrived,
    )
  } catch (error) {
    if (own.signal.aborted && !signal.aborted) throw new Refused(0, 'fleetproxy has gone silent.')
    if (error instanceof TypeError) throw new Refused(0, 'The connection to fleetproxy broke.')
    throw error
  } finally {
    clearTimeout(watch)
    signal.removeEventListener('abort', stop)
  }
}

function receive(message: Message): void {
  const event = message.event as keyof Frames
  let data: unknown
  try {
    data = JSON.parse(message.data)
  } catch {
    return // not ours to understand: the next whole frame mends it
  }
  apply(event, data, message.id)
  share({ kind: 'frame', event, data, id: message.id })
}

// --- every tab ---

function apply(event: keyof Frames, data: unknown, id: string | null): void {
  if (id) last_id = id
  framed_ms = heard_ms = Date.now()
  if (event === 'hello') {
    hello = data as Hello
    skew_ms = new Date(hello.at).getTime() - Date.now()
  } else if (event === 'bye') {
    if ((data as Frames['bye']).reason === 'unauthorized') sessionChanged()
  } else if (event in take) {
    ;(take[event] as (frame: unknown) => void)(data)
  }
}

function heard(): void {
  heard_ms = Date.now()
}

function show(next: Status, reason: string | null): void {
  status = next
  why = reason
  share({ kind: 'status', status, why })
}

function share(message: Shared): void {
  if (leading) channel?.postMessage(message)
}

function told(event: MessageEvent<Shared>): void {
  const message = event.data
  switch (message.kind) {
    case 'frame':
      return apply(message.event, message.data, message.id)
    case 'status':
      status = message.status
      why = message.why
      return
    case 'heard':
      return heard()
    case 'who?':
      return share({ kind: 'everything', state: everything(), id: last_id, hello, skew_ms, status })
    case 'everything':
      if (hello !== null || leading) return
      adopt(message.state)
      last_id = message.id
      hello = message.hello
      skew_ms = message.skew_ms
      status = message.status
      heard_ms = framed_ms = Date.now()
      return
    case 'session':
      return sessionChanged()
  }
}
