/** What is being done to models by this browser: loads and unloads take a while, and are shown while they last. */

import { attempt } from '$/shell/toasts.svelte'

import { act, DONE, FOR_GOOD, routes, type Verb } from './models'

let doing = $state.raw<ReadonlyMap<string, Verb>>(new Map())

function key(model: string, serverId: number): string {
  return `${serverId} ${model}`
}

export function underWay(model: string, serverId: number): Verb | null {
  return doing.get(key(model, serverId)) ?? null
}

/** Load or unload a model, and say how it went. */
export async function perform(verb: 'load' | 'unload', model: string, serverId: number, server: string, keepAlive?: string): Promise<void> {
  const mine = key(model, serverId)
  doing = new Map(doing).set(mine, verb)
  try {
    await attempt(() => act(verb, model, serverId, keepAlive === undefined ? {} : { keepAlive }), {
      done: keepAlive === FOR_GOOD ? `${model} stays in the memory of ${server}.` : `${model} was ${DONE[verb].past} on ${server}.`,
      failed: `Could not ${DONE[verb].cannot} ${model} on ${server}`,
      retry: true,
    })
  } finally {
    const rest = new Map(doing)
    rest.delete(mine)
    doing = rest
  }
}

export function cancelPull(actionId: number, model: string): void {
  void attempt(() => routes.cancel(actionId), {
    done: `The pull of ${model} was stopped; what was fetched stays for the next try.`,
    failed: `Could not stop the pull of ${model}`,
  })
}
