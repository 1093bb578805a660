/** Keys that do something, from wherever they are declared; the `?` sheet lists what is in force. */

import { untrack } from 'svelte'

export interface Shortcut {
  /** `j`, `/`, `?`, `mod+k`, `g f` (one after the other), `Escape`. */
  keys: string
  /** In words, for the sheet. */
  does: string
  /** Heading on the sheet. */
  group: string
  /** Without it the key is only told of: what has the focus acts on it by itself. */
  run?: (event: KeyboardEvent) => void
  /** Works in text fields and dialogs too. */
  everywhere?: boolean
}

const SEQUENCE_MS = 1200

let declared = $state.raw<readonly Shortcut[]>([])
let begun: { key: string; at_ms: number } | null = null

/** Declare shortcuts for as long as the calling component is there. The latest declared comes first. */
export function shortcuts(list: () => readonly Shortcut[]): void {
  $effect(() => {
    const mine = list()
    declared = [...mine, ...untrack(() => declared)]
    return () => (declared = declared.filter((one) => !mine.includes(one)))
  })
}

export function inForce(): readonly Shortcut[] {
  return declared
}

addEventListener('keydown', (event) => {
  if (event.defaultPrevented || event.isComposing || event.altKey) return
  const mod = event.ctrlKey || event.metaKey
  const key = mod ? `mod+${event.key.toLowerCase()}` : event.key
  const busy = typing(event.target) || document.querySelector('dialog:modal') !== null
  const open = declared.filter((one) => one.run && (one.everywhere || !busy))
  const previous = begun && event.timeStamp - begun.at_ms < SEQUENCE_MS ? begun.key : null
  begun = null
  const found =
    (previous !== null && open.find((one) => one.keys === `${previous} ${key}`)) || open.find((one) => one.keys === key)
  if (found) {
    event.preventDefault()
    found.run?.(event)
  } else if (!mod && open.some((one) => one.keys.startsWith(`${key} `))) {
    begun = { key, at_ms: event.timeStamp }
  }
})

function typing(target: EventTarget | null): boolean {
  if (!(target instanceof HTMLElement)) return false
  if (target.isContentEditable || target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement) return true
  return target instanceof HTMLInputElement && !['checkbox', 'radio', 'button', 'submit', 'range'].includes(target.type)
}
