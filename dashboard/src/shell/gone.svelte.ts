/** What is open and goes away meanwhile (a worker that leaves, a job somebody deletes) is closed, and that is said. */

import { untrack } from 'svelte'

import { place } from './router.svelte'
import { toast } from './toasts.svelte'

export function whenGone(view: {
  /** What the address opens; empty for nothing. */
  open: () => string
  /** The name of what is there by it; null when nothing is. */
  name: () => string | null
  /** What is there is known by now. */
  known: () => boolean
  close: () => void
}): void {
  // On the way to another page the address is that page's already.
  const page = place.page
  let last: { open: string; name: string } | null = null
  $effect(() => {
    if (place.page !== page) return
    const [open, name, known] = [view.open(), view.name(), view.known()]
    if (open && name !== null) last = { open, name }
    else if (open && known) {
      untrack(() => {
        toast('info', last?.open === open ? `${last.name} is gone.` : 'What this address opens is gone.')
        view.close()
      })
    }
  })
}
