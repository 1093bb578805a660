/** A server tried before it is trusted: step by step, how far one got. */

export interface TestCall {
  ok: boolean
  steps: { name: string; ok: boolean; ms: number; detail: string }[]
  version: string | null
  models: string[]
  /** What it said, when a model was asked. */
  answer: string | null
}

export const STEPS: Record<string, string> = {
  address: 'Address',
  connect: 'Connection',
  version: 'Version',
  models: 'Models',
  answer: 'Answer',
}
