/**
 * Every page: where it is, what it is called, what key leads to it, and the module that draws it (loaded when it is
 * first looked at). A page is a folder `src/pages/<id>/` whose `index.svelte` is the page; an entry here is all that
 * it needs to be in the navigation, in the palette, on the `?` sheet and in the address bar.
 */

import type { Component } from 'svelte'

import type { IconName } from '$/parts/icons'

export interface Page {
  id: string
  /** Path inside the dashboard; everything under it is the page's too (`place.rest`). */
  path: string
  title: string
  icon: IconName
  /** `g` then this. */
  key: string
  group: 'Now' | 'Then' | 'Plan' | 'Manage'
  admin?: boolean
  /** In the bar of a phone; the others are behind its "More". */
  phone?: boolean
  load: () => Promise<{ default: Component }>
}

export const PAGES: readonly Page[] = [
  {
    id: 'fleet',
    path: '/',
    title: 'Fleet',
    icon: 'fleet',
    key: 'f',
    group: 'Now',
    phone: true,
    load: () => import('$/pages/fleet/index.svelte'),
  },
  {
    id: 'requests',
    path: '/requests',
    title: 'Requests',
    icon: 'requests',
    key: 'r',
    group: 'Now',
    phone: true,
    load: () => import('$/pages/requests/index.svelte'),
  },
  {
    id: 'analytics',
    path: '/analytics',
    title: 'Analytics',
    icon: 'analytics',
    key: 'a',
    group: 'Then',
    load: () => import('$/pages/analytics/index.svelte'),
  },
  {
    id: 'sql',
    path: '/sql',
    title: 'SQL',
    icon: 'sql',
    key: 'q',
    group: 'Then',
    admin: true,
    load: () => import('$/pages/sql/index.svelte'),
  },
  {
    id: 'schedule',
    path: '/schedule',
    title: 'Schedule',
    icon: 'schedule',
    key: 's',
    group: 'Plan',
    phone: true,
    load: () => import('$/pages/schedule/index.svelte'),
  },
  {
    id: 'models',
    path: '/models',
    title: 'Models',
    icon: 'models',
    key: 'm',
    group: 'Manage',
    phone: true,
    load: () => import('$/pages/models/index.svelte'),
  },
  {
    id: 'workers',
    path: '/workers',
    title: 'Workers',
    icon: 'workers',
    key: 'w',
    group: 'Manage',
    load: () => import('$/pages/workers/index.svelte'),
  },
  {
    id: 'users',
    path: '/users',
    title: 'Users and keys',
    icon: 'users',
    key: 'u',
    group: 'Manage',
    load: () => import('$/pages/users/index.svelte'),
  },
  {
    id: 'settings',
    path: '/settings',
    title: 'Settings',
    icon: 'settings',
    key: 't',
    group: 'Manage',
    load: () => import('$/pages/settings/index.svelte'),
  },
]

/** Beside the pages: what else fleetproxy serves. */
export const ELSEWHERE: readonly { title: string; href: string; icon: IconName }[] = [
  { title: 'API', href: '/api/client/', icon: 'api' },
  { title: 'State page', href: '/state', icon: 'state' },
]

/** The page of a path's first segment. */
export function pageAt(segment: string): Page | undefined {
  return PAGES.find((page) => page.path === `/${segment}`)
}
