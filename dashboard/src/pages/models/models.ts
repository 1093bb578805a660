/** Models, where they are, and what may be done with them. */

import { api, Refused } from '$/api'
import type { At, Busy, LiveModel, LiveServer, LiveWorker, Pull } from '$/live/shapes'
import type { Explanation } from '$/servers/considered'

export type Verb = 'pull' | 'delete' | 'load' | 'unload'

export interface ModelAction {
  id: number
  action: Verb
  modelName: string
  serverId: number
  serverName: string
  status: 'pending' | 'success' | 'failed'
  detail: string | null
  triggeredBy: string
  createdAt: At
  finishedAt: At | null
  progress: { status: string; completedBytes: number; totalBytes: number } | null
}

export interface RegistryCheck {
  modelName: string
  existsOnOllama: boolean
  existsOnHuggingFace: boolean
  isCustom: boolean
  checkedAt: At
}

/** Where requests for a model come in; each may be answered by other servers. */
export const PATHS = [
  '/api/chat',
  '/api/generate',
  '/api/embed',
  '/v1/chat/completions',
  '/v1/embeddings',
  '/v1/messages',
  '/v1/responses',
  '/v1/rerank',
  '/v1/audio/transcriptions',
]

/** To Ollama, any time below nothing: it stays until it is unloaded. */
export const FOR_GOOD = '-1m'

export const DONE: Record<Verb, { now: string; past: string; cannot: string }> = {
  pull: { now: 'Pulling', past: 'pulled', cannot: 'pull' },
  delete: { now: 'Deleting', past: 'deleted', cannot: 'delete' },
  load: { now: 'Loading', past: 'loaded', cannot: 'load' },
  unload: { now: 'Unloading', past: 'unloaded', cannot: 'unload' },
}

/** A server or worker, and how a model is there. */
export interface Home {
  id: number
  name: string
  /** Models can be pulled, loaded and deleted there. */
  tended: boolean
  online: boolean
  how: 'memory' | 'disk' | 'absent'
  vramBytes: number | null
  expiresAt: string | null
}

export function homes(
  model: { name: string; onDisk: readonly number[]; resident: readonly number[] },
  servers: readonly LiveServer[],
  workers: readonly LiveWorker[],
): Home[] {
  const home = (one: (LiveServer | LiveWorker) & Busy, tended: boolean, online: boolean): Home => {
    const held = one.resident.find((each) => each.name === model.name)
    return {
      id: one.id,
      name: one.name,
      tended,
      online,
      how: model.resident.includes(one.id) ? 'memory' : model.onDisk.includes(one.id) ? 'disk' : 'absent',
      vramBytes: held?.vramBytes || null,
      expiresAt: held?.expiresAt ?? null,
    }
  }
  const rank = { memory: 0, disk: 1, absent: 2 }
  return [
    ...servers.map((one) => home(one, one.backendType === 'ollama', one.isOnline)),
    ...workers.map((one) => home(one, false, one.state !== 'not_ready')),
  ].sort((one, other) => rank[one.how] - rank[other.how] || one.name.localeCompare(other.name))
}

/** Memory a model takes: as it is seen where it is loaded, else about its size on disk; null when neither is told. */
export function takes(model: LiveModel, backends: readonly Busy[]): number | null {
  const seen = backends.flatMap((one) => one.resident.filter((each) => each.name === model.name).map((each) => each.vramBytes))
  return Math.max(0, ...seen) || model.sizeBytes || null
}

/** Memory of a server that nothing is in; null when nobody said how much there is. */
export function spare(server: LiveServer): number | null {
  return server.vramTotalBytes === null ? null : Math.max(0, server.vramTotalBytes - server.vramUsedBytes)
}

const standings = new WeakMap<LiveModel, ReadonlyMap<number, 'in memory' | 'on disk'>>()

/** How a model is on each server that has it. Remembered: a matrix of a large fleet asks for it again and again. */
export function standing(model: LiveModel): ReadonlyMap<number, 'in memory' | 'on disk'> {
  let known = standings.get(model)
  if (!known) {
    known = new Map([
      ...model.onDisk.map((id) => [id, 'on disk'] as const),
      ...model.resident.map((id) => [id, 'in memory'] as const),
    ])
    standings.set(model, known)
  }
  return known
}

/** A model nobody has any more, or not yet: its page is there all the same. */
export function unknown(name: string): LiveModel {
  return { name, sizeBytes: 0, parameterSize: null, quantization: null, digests: 0, onDisk: [], resident: [] }
}

/** How much of a pull is done, as a part of one; null while it is not known. */
export function share(pull: Pick<Pull, 'completedBytes' | 'totalBytes'>): number | null {
  return pull.totalBytes > 0 ? Math.min(1, pull.completedBytes / pull.totalBytes) : null
}

/** Load, unload or delete. Answers when it is done; raises with the server's words when it could not be. */
export async function act(
  verb: Exclude<Verb, 'pull'>,
  modelName: string,
  serverId: number,
  options: { acknowledgeCustom?: boolean; keepAlive?: string } = {},
): Promise<void> {
  const body = { modelName, serverId, ...options }
  const done = await api.post<{ status: 'success' | 'failed'; detail: string }>(`/api/models/${verb}`, body)
  if (done.status === 'failed') throw new Error(done.detail)
}

export function isCustom(error: unknown): boolean {
  const body = error instanceof Refused && error.status === 409 ? error.body : null
  return typeof body === 'object' && body !== null && 'reason' in body && body.reason === 'custom_model'
}

export const routes = {
  pull: (modelName: string, serverId: number) => api.post<{ actionId: number }>('/api/models/pull', { modelName, serverId }),
  cancel: (id: number) => api.post(`/api/models/actions/${id}/cancel`),
  actions: (signal: AbortSignal) => api.get<ModelAction[]>('/api/models/actions', { limit: 200 }, signal),
  check: (model: string) => api.get<RegistryCheck>('/api/models/registry-check', { model }),
  explain: (model: string, path: string, signal: AbortSignal) =>
    api.get<Explanation>('/api/models/explain', { model, path }, signal),
}
