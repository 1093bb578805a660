/** Notifications, the fleet's options, plugins. */

import { api } from '$/api'

export interface Chat {
  chatId: string
  /** Masked. */
  botToken: string
  isEnabled: boolean
}

export interface Subscription {
  serverId: number
  notifyOffline: boolean
  notifyOnline: boolean
  notifyReboot: boolean
}

export interface Webhook {
  url: string
  /** The mask, or null. */
  secret: string | null
  events: string[]
  isEnabled: boolean
}

export interface Plugin {
  name: string
  type: 'agent' | 'family' | 'hook'
  version?: string
  description?: string
  defaultPort?: number
  endpoint?: string
  configKey?: string
  enabled?: boolean
}

export interface Tried {
  ok: boolean
  detail: string
}

export const KINDS: readonly { id: string; label: string }[] = [
  { id: 'offline', label: 'A server goes offline' },
  { id: 'online', label: 'It is back' },
  { id: 'reboot', label: 'Its machine was started anew' },
  { id: 'gpu_temp', label: 'A GPU is hot' },
  { id: 'cpu_temp', label: 'A CPU is hot' },
  { id: 'disk', label: 'A disk is nearly full' },
  { id: 'memory', label: 'Memory runs out' },
  { id: 'model_not_found', label: 'A model is asked for that is nowhere' },
  { id: 'wan', label: 'The internet was away' },
  { id: 'job', label: 'A job failed' },
]

export const NOTES = ['notifyOffline', 'notifyOnline', 'notifyReboot'] as const
export type Note = (typeof NOTES)[number]
export const NOTE_WORDS: Record<Note, string> = { notifyOffline: 'Offline', notifyOnline: 'Online', notifyReboot: 'Reboot' }

export const routes = {
  chat: (signal: AbortSignal) => api.get<Chat | null>('/api/settings/telegram', undefined, signal),
  setChat: (chat: Chat) => api.put('/api/settings/telegram', chat),
  dropChat: () => api.delete('/api/settings/telegram'),
  tryChat: () => api.post<Tried>('/api/settings/telegram/test'),
  subscriptions: (signal: AbortSignal) => api.get<Subscription[]>('/api/settings/subscriptions', undefined, signal),
  subscribe: (wanted: readonly Subscription[]) => api.put('/api/settings/subscriptions', wanted),
  webhook: (signal: AbortSignal) => api.get<Webhook | null>('/api/settings/webhook', undefined, signal),
  setWebhook: (hook: { url: string; secret?: string | null; events: readonly string[]; isEnabled: boolean }) => api.put('/api/settings/webhook', hook),
  dropWebhook: () => api.delete('/api/settings/webhook'),
  tryWebhook: () => api.post<Tried>('/api/settings/webhook/test'),
  options: (signal: AbortSignal) => api.get<Record<string, boolean>>('/api/settings/fleet', undefined, signal),
  setOption: (key: string, value: boolean) => api.put('/api/settings/fleet', { key, value }),
  plugins: (signal: AbortSignal) => api.get<Plugin[]>('/api/plugins', undefined, signal),
}

/** Send a test, and raise with why when it was not taken. */
export async function tryOut(send: () => Promise<Tried>): Promise<void> {
  const tried = await send()
  if (!tried.ok) throw new Error(tried.detail)
}
