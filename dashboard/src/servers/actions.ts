/** What an administrator may do to a backend. Shown at once, taken back when it fails. */

import { api } from '$/api'
import { assume } from '$/live/stores.svelte'
import type { Item } from '$/parts/Menu.svelte'
import { attempt } from '$/shell/toasts.svelte'

import type { Backend } from './backends'
import { draining, onItsOwn, setDraining as drainVisitor } from './drain.svelte'

export async function setDraining(backend: Backend, on: boolean): Promise<void> {
  if (backend.worker) return drainVisitor(backend.worker, on)
  const undo = assume(backend.id, { isDraining: on, state: on ? 'draining' : 'online' })
  const worked = await attempt(() => api.patch(`/api/servers/${backend.id}`, { isDraining: on }), {
    done: on
      ? `${backend.name} is draining: open requests end, no new ones come.`
      : `${backend.name} takes requests again.`,
    failed: `Could not ${on ? 'drain' : 'undrain'} ${backend.name}`,
    retry: true,
  })
  if (!worked) undo()
}

export async function setMaintenance(backend: Backend, on: boolean): Promise<void> {
  const undo = assume(backend.id, { isDisabled: on, state: on ? 'disabled' : 'online' })
  const worked = await attempt(() => api.patch(`/api/servers/${backend.id}`, { isDisabled: on }), {
    done: on ? `${backend.name} is in maintenance: nothing is sent to it.` : `${backend.name} is back from maintenance.`,
    failed: `Could not change ${backend.name}`,
    retry: true,
  })
  if (!worked) undo()
}

export async function pollNow(): Promise<void> {
  await attempt(() => api.post('/api/poll'), { done: 'Every server was asked anew.', failed: 'Could not poll' })
}

/** The same as a menu; empty for those who may not. */
export function items(backend: Backend, isAdmin: boolean): Item[] {
  if (!isAdmin) return []
  const rests = backend.server?.isDraining ?? (backend.worker !== null && draining(backend.worker))
  const list: Item[] = [
    rests
      ? {
          label: 'Undrain',
          icon: 'play',
          disabled: backend.worker !== null && onItsOwn(backend.worker),
          run: () => void setDraining(backend, false),
        }
      : { label: 'Drain', icon: 'drain', run: () => void setDraining(backend, true) },
  ]
  if (backend.server) {
    const off = backend.server.isDisabled
    list.push({
      label: off ? 'End maintenance' : 'Maintenance',
      icon: 'wrench',
      run: () => void setMaintenance(backend, !off),
    })
  }
  return list
}
