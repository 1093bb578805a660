/** An answer as the rows and columns of a table: every value exactly as it came. */

import type { Cell, Column } from '$/parts/columns'

import { isNumber, isTime, type Result } from './sql'

export interface Line {
  at: number
  cells: Cell[]
}

export function linesOf(result: Result): Line[] {
  return result.rows.map((cells, at) => ({ at, cells }))
}

export function columnsOf(result: Result): Column<Line>[] {
  return result.columns.map(({ name, type }, at) => ({
    id: `${at}.${name}`,
    label: name,
    value: (row) => plain(row.cells[at]),
    text: (row) => shown(row.cells[at], type),
    end: isNumber(type),
    mono: !isNumber(type) && !isTime(type),
    width: isNumber(type) ? 120 : isTime(type) ? 236 : Math.max(120, Math.min(320, widest(result, at) * 8 + 24)),
  }))
}

function plain(cell: unknown): Cell {
  return cell === null || typeof cell !== 'object' ? (cell as Cell) : JSON.stringify(cell)
}

function shown(cell: unknown, type: string): string {
  if (cell === null || cell === undefined) return 'NULL'
  if (typeof cell === 'object') return JSON.stringify(cell)
  if (isTime(type)) return String(cell).replace('T', ' ')
  // Whoever asks in SQL wants no rounding.
  return typeof cell === 'number' ? cell.toLocaleString(undefined, { maximumFractionDigits: 12, useGrouping: false }) : String(cell)
}

/** Characters of the longest value of a column, as far as fifty rows tell. */
function widest(result: Result, at: number): number {
  return result.rows.slice(0, 50).reduce((most, row) => Math.max(most, String(plain(row[at]) ?? '').length), result.columns[at]?.name.length ?? 0)
}
