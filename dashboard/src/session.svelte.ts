/** Who is using this browser: nobody yet, somebody to log in, or a user. */

import { api, Refused, whenSessionIsLost, words } from '$/api'
import { tellSession } from '$/live/live.svelte'

export interface User {
  id: number
  username: string
  isAdmin: boolean
  /** The beginning of the user's first key; null without one. */
  apiKey?: string | null
  createdAt?: string | null
}

type Stage =
  | { is: 'asking' }
  | { is: 'unreachable'; why: string }
  | { is: 'setup'; needsToken: boolean }
  | { is: 'login'; lost: boolean }
  | { is: 'in'; user: User }

let stage = $state.raw<Stage>({ is: 'asking' })

export const session = {
  get stage(): Stage {
    return stage
  },
  /** The user. Pages are shown to users alone, so it is there for them. */
  get user(): User {
    if (stage.is !== 'in') throw new Error('nobody is logged in')
    return stage.user
  },
  get isAdmin(): boolean {
    return stage.is === 'in' && stage.user.isAdmin
  },
}

interface Me {
  user: User | null
  needsSetup?: boolean
  needsToken?: boolean
}

/** Ask who we are. */
export async function ask(): Promise<void> {
  try {
    const me = await api.get<Me>('/api/auth/me')
    if (me.user) stage = { is: 'in', user: me.user }
    else stage = me.needsSetup ? { is: 'setup', needsToken: me.needsToken ?? false } : { is: 'login', lost: false }
  } catch (error) {
    if (error instanceof Refused && error.status === 401) stage = { is: 'login', lost: stage.is === 'in' }
    else if (stage.is !== 'in') stage = { is: 'unreachable', why: words(error) }
  }
}

export async function logIn(username: string, password: string): Promise<void> {
  const answer = await api.post<{ user: User }>('/api/auth/login', { username, password })
  stage = { is: 'in', user: answer.user }
  tellSession()
  void ask()
}

export async function setUp(username: string, password: string, token: string): Promise<void> {
  const body = token ? { username, password, token } : { username, password }
  const answer = await api.post<{ user: User }>('/api/auth/setup', body)
  stage = { is: 'in', user: answer.user }
  tellSession()
}

export async function logOut(): Promise<void> {
  await api.post('/api/auth/logout')
  stage = { is: 'login', lost: false }
  tellSession()
}

whenSessionIsLost(() => {
  if (stage.is === 'in') stage = { is: 'login', lost: true }
})
