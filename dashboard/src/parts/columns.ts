import type { Snippet } from 'svelte'

export type Cell = string | number | boolean | null | undefined

/** One column of a Table. */
export interface Column<Row> {
  id: string
  label: string
  /** What it is sorted, filtered and exported by; shown as it is where there is no `cell`. */
  value: (row: Row) => Cell
  /** Shows the value; told which column it is in, so that one snippet may serve many. */
  cell?: Snippet<[Row, Column<Row>]>
  /** As text, for values that are written otherwise than they are sorted. */
  text?: (row: Row) => string
  /** Width in px; without one the columns share what is left (at least 150). */
  width?: number
  /** Stays in sight while the others scroll sideways: the first column alone. */
  stuck?: boolean
  /** Numbers stand at the right. */
  end?: boolean
  mono?: boolean
  sortable?: boolean
  /** Not shown until the user asks for it. */
  hidden?: boolean
  /** Left out where there is no room for all, the last of them first, unless the user asks for it. */
  wide?: boolean
}

const LEAST_PX = 150

/** Room that columns need, px. */
export function together_px<Row>(columns: readonly Column<Row>[]): number {
  return columns.reduce((sum, one) => sum + (one.width ?? LEAST_PX), 0)
}

/** Ids of the columns shown where nobody has chosen: those that may be left out go, the last first, until the rest fits. */
export function fitting<Row>(columns: readonly Column<Row>[], room_px: number): string[] {
  let left = columns.filter((one) => !one.hidden)
  while (together_px(left) > room_px) {
    const last = left.findLast((one) => one.wide)
    if (!last) break
    left = left.filter((one) => one !== last)
  }
  return left.map((one) => one.id)
}

/** Order of two cells: numbers by size, words by the language, nothing last. */
export function order(one: Cell, other: Cell): number {
  const nothing = one === null || one === undefined || one === ''
  const none = other === null || other === undefined || other === ''
  if (nothing || none) return Number(nothing) - Number(none)
  if (typeof one === 'number' && typeof other === 'number') return one - other
  return String(one).localeCompare(String(other), undefined, { numeric: true, sensitivity: 'base' })
}

/** Rows by `sort`: a column's id, with a minus before it for the largest first. Nothing stays last either way. */
export function sorted<Row>(rows: readonly Row[], columns: readonly Column<Row>[], sort: string): readonly Row[] {
  const down = sort.startsWith('-')
  const column = columns.find((one) => one.id === (down ? sort.slice(1) : sort))
  if (!column) return rows
  return rows
    .map((row) => ({ row, value: column.value(row) }))
    .sort((one, other) => {
      const found = order(one.value, other.value)
      const missing = one.value == null || one.value === '' || other.value == null || other.value === ''
      return down && !missing ? -found : found
    })
    .map(({ row }) => row)
}

/** Rows in which every word is found, in any column. */
export function filtered<Row>(rows: readonly Row[], columns: readonly Column<Row>[], asked: string): readonly Row[] {
  const words = asked.toLowerCase().split(/\s+/).filter(Boolean)
  if (words.length === 0) return rows
  return rows.filter((row) => {
    const all = columns.map((column) => column.text?.(row) ?? column.value(row) ?? '').join(' ').toLowerCase()
    return words.every((word) => all.includes(word))
  })
}

/** Comma-separated values, as RFC 4180 has them. Cells that a spreadsheet would run as a formula are defused. */
export function csv(head: readonly string[], rows: readonly (readonly Cell[])[]): string {
  return [head, ...rows].map((row) => row.map(csvCell).join(',')).join('\r\n') + '\r\n'
}

function csvCell(cell: Cell): string {
  if (cell === null || cell === undefined) return ''
  const text = String(cell)
  const safe = typeof cell === 'string' && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe
}

/** Hand a file to the user. */
export function download(name: string, content: string, type = 'text/csv;charset=utf-8'): void {
  const url = URL.createObjectURL(new Blob([content], { type }))
  const link = document.createElement('a')
  link.href = url
  link.download = name
  link.click()
  setTimeout(() => URL.revokeObjectURL(url), 10_000)
}
