/** Server-sent events by `fetch`: unlike EventSource it tells the status of a refusal and takes a Last-Event-ID. */

export interface Message {
  event: string
  data: string
  id: string | null
}

/** Give each event of a response's body to `hear`, and each arrival of bytes (pings too) to `arrived`. */
export async function readEvents(
  body: ReadableStream<Uint8Array>,
  hear: (message: Message) => void,
  arrived: () => void,
): Promise<void> {
  const reader = body.pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>).getReader()
  let rest = ''
  let event = 'message'
  let id: string | null = null
  let data: string[] = []
  for (;;) {
    const { value, done } = await reader.read()
    if (done) return
    arrived()
    const lines = (rest + value).split(/\r\n|\n|\r(?!$)/)
    rest = lines.pop() ?? ''
    for (const line of lines) {
      if (line === '') {
        if (data.length > 0) hear({ event, data: data.join('\n'), id })
        event = 'message'
        id = null
        data = []
        continue
      }
      const colon = line.indexOf(':')
      const field = colon < 0 ? line : line.slice(0, colon)
      const text = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '')
      if (field === 'data') data.push(text)
      else if (field === 'event') event = text
      else if (field === 'id') id = text
    }
  }
}
