/* What the mock and the load client share: a clock, and just enough HTTP/1.1 to read heads and bodies.
 *
 * Everything is static and single-threaded: each program is one file plus this one. */
#ifndef BENCH_HTTP_H
#define BENCH_HTTP_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

/* Digits of a timestamp in a chunk: nanoseconds of CLOCK_MONOTONIC, zero-padded, after STAMP_MARK. */
#define STAMP_MARK "\"t="
#define STAMP_DIGITS 19

static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Size of the head including its empty line, 0 while it is incomplete. */
static inline size_t head_size(const char *data, size_t size) {
    const char *end = memmem(data, size, "\r\n\r\n", 4);
    return end ? (size_t)(end - data) + 4 : 0;
}

/* Value of a header in a complete head (without leading blanks), NULL when absent. */
static inline const char *header(const char *head, size_t size, const char *name, size_t *value_size) {
    size_t name_size = strlen(name);
    const char *end = head + size;
    for (const char *line = memchr(head, '\n', size); line && ++line < end;) {
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        if (!stop) break;
        if ((size_t)(stop - line) > name_size && line[name_size] == ':' && !strncasecmp(line, name, name_size)) {
            const char *value = line + name_size + 1;
            while (value < stop && *value == ' ') value++;
            *value_size = (size_t)(stop - value) - (stop[-1] == '\r');
            return value;
        }
        line = stop;
    }
    return NULL;
}

/* A body being read: by Content-Length, or chunked. */
struct body {
    enum { BODY_LENGTH, BODY_SIZE_LINE, BODY_CHUNK, BODY_CHUNK_END, BODY_TRAILER, BODY_DONE, BODY_BROKEN } state;
    uint64_t need;    /* bytes left of the body or of the chunk */
    uint64_t size;    /* body bytes seen so far */
    bool size_ended;  /* a chunk size line: digits are over, an extension follows */
    bool size_empty;  /* a chunk size line: no digit yet */
    unsigned line;    /* a trailer: bytes in this line */
};

typedef void body_sink(void *context, const char *data, size_t size);

/* Begin the body that a complete head announces; no announcement means none. */
static inline void body_begin(struct body *body, const char *head, size_t size) {
    size_t value_size;
    const char *value;
    memset(body, 0, sizeof *body);
    if ((value = header(head, size, "transfer-encoding", &value_size)) && value_size >= 7 &&
        !strncasecmp(value + value_size - 7, "chunked", 7)) {
        body->state = BODY_SIZE_LINE;
        body->size_empty = true;
    } else if ((value = header(head, size, "content-length", &value_size))) {
        body->need = strtoull(value, NULL, 10);
        body->state = body->need ? BODY_LENGTH : BODY_DONE;
    } else {
        body->state = BODY_DONE;
    }
}

/* Feed bytes; decoded ones go to the sink. Returns how many were taken; fewer than given only when the body is over. */
static inline size_t body_feed(struct body *body, const char *data, size_t size, body_sink *sink, void *context) {
    size_t at = 0;
    while (at < size && body->state < BODY_DONE) {
        switch (body->state) {
        case BODY_LENGTH:
        case BODY_CHUNK: {
            size_t take = size - at < body->need ? size - at : (size_t)body->need;
            sink(context, data + at, take);
            at += take;
            body->need -= take;
            body->size += take;
            if (!body->need) body->state = body->state == BODY_LENGTH ? BODY_DONE : BODY_CHUNK_END;
            break;
        }
        case BODY_SIZE_LINE: {
            char c = data[at++];
            int digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
            if (c == '\n') {
                if (body->size_empty) body->state = BODY_BROKEN;
                else body->state = body->need ? BODY_CHUNK : BODY_TRAILER;
                body->size_ended = false;
                body->size_empty = true;
                body->line = 0;
            } else if (digit >= 0 && !body->size_ended) {
                body->need = body->need << 4 | (unsigned)digit;
                body->size_empty = false;
            } else {
                body->size_ended = true;
            }
            break;
        }
        case BODY_CHUNK_END:
            if (data[at] != '\r' && data[at] != '\n') body->state = BODY_BROKEN;
            else if (data[at++] == '\n') body->state = BODY_SIZE_LINE;
            break;
        case BODY_TRAILER:
            if (data[at] == '\n') {
                if (!body->line) body->state = BODY_DONE;
                body->line = 0;
            } else if (data[at] != '\r') {
                body->line++;
            }
            at++;
            break;
        default:
            break;
        }
    }
    return at;
}

#endif
