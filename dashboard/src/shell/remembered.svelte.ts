/** A choice of this browser's user: kept in its storage, the same in all of its tabs. */

const PREFIX = 'fleetproxy.'

export interface Remembered<Value> {
  value: Value
}

export function remembered<Value>(name: string, initial: Value): Remembered<Value> {
  const key = PREFIX + name
  let current = $state.raw(read(key, initial))
  addEventListener('storage', (event) => {
    if (event.key === key) current = read(key, initial)
  })
  return {
    get value() {
      return current
    },
    set value(value: Value) {
      current = value
      try {
        localStorage.setItem(key, typeof value === 'string' ? value : JSON.stringify(value))
      } catch {
        // Storage is off or full: the choice holds until the page is left.
      }
    },
  }
}

function read<Value>(key: string, initial: Value): Value {
  try {
    const text = localStorage.getItem(key)
    if (text === null) return initial
    return typeof initial === 'string' ? (text as Value) : (JSON.parse(text) as Value)
  } catch {
    return initial
  }
}
