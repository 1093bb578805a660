/** What the palette (Ctrl/Cmd-K) offers. Pages and stores add to it; the search is over all of it. */

import { untrack } from 'svelte'

import type { IconName } from '$/parts/icons'

export interface Command {
  /** Unique; what was used lately is remembered by it. */
  id: string
  label: string
  /** Heading: "Go to", "Servers", "Models", "Actions". */
  group: string
  /** Said beside the label, in small. */
  hint?: string
  /** More words it is found by. */
  words?: string
  icon?: IconName
  run: () => void
}

type Source = () => readonly Command[]

let sources = $state.raw<readonly Source[]>([])

/** Offer commands for as long as the calling component is there. Called again whenever what it reads changes. */
export function commands(source: Source): void {
  $effect(() => {
    sources = [...untrack(() => sources), source]
    return () => (sources = sources.filter((one) => one !== source))
  })
}

export function allCommands(): Command[] {
  const seen = new Set<string>()
  return sources.flatMap((source) => source()).filter((one) => !seen.has(one.id) && seen.add(one.id))
}

/** Commands that have every word asked for, best first; at most `most`. */
export function search(list: readonly Command[], asked: string, most: number): Command[] {
  const words = asked.toLowerCase().split(/\s+/).filter(Boolean)
  if (words.length === 0) return list.slice(0, most)
  const scored: { command: Command; score: number }[] = []
  for (const command of list) {
    let score = 0
    for (const word of words) {
      const found = worth(command, word)
      if (found === 0) {
        score = -1
        break
      }
      score += found
    }
    if (score > 0) scored.push({ command, score })
  }
  return scored
    .sort((one, other) => other.score - one.score)
    .slice(0, most)
    .map(({ command }) => command)
}

function worth(command: Command, word: string): number {
  const label = command.label.toLowerCase()
  const at = label.indexOf(word)
  if (at === 0) return 4
  if (at > 0) return /[\s:/._-]/.test(label[at - 1] ?? '') ? 3 : 2
  return `${command.group} ${command.hint ?? ''} ${command.words ?? ''}`.toLowerCase().includes(word) ? 1 : 0
}
