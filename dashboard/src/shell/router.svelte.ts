/** Where the user is: the browser's history under /dashboard, as state. The address holds the whole view. */

export const BASE = '/dashboard'

let path = $state(inside(location.pathname))
let search = $state(location.search)
/** On the way back, until the browser says that it is there. */
let leaving = false

export const place = {
  /** Path inside the dashboard: `/`, `/requests`, `/models/llama3.2:3b`. */
  get path(): string {
    return path
  },
  /** Its first segment: which page. */
  get page(): string {
    return path.split('/')[1] ?? ''
  },
  /** What follows the page's segment, decoded: `llama3.2:3b`. */
  get rest(): string {
    return path.split('/').slice(2).map(decoded).join('/')
  },
  get query(): URLSearchParams {
    return new URLSearchParams(search)
  },
}

export interface How {
  /** Leaves no entry in the history. */
  replace?: boolean
  /** Back to where one was before something was opened, if nothing else has changed: then as the browser's Back does. */
  leave?: boolean
}

/** What an entry of the history knows: the address it was reached from. */
interface Entry {
  before?: string
}

/** Go to a path inside the dashboard, with its query. */
export function go(to: string, how: How = {}): void {
  const url = new URL(BASE + (to === '/' ? '/' : to), location.origin)
  const [wanted, here] = [url.pathname + url.search, location.pathname + location.search]
  if (wanted === here) return
  if (how.leave && (history.state as Entry | null)?.before === wanted) {
    // The browser goes back in its own time; what is shown is there at once.
    show(url)
    if (!leaving) history.back()
    leaving = true
    return
  }
  if (how.replace || how.leave) history.replaceState(history.state, '', url)
  else history.pushState({ before: here } satisfies Entry, '', url)
  const elsewhere = inside(url.pathname) !== path
  show(url)
  if (elsewhere && !how.replace && !how.leave) scrollTo(0, 0)
}

/** The address of a path inside the dashboard, for `href`. */
export function href(to: string): string {
  return BASE + to
}

/** A path under a page for a name, whatever is in it: `under('/models', 'org/name:tag')`. */
export function under(path: string, name: string): string {
  return `${path}/${name.split('/').map(encodeURIComponent).join('/')}`
}

/** Change some of the query's parameters; null takes one out. */
export function amend(changes: Record<string, string | null>, how: How = { replace: true }): void {
  const query = new URLSearchParams(search)
  for (const [name, value] of Object.entries(changes)) {
    if (value === null) query.delete(name)
    else query.set(name, value)
  }
  const text = query.toString()
  go(path + (text ? `?${text}` : ''), how)
}

function show(at: URL | Location): void {
  path = inside(at.pathname)
  search = at.search
}

function inside(pathname: string): string {
  const rest = pathname.startsWith(BASE) ? pathname.slice(BASE.length) : pathname
  return rest.replace(/\/+$/, '') || '/'
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}

addEventListener('popstate', () => {
  leaving = false
  show(location)
})

/** Links into the dashboard are followed without a reload, unless the user asks for a new tab or window. */
document.addEventListener('click', (event) => {
  if (event.defaultPrevented || event.button !== 0) return
  if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return
  const link = event.target instanceof Element ? event.target.closest('a') : null
  if (!link || link.target || link.hasAttribute('download') || link.origin !== location.origin) return
  if (link.pathname !== BASE && !link.pathname.startsWith(`${BASE}/`)) return
  event.preventDefault()
  if (link.hash && link.pathname === location.pathname) {
    document.querySelector<HTMLElement>(link.hash)?.focus()
    return
  }
  go(inside(link.pathname) + link.search)
})
