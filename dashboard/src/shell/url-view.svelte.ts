/**
 * The state of a view, kept in the address: typed parameters with defaults. What equals its default is left out, so
 * that addresses stay short and can be shared.
 *
 *     const view = urlView({ q: text(), sort: text('-started'), state: choice(['all', 'failed'], 'all'), page: number(1) })
 *     view.q              // reactive
 *     view.q = 'llama'    // replaces the address
 *     <Table bind:sort={() => view.sort, (value) => (view.sort = value)} />
 */

import { amend, place } from './router.svelte'

export interface Parameter<Value> {
  initial: Value
  read: (text: string) => Value
  write: (value: Value) => string
  /** Opening is a step of its own: the browser's Back closes it. */
  step?: boolean
}

export function text(initial = ''): Parameter<string> {
  return { initial, read: (given) => given, write: (value) => value }
}

/** What is open beside the list, by its key; empty for nothing. */
export function opens(): Parameter<string> {
  return { ...text(), step: true }
}

export function number(initial: number): Parameter<number> {
  return {
    initial,
    read: (given) => (given.trim() !== '' && Number.isFinite(Number(given)) ? Number(given) : initial),
    write: String,
  }
}

export function flag(initial = false): Parameter<boolean> {
  return { initial, read: (given) => given === '1', write: (value) => (value ? '1' : '0') }
}

/** One of these words; anything else in the address is the default. */
export function choice<const Word extends string>(words: readonly Word[], initial: Word): Parameter<Word> {
  return { initial, read: (given) => words.find((word) => word === given) ?? initial, write: (value) => value }
}

/** Several words, comma-separated. */
export function list(initial: readonly string[] = []): Parameter<readonly string[]> {
  return {
    initial,
    read: (given) => given.split(',').filter(Boolean).map(decodeURIComponent),
    write: (value) => value.map(encodeURIComponent).join(','),
  }
}

type Values<Shape> = { [Name in keyof Shape]: Shape[Name] extends Parameter<infer Value> ? Value : never }

export function urlView<Shape extends Record<string, Parameter<any>>>(shape: Shape): Values<Shape> {
  const view = {} as Values<Shape>
  for (const [name, parameter] of Object.entries(shape)) {
    Object.defineProperty(view, name, {
      enumerable: true,
      get() {
        const given = place.query.get(name)
        return given === null ? parameter.initial : parameter.read(given)
      },
      set(value) {
        const written = parameter.write(value)
        const nothing = written === parameter.write(parameter.initial)
        const how = !parameter.step ? { replace: true } : nothing ? { leave: true } : { replace: place.query.has(name) }
        amend({ [name]: nothing ? null : written }, how)
      },
    })
  }
  return view
}
