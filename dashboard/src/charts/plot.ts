/** What a Chart asks of uPlot: its options, from what is to be drawn and how it is to look. */

import uPlot from 'uplot'

import type { Unit } from '$/words/quantities'
import { quantity } from '$/words/quantities'

export interface Series {
  id: string
  label: string
  /** Parallel to the chart's times; null is a gap. */
  values: readonly (number | null)[]
  /** 1 to 8 of the palette; by position without one. */
  color?: number
  /** Its own unit, where it is not the chart's. */
  unit?: Unit
}

/** Something that happened: drawn as a line from top to bottom. */
export interface Mark {
  at_ms: number
  label: string
  tone?: 'good' | 'warn' | 'bad' | 'info'
}

export type Kind = 'line' | 'area' | 'bars' | 'stack'

export interface Look {
  kind: Kind
  log: boolean
  unit: Unit
  /** IANA name; undefined is the browser's. */
  zone: string | undefined
  marks: readonly Mark[]
  hidden: ReadonlySet<string>
}

export interface Hooks {
  /** The user has drawn a stretch; ms. */
  zoomed: (from_ms: number, to_ms: number) => void
  reset: () => void
  /** The cursor is at this index of the times, at these CSS px of the plot; null when it left. */
  moved: (index: number | null, left: number, top: number) => void
}

/** Steps between counts. */
const WHOLE = Array.from({ length: 12 }, (_, power) => [1, 2, 5].map((one) => one * 10 ** power)).flat()

const DASHES = [[], [6, 3], [2, 3], [9, 3, 2, 3]]

/** A line's dash: series that share a colour differ in it, and so do all to those who see no colours. */
export function dash(index: number): number[] {
  return DASHES[Math.floor(index / 8) % DASHES.length] ?? []
}

export function colorVariable(series: Series, index: number): string {
  return `--series-${series.color ?? (index % 8) + 1}`
}

/** Times and values as uPlot takes them. On a log scale what is not above 0 has no place; stacks are added up. */
export function data(times_s: readonly number[], series: readonly Series[], look: Look): uPlot.AlignedData {
  const columns: (number | null)[][] = series.map((one) =>
    one.values.map((value) => (look.log && value !== null && value <= 0 ? null : value)),
  )
  if (look.kind === 'stack') {
    const sums: (number | null)[] = times_s.map(() => null)
    columns.forEach((column, which) => {
      if (look.hidden.has(series[which]?.id ?? '')) return
      column.forEach((value, index) => {
        if (value !== null) sums[index] = (sums[index] ?? 0) + value
        column[index] = value === null ? null : (sums[index] ?? null)
      })
    })
    columns.reverse() // the highest is drawn first, the others over it
  }
  return [[...times_s], ...columns] as uPlot.AlignedData
}

export function options(
  element: HTMLElement,
  size: { width: number; height: number },
  series: readonly Series[],
  look: Look,
  hooks: Hooks,
  group: string | undefined,
): uPlot.Options {
  const style = getComputedStyle(element)
  const color = (name: string) => style.getPropertyValue(name).trim()
  const axis: uPlot.Axis = {
    stroke: color('--text-3'),
    font: `11px ${style.getPropertyValue('--font')}`,
    grid: { stroke: color('--line'), width: 1 },
    ticks: { show: false },
  }
  const drawn = series.map((one, index) => line(one, index, look, color))
  if (look.kind === 'stack') drawn.reverse()
  return {
    ...size,
    padding: [10, 8, 0, 0],
    tzDate: (at_s) => (look.zone ? uPlot.tzDate(new Date(at_s * 1000), look.zone) : new Date(at_s * 1000)),
    legend: { show: false },
    cursor: {
      y: false,
      drag: { x: true, y: false, setScale: false },
      ...(group === undefined ? {} : { sync: { key: group } }),
      points: { size: 7 },
      bind: {
        dblclick: () => () => {
          hooks.reset()
          return null
        },
      },
    },
    scales: {
      // Half a step before the first and after the last: neither is cut off at the edge.
      x: { time: true, range: (plot, low, high) => around(plot.data[0], low, high) },
      y: look.log
        ? { distr: 3, range: (_, low, high) => [10 ** Math.floor(Math.log10(low || 1)), 10 ** Math.ceil(Math.log10(high || 1))] }
        : { range: (_, low, high) => [Math.min(0, low ?? 0), high > 0 ? high * 1.08 : 1] },
    },
    axes: [
      { ...axis, size: 28, gap: 6, space: 70, values: (_, splits, __, ___, step_s) => times(splits, step_s, look.zone) },
      {
        ...axis,
        size: 62,
        gap: 6,
        space: 34,
        values: (_, splits) => splits.map((value) => (value == null ? '' : quantity(value, look.unit))),
        ...(look.log ? { filter: (_, splits) => splits.map((v) => (Number.isInteger(Math.log10(v)) ? v : null)) } : {}),
        // Half a request is nothing one could count.
        ...(look.unit === 'count' && !look.log ? { incrs: WHOLE } : {}),
      },
    ],
    series: [{}, ...drawn],
    hooks: {
      setSelect: [
        (plot) => {
          const { left, width } = plot.select
          if (width < 4) return
          hooks.zoomed(plot.posToVal(left, 'x') * 1000, plot.posToVal(left + width, 'x') * 1000)
          plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false)
        },
      ],
      setCursor: [(plot) => hooks.moved(plot.cursor.idx ?? null, plot.cursor.left ?? -1, plot.cursor.top ?? -1)],
      draw: [(plot) => drawMarks(plot, look.marks, color)],
    },
  }
}

function line(one: Series, index: number, look: Look, color: (name: string) => string): uPlot.Series {
  const stroke = color(colorVariable(one, index))
  const bars = look.kind === 'bars'
  return {
    label: one.label,
    show: !look.hidden.has(one.id),
    stroke,
    width: bars ? 0 : 1.75,
    dash: dash(index),
    // A value between two gaps makes no line: it is shown as a point.
    points: bars ? { show: false } : { show: true, size: 5, fill: stroke, filter: (plot, at) => alone(plot.data[at] ?? []) },
    ...(look.kind === 'stack' ? { fill: mixed(stroke, color('--surface')) } : {}),
    ...(look.kind === 'area' ? { fill: `${stroke}2b` } : {}),
    ...(bars ? { fill: stroke, paths: uPlot.paths.bars?.({ size: [0.75, 34], radius: 0.15 }) } : {}),
  } as uPlot.Series
}

/** What the times span, and half a step more at each end. A stretch drawn inside a chart is left as it is. */
function around(times_s: ArrayLike<number>, low: number | null, high: number | null): [number, number] {
  const [first, last] = [times_s[0], times_s[times_s.length - 1]]
  if (first === undefined || last === undefined) return [low ?? 0, high ?? 1]
  const half = ((times_s[1] ?? first + 60) - first) / 2
  return low === null || high === null || (low <= first && high >= last) ? [first - half, last + half] : [low, high]
}

/** Where a value has none beside it. */
function alone(values: ArrayLike<number | null | undefined>): number[] {
  const found = []
  for (let at = 0; at < values.length; at += 1) {
    if (values[at] != null && values[at - 1] == null && values[at + 1] == null) found.push(at)
  }
  return found
}

/** A third of one colour on another, opaque, so that what lies under it does not shine through. */
function mixed(over: string, under: string): string {
  const parts = (hex: string) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16))
  const [one, other] = [parts(over), parts(under)]
  return `rgb(${one.map((part, at) => Math.round(part * 0.38 + (other[at] ?? 0) * 0.62)).join(' ')})`
}

function times(splits: number[], step_s: number, zone: string | undefined): string[] {
  let day = ''
  return splits.map((at_s) => {
    const date = new Date(at_s * 1000)
    const own = date.toLocaleDateString(undefined, { month: 'short', day: 'numeric', timeZone: zone })
    if (step_s >= 86_400) return own
    const clock = date.toLocaleTimeString(undefined, {
      hour: '2-digit',
      minute: '2-digit',
      ...(step_s < 60 ? { second: '2-digit' as const } : {}),
      hourCycle: 'h23',
      timeZone: zone,
    })
    const turned = day !== '' && day !== own
    day = own
    return turned ? own : clock
  })
}

function drawMarks(plot: uPlot, marks: readonly Mark[], color: (name: string) => string): void {
  const { ctx, bbox } = plot
  const dots = devicePixelRatio
  ctx.save()
  for (const mark of marks) {
    const x = plot.valToPos(mark.at_ms / 1000, 'x', true)
    if (x < bbox.left || x > bbox.left + bbox.width) continue
    ctx.strokeStyle = ctx.fillStyle = color(mark.tone && mark.tone !== 'info' ? `--${mark.tone}` : '--text-3')
    ctx.lineWidth = dots
    ctx.setLineDash([3 * dots, 3 * dots])
    ctx.beginPath()
    ctx.moveTo(x, bbox.top)
    ctx.lineTo(x, bbox.top + bbox.height)
    ctx.stroke()
    ctx.setLineDash([])
    ctx.beginPath()
    ctx.moveTo(x - 4 * dots, bbox.top)
    ctx.lineTo(x + 4 * dots, bbox.top)
    ctx.lineTo(x, bbox.top + 6 * dots)
    ctx.fill()
  }
  ctx.restore()
}
