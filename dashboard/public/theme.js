// Runs before the first paint; `src/shell/theme.svelte.ts` takes over from here.
;(function () {
  var chosen = 'system'
  try {
    chosen = localStorage.getItem('fleetproxy.theme') || 'system'
  } catch (error) {
    // Storage is off: the system decides.
  }
  var dark = chosen === 'dark' || (chosen !== 'light' && matchMedia('(prefers-color-scheme: dark)').matches)
  document.documentElement.dataset.theme = dark ? 'dark' : 'light'
})()
