/** A server tried before it is trusted: step by step, how far one got, and what it says as it says it. */

import { Refused, send } from '$/api'

export interface TestStep {
  name: string
  ok: boolean
  ms: number
  detail: string
}

/** How the answer came, when it is over. */
export interface Pace {
  ttftMs: number | null
  tokens: number | null
  tokensPerSecond: number | null
  truncated: boolean
}

export interface TestCall {
  steps: readonly TestStep[]
  models: readonly string[]
  /** It thinks, and has said nothing yet. */
  thinking: boolean
  /** What it has said so far; null: nothing yet. */
  answer: string | null
  pace: Pace | null
}

type Line =
  | ({ type: 'step' } & TestStep)
  | { type: 'found'; kind: string; version: string | null; models: string[] }
  | { type: 'thinking' }
  | { type: 'text'; text: string }
  | ({ type: 'end' } & Pace)
  | { type: 'error'; error: string }

export const STEPS: Record<string, string> = {
  address: 'Address',
  connect: 'Connection',
  version: 'Version',
  models: 'Models',
  answer: 'Answer',
}

const NOTHING: TestCall = { steps: [], models: [], thinking: false, answer: null, pace: null }
const BROKEN = 'The connection to fleetproxy broke off before the test was over.'

/** Try a server; `tell` hears how far it is whenever there is news. Raises Refused when nothing can be tried. */
export async function testCall(path: string, body: unknown, tell: (so_far: TestCall) => void, signal: AbortSignal): Promise<void> {
  let told = NOTHING
  let over = false
  tell(told)
  for await (const line of lines(await send('POST', path, { body, signal, accept: 'application/x-ndjson' }))) {
    const next = heard(told, line)
    over ||= line.type === 'end' || line.type === 'error'
    if (next !== told && !signal.aborted) tell((told = next))
  }
  if (!over) throw new Refused(0, BROKEN)
}

function heard(told: TestCall, line: Line): TestCall {
  switch (line.type) {
    case 'step':
      return { ...told, steps: [...told.steps, { name: line.name, ok: line.ok, ms: line.ms, detail: line.detail }] }
    case 'found':
      return { ...told, models: line.models }
    case 'thinking':
      return { ...told, thinking: true }
    case 'text':
      return { ...told, thinking: false, answer: (told.answer ?? '') + line.text }
    case 'end':
      return { ...told, thinking: false, pace: line }
    case 'error': {
      // Said by the step that failed, where one did.
      if (told.steps.some((step) => !step.ok && step.detail === line.error)) return { ...told, thinking: false }
      throw new Refused(0, line.error)
    }
  }
}

async function* lines(response: Response): AsyncGenerator<Line> {
  const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader()
  if (!reader) return
  let rest = ''
  try {
    for (;;) {
      const { done, value } = await reader.read()
      if (done) return
      const found = (rest + value).split('\n')
      rest = found.pop() ?? ''
      for (const line of found) if (line) yield JSON.parse(line) as Line
    }
  } catch (error) {
    if (error instanceof DOMException || error instanceof TypeError) throw new Refused(0, BROKEN)
    throw error
  } finally {
    void reader.cancel().catch(() => {})
  }
}
