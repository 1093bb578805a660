/** What the live stream and the routes around it say (`GET /api/state/live`). Instants are ISO 8601 in UTC. */

export type At = string

export interface Hello {
  boot: string
  resumed: boolean
  at: At
  version: string
  user: string
  isAdmin: boolean
}

export type Breaker = 'closed' | 'open' | 'half_open'

export interface Resident {
  name: string
  sizeBytes: number
  vramBytes: number
  contextLength: number | null
  /** RFC 3339, as the server wrote it. */
  expiresAt: string | null
  loadedAt: At | null
  parameterSize: string | null
  quantization: string | null
}

/** What servers and workers have in common. */
export interface Busy {
  inFlight: number
  /** null: no limit. */
  slots: number | null
  waiting: number
  breaker: Breaker
  /** Answer tokens of the last 10 s. */
  tokensPerSecond: number
  requestsPerSecond: number
  failedLastMinute: number
  lastFailure: { code: string; words: string; at: At } | null
  vramUsedBytes: number
  vramTotalBytes: number | null
  resident: Resident[]
  residentCount: number
  diskCount: number
}

export interface Machine {
  cpuTempC: number | null
  gpuTempC: number | null
  cpuPercent: number | null
  gpuPercent: number | null
  memTotalMb: number | null
  memUsedMb: number | null
  memAvailableMb: number | null
  swapTotalMb: number | null
  swapUsedMb: number | null
  uptimeSeconds: number | null
  diskTotalGb: number | null
  diskUsedGb: number | null
  loadAvg: [number | null, number | null, number | null]
  recentBoots: string[]
}

export type ServerState = 'online' | 'offline' | 'disabled' | 'draining' | 'leaving' | 'unknown'

export interface LiveServer extends Busy {
  id: number
  name: string
  host: string
  url: string
  backendType: 'ollama' | 'vllm' | 'generic'
  version: string | null
  ollamaVersion: string | null
  origin: 'file' | 'api'
  isOnline: boolean
  isDisabled: boolean
  isDraining: boolean
  isLeaving: boolean
  state: ServerState
  since: At | null
  polledAt: At | null
  failedPolls: number
  lastError: string | null
  maxConcurrent: number | null
  embeddingBatchSize: number | null
  totalRamGb: number
  totalVramUsed: number
  vramFreeBytes: number | null
  modelLoadTimes: Record<string, At>
  systemMetrics: Machine | null
}

export type WorkerState = 'idle' | 'working' | 'not_ready' | 'draining'

export interface LiveWorker extends Busy {
  id: number
  workerId: string
  name: string
  family: 'llm' | 'asr'
  protocol: 'fleetproxy.v1' | 'nfrx'
  version: string
  host: string
  remote: string
  backendFamily: string
  backendVersion: string
  state: WorkerState
  isDraining: boolean
  /** Drained by an operator here: that can be taken back. */
  drainedHere: boolean
  models: string[]
  modelCount: number
  connectedAt: At
  lastHeartbeat: At
  cpuPercent: number
  ramPercent: number
  processed: number
  failed: number
  embeddingBatchSize: number | null
}

export interface LiveRelay {
  id: number
  relayId: string
  name: string
  version: string
  remote: string
  connectedAt: At
  lastHeartbeat: At
  inFlight: number
  isDraining: boolean
  drainedHere: boolean
  functions: Record<string, number>
  calls: { id: string; method: string; startedAt: At }[]
}

export interface Transfers {
  open: number
  bytesTotal: number
  counts: Record<string, number>
}

export interface Totals {
  servers: number
  serversOnline: number
  serversUsable: number
  workers: number
  relays: number
  inFlight: number
  slots: number | null
  waiting: number
  tokensPerSecond: number
  tokensInPerSecond: number
  requestsPerSecond: number
  failedLastMinute: number
  vramUsedBytes: number
  vramTotalBytes: number
  models: number
  modelsResident: number
  draining: boolean
  processes: string[]
  store: { ok: boolean; trouble: string | null; detail: string | null }
}

export interface FleetFrame {
  whole: boolean
  at: At
  servers: LiveServer[]
  workers: LiveWorker[]
  relays: LiveRelay[]
  removed: { servers: number[]; workers: number[]; relays: number[] }
  totals: Totals
  transfers: Transfers
}

export interface LiveModel {
  name: string
  sizeBytes: number
  parameterSize: string | null
  quantization: string | null
  digests: number
  /** Ids of servers and workers. */
  onDisk: number[]
  resident: number[]
}

export interface ModelsFrame {
  whole: boolean
  models: LiveModel[]
  removed: string[]
}

export type Outcome = 'ok' | 'refused' | 'backend_error' | 'truncated' | 'client_gone' | 'aborted'

export interface RequestRow {
  /** null in the stream: the key is requestId. */
  id: number | null
  requestId: string
  createdAt: At
  sourceIp: string
  user: string | null
  model: string | null
  modelServed: string | null
  endpoint: string
  route: string
  method: string
  family: string
  dialect: string
  targetHost: string | null
  serverName: string | null
  serverId: number | null
  statusCode: number | null
  outcome: Outcome
  error: string | null
  routingReason: string | null
  retries: number
  streamed: boolean
  durationMs: number
  queueMs: number
  ttftMs: number | null
  overheadMs: number | null
  bytesIn: number
  bytesOut: number
  tokensIn: number | null
  tokensOut: number | null
}

export interface RequestsFrame {
  rows: RequestRow[]
  skipped: number
}

export type ChangeKind =
  | 'model_loaded'
  | 'model_unloaded'
  | 'server_online'
  | 'server_offline'
  | 'server_reboot'
  | 'server_deploy'
  | 'breaker_open'
  | 'breaker_closed'
  | 'server_added'
  | 'server_removed'
  | 'server_changed'
  | 'worker_joined'
  | 'worker_left'
  | 'worker_changed'
  | 'job_ok'
  | 'job_failed'

export interface Change {
  n: number
  at: At
  kind: ChangeKind
  subject: string
  serverId: number | null
  model: string | null
  text: string
  level: 'info' | 'good' | 'warn' | 'bad'
}

export interface ChangesFrame {
  whole: boolean
  events: Change[]
}

export interface Pull {
  actionId: number
  modelName: string
  serverId: number
  serverName: string
  status: string
  completedBytes: number
  totalBytes: number
}

/** Event name -> what it carries. */
export interface Frames {
  hello: Hello
  fleet: FleetFrame
  models: ModelsFrame
  requests: RequestsFrame
  events: ChangesFrame
  pulls: { pulls: Pull[] }
  bye: { reason: 'unauthorized' | 'closing' }
}
