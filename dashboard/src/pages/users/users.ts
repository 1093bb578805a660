/** Users and their API keys. */

import { api } from '$/api'
import type { At } from '$/live/shapes'

export interface User {
  id: number
  username: string
  isAdmin: boolean
  createdAt?: At | null
}

export type Scope = 'inference' | 'read' | 'manage'

export interface Key {
  id: number
  userId: number
  /** Its first characters. */
  prefix: string
  label: string
  scopes: Scope[]
  /** null: every model. */
  models: string[] | null
  maxInFlight: number | null
  requestsPerMinute: number | null
  createdAt: At
  expiresAt: At | null
}

export interface NewKey {
  label: string
  scopes: Scope[]
  models?: string[]
  maxInFlight?: number
  requestsPerMinute?: number
  expiresAt?: At
}

export const SCOPES: Record<Scope, { label: string; opens: string }> = {
  inference: { label: 'Inference', opens: 'Ask models, and list them.' },
  read: { label: 'Read', opens: 'Read the dashboard API: fleet, requests, analytics.' },
  manage: { label: 'Manage', opens: 'Everything its user may do in the dashboard.' },
}

/** Of a password, as the service wants it; it also refuses what is guessed first. */
export const LEAST_CHARACTERS = 10

export const LIVES: readonly { value: string; label: string; days: number | null }[] = [
  { value: 'never', label: 'Never', days: null },
  { value: '30', label: 'In 30 days', days: 30 },
  { value: '90', label: 'In 90 days', days: 90 },
  { value: '365', label: 'In a year', days: 365 },
  { value: 'own', label: 'At a moment of your own', days: null },
]

/** What a key is held to, in words; empty when to nothing. */
export function limits(key: Key): string {
  return [
    key.models === null ? null : `only ${key.models.join(', ')}`,
    key.maxInFlight === null ? null : `${key.maxInFlight} at once`,
    key.requestsPerMinute === null ? null : `${key.requestsPerMinute} a minute`,
  ]
    .filter(Boolean)
    .join(' · ')
}

export const routes = {
  users: (signal: AbortSignal) => api.get<User[]>('/api/users', undefined, signal),
  create: (username: string, password: string, isAdmin: boolean) => api.post<User>('/api/users', { username, password, isAdmin }),
  change: (id: number, fields: { password?: string; currentPassword?: string; isAdmin?: boolean }) => api.patch(`/api/users/${id}`, fields),
  remove: (id: number) => api.delete(`/api/users/${id}`),
  keys: (id: number, signal: AbortSignal) => api.get<Key[]>(`/api/users/${id}/api-keys`, undefined, signal),
  createKey: (id: number, key: NewKey) => api.post<{ apiKey: string; key: Key }>(`/api/users/${id}/api-key`, key),
  revoke: (id: number, key: number) => api.delete(`/api/users/${id}/api-keys/${key}`),
}
