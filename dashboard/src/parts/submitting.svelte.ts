/** A form on its way: busy until what it does is done; when that fails, why. */

import { words } from '$/api'

export interface Submitting {
  readonly busy: boolean
  readonly failure: string | null
  /** For `onsubmit`. */
  go: (event: SubmitEvent) => Promise<void>
}

export function submitting(submit: () => Promise<unknown>): Submitting {
  let busy = $state(false)
  let failure = $state<string | null>(null)
  return {
    get busy() {
      return busy
    },
    get failure() {
      return failure
    },
    async go(event) {
      event.preventDefault()
      if (busy) return
      busy = true
      failure = null
      try {
        await submit()
      } catch (error) {
        failure = words(error)
      } finally {
        busy = false
      }
    },
  }
}
