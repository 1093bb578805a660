/** Dark, light, or as the system has it. `public/theme.js` has set the first one before anything was painted. */

import { remembered } from './remembered.svelte'

export type Theme = 'system' | 'dark' | 'light'
export const THEMES: readonly Theme[] = ['system', 'light', 'dark']

const chosen = remembered<Theme>('theme', 'system')
const system = matchMedia('(prefers-color-scheme: dark)')
let system_dark = $state(system.matches)
system.addEventListener('change', (event) => (system_dark = event.matches))

export const theme = {
  get chosen(): Theme {
    return chosen.value
  },
  set chosen(value: Theme) {
    chosen.value = value
  },
  get dark(): boolean {
    return chosen.value === 'dark' || (chosen.value !== 'light' && system_dark)
  },
}

$effect.root(() => {
  $effect(() => {
    document.documentElement.dataset['theme'] = theme.dark ? 'dark' : 'light'
  })
})
