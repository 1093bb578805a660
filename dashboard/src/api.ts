/** Calls of the dashboard API: JSON in and out, refusals as words, and a lost session leads to the login. */

export class Refused extends Error {
  constructor(
    /** HTTP status; 0 when nothing answered. */
    readonly status: number,
    message: string,
    /** The word for programs, where there is one: `rate_limited`. */
    readonly code: string | null = null,
    readonly retry_after_s: number | null = null,
    /** The refusal's whole body, where it was JSON. */
    readonly body: unknown = null,
  ) {
    super(message)
    this.name = 'Refused'
  }
}

export interface Options {
  query?: Record<string, string | number | boolean | null | undefined>
  body?: unknown
  signal?: AbortSignal
  /** The kind of answer asked for. */
  accept?: string
}

const PLAIN: Record<number, string> = {
  0: 'fleetproxy does not answer. Is it running, and is this machine connected?',
  401: 'You are not logged in.',
  403: 'You may not do this. An administrator can.',
  404: 'This is no longer there.',
  413: 'This is too large.',
  429: 'Too many tries.',
  502: 'fleetproxy cannot reach its control process. It is restarted by itself; try again in a few seconds.',
  503: 'fleetproxy cannot do this right now. Try again in a few seconds.',
}

let onLost: () => void = () => {}

/** What to do when the session is no longer good. */
export function whenSessionIsLost(then: () => void): void {
  onLost = then
}

export const api = {
  get: <Answer>(path: string, query?: Options['query'], signal?: AbortSignal) =>
    call<Answer>('GET', path, { query, signal }),
  post: <Answer>(path: string, body?: unknown, options: Options = {}) => call<Answer>('POST', path, { ...options, body }),
  put: <Answer>(path: string, body?: unknown) => call<Answer>('PUT', path, { body }),
  patch: <Answer>(path: string, body?: unknown) => call<Answer>('PATCH', path, { body }),
  delete: <Answer>(path: string, body?: unknown) => call<Answer>('DELETE', path, { body }),
}

export async function call<Answer>(method: string, path: string, options: Options = {}): Promise<Answer> {
  const response = await send(method, path, options)
  if (response.status === 204) return undefined as Answer
  const value: unknown = await response.json().catch(() => null)
  return value as Answer
}

/** The response itself, for what is no JSON (streams, downloads). Raises Refused for anything but success. */
export async function send(method: string, path: string, options: Options = {}): Promise<Response> {
  const query = new URLSearchParams()
  for (const [name, value] of Object.entries(options.query ?? {})) {
    if (value != null && value !== '') query.set(name, String(value))
  }
  const text = query.toString()
  let response: Response
  try {
    response = await fetch(path + (text ? `?${text}` : ''), {
      method,
      credentials: 'same-origin',
      // State-changing calls must say JSON by name, also those without a body.
      headers: {
        ...(method === 'GET' ? {} : { 'content-type': 'application/json' }),
        ...(options.accept ? { accept: options.accept } : {}),
      },
      body: options.body === undefined ? undefined : JSON.stringify(options.body),
      signal: options.signal,
    })
  } catch (error) {
    if (options.signal?.aborted) throw error
    throw new Refused(0, PLAIN[0] ?? '')
  }
  if (response.ok) return response
  const refused = await refusal(response)
  if (refused.status === 401 && !path.startsWith('/api/auth/')) onLost()
  throw refused
}

async function refusal(response: Response): Promise<Refused> {
  const body: unknown = await response.json().catch(() => null)
  const { message, code } = said(body)
  const after = Number(response.headers.get('retry-after'))
  const wait_s = response.headers.has('retry-after') && Number.isFinite(after) ? after : null
  const wait = wait_s ? ` Try again in ${wait_s} s.` : ''
  const own = message && message !== 'Unauthorized' && message !== 'Forbidden' ? sentence(message) : null
  const plain = own ?? PLAIN[response.status] ?? `fleetproxy answered ${response.status} ${response.statusText}`.trim()
  return new Refused(response.status, plain + wait, code, wait_s, body)
}

/** The words of a refusal: `{"error": "..."}`, OpenAI's `{"error": {...}}`, or a problem document. */
function said(body: unknown): { message: string | null; code: string | null } {
  if (typeof body !== 'object' || body === null) return { message: null, code: null }
  const error = 'error' in body ? body.error : null
  if (typeof error === 'string') {
    const code = 'code' in body && typeof body.code === 'string' ? body.code : null
    return { message: error, code }
  }
  if (typeof error === 'object' && error !== null && 'message' in error && typeof error.message === 'string') {
    return { message: error.message, code: 'code' in error && typeof error.code === 'string' ? error.code : null }
  }
  const detail = 'detail' in body ? body.detail : 'title' in body ? body.title : null
  return { message: typeof detail === 'string' ? detail : null, code: null }
}

function sentence(text: string): string {
  const upper = text.charAt(0).toUpperCase() + text.slice(1)
  return /[.!?…]$/.test(upper) ? upper : `${upper}.`
}

/** An error in words, whatever it is. */
export function words(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
