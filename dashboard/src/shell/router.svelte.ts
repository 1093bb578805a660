/** Where the user is: the browser's history under /dashboard, as state. The address holds the whole view. */

export const BASE = '/dashboard'

let path = $state(inside(location.pathname))
let search = $state(location.search)

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

/** Go to a path inside the dashboard, with its query. `replace` leaves no entry in the history. */
export function go(to: string, options: { replace?: boolean } = {}): void {
  const url = new URL(BASE + (to === '/' ? '/' : to), location.origin)
  if (url.pathname + url.search === location.pathname + location.search) return
  history[options.replace ? 'replaceState' : 'pushState'](null, '', url)
  const elsewhere = inside(url.pathname) !== path
  arrive()
  if (elsewhere && !options.replace) scrollTo(0, 0)
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
export function amend(changes: Record<string, string | null>, options: { replace?: boolean } = {}): void {
  const query = new URLSearchParams(location.search)
  for (const [name, value] of Object.entries(changes)) {
    if (value === null) query.delete(name)
    else query.set(name, value)
  }
  const text = query.toString()
  go(path + (text ? `?${text}` : ''), { replace: options.replace ?? true })
}

function arrive(): void {
  path = inside(location.pathname)
  search = location.search
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

addEventListener('popstate', arrive)

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
