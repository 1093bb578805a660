/** Draining workers and relays: shown at once, taken back when it fails, forgotten when the stream says so itself. */

import { api } from '$/api'
import { attempt } from '$/shell/toasts.svelte'

interface Visitor {
  id: number
  name: string
  isDraining: boolean
  drainedHere: boolean
}

let wanted = $state.raw<ReadonlyMap<number, boolean>>(new Map())

function want(id: number, on: boolean | null): void {
  const next = new Map(wanted)
  if (on === null) next.delete(id)
  else next.set(id, on)
  wanted = next
}

/** Whether it gets nothing new, as far as we have said or been told. */
export function draining(visitor: Visitor): boolean {
  return wanted.get(visitor.id) ?? visitor.isDraining
}

/** It drains by its own will: that cannot be taken back from here. */
export function onItsOwn(visitor: Visitor): boolean {
  return visitor.isDraining && !visitor.drainedHere
}

export async function setDraining(visitor: Visitor, on: boolean): Promise<void> {
  want(visitor.id, on)
  await attempt(() => api.patch(`/api/workers/${visitor.id}`, { isDraining: on }), {
    done: on ? `${visitor.name} is draining: what it is at ends, no new work comes.` : `${visitor.name} gets work again.`,
    failed: `Could not ${on ? 'drain' : 'undrain'} ${visitor.name}`,
    retry: true,
  })
  want(visitor.id, null)
}
