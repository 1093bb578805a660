/* A mock inference server: enough of Ollama and OpenAI to stand behind a proxy, on one epoll thread.
 *
 *   mock [--port N] [--bytes N] [--chunks N] [--gap-us N] [--chunk-bytes N]
 *
 * Prints "port N" once it listens on 127.0.0.1, and ends with its parent.
 *
 * POST /api/chat and /v1/chat/completions answer with exactly `bytes` bytes, or, when the body asks for a stream, with
 * `chunks` pieces of `chunk_bytes` bytes, `gap_us` microseconds apart by an absolute schedule; the last one carries the
 * terminal line. Every piece carries the moment it was handed to the kernel, as `"t=<ns>`, so that a client on the same
 * machine knows how long it travelled. `hold=1` sends the first piece and then nothing more.
 *
 * Those numbers come from the command line, or for one request from its query string or from the first KiB of its body
 * (`bench chunks=100 gap_us=10000;`): the body survives proxies that rebuild the rest. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "http.h"

enum { KEPT = 16384, PREFIX = 1024, BATCH = 256, OUT_MAX = 1 << 20, BYTES_MAX = 1 << 20 };

enum dialect { OLLAMA, OPENAI };
enum text_kind { UNARY, PIECE, LAST };

/* What one request wants. */
struct wish {
    size_t bytes, chunks, chunk_bytes;
    uint64_t gap_us;
    bool hold;
};

struct conn {
    int fd;
    bool closed, close_after;
    enum { IN_HEAD, IN_BODY, STREAMING } phase;
    struct body body;
    char kept[KEPT]; /* an incomplete head */
    size_t kept_size;
    char prefix[PREFIX + 1]; /* the beginning of the body */
    size_t prefix_size;
    char path[128];
    struct wish wish;
    enum dialect dialect;
    size_t sent; /* pieces of this stream */
    uint64_t due;
    size_t place; /* in the heap, 1-based; 0: not there */
    char *out;    /* what the socket did not take */
    size_t out_size;
    struct conn *next_closed;
};

static struct wish defaults = {.bytes = 500, .chunks = 100, .chunk_bytes = 150, .gap_us = 10000};
static int poller, timer;
static uint64_t timer_due;
static struct conn *closed;
static char scratch[256 * 1024];

static void fail(const char *what) {
    perror(what);
    exit(1);
}

/* --- the heap of due streams ------------------------------------------------------------------------------------ */

static struct conn **heap;
static size_t heap_size, heap_room;

static void heap_put(size_t place, struct conn *c) {
    heap[place] = c;
    c->place = place;
}

static void heap_settle(size_t place, struct conn *c) {
    while (place > 1 && heap[place / 2]->due > c->due) {
        heap_put(place, heap[place / 2]);
        place /= 2;
    }
    for (;;) {
        size_t child = place * 2;
        if (child > heap_size) break;
        if (child < heap_size && heap[child + 1]->due < heap[child]->due) child++;
        if (heap[child]->due >= c->due) break;
        heap_put(place, heap[child]);
        place = child;
    }
    heap_put(place, c);
}

static void heap_add(struct conn *c) {
    if (heap_size + 2 > heap_room) {
        heap_room = heap_room ? heap_room * 2 : 256;
        if (!(heap = realloc(heap, heap_room * sizeof *heap))) fail("memory");
    }
    heap_settle(++heap_size, c);
}

static void heap_drop(struct conn *c) {
    size_t place = c->place;
    if (!place) return;
    c->place = 0;
    struct conn *last = heap[heap_size--];
    if (last != c) heap_settle(place, last);
}

static void arm_timer(void) {
    uint64_t due = heap_size ? heap[1]->due : 0;
    if (due == timer_due) return;
    struct itimerspec when = {.it_value = {(time_t)(due / 1000000000u), (long)(due % 1000000000u)}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
    timer_due = due;
}

/* --- the texts we answer with ----------------------------------------------------------------------------------- */

/* A text of an exact size, made once: stamp is the offset of its timestamp's digits, 0 when it has none. */
struct text {
    enum dialect dialect;
    enum text_kind kind;
    size_t bytes, size, stamp;
    char *data;
};

#define STAMP STAMP_MARK "0000000000000000000"
#define WHEN "\"created_at\":\"2025-01-01T00:00:00.000000000Z\""
#define COUNTS                                                                                                        \
    "\"total_duration\":5000000,\"load_duration\":1000000,\"prompt_eval_count\":26,\"prompt_eval_duration\":1000000," \
    "\"eval_count\":100,\"eval_duration\":3000000"
#define USAGE "\"usage\":{\"prompt_tokens\":26,\"completion_tokens\":100,\"total_tokens\":126}"

/* What stands before and after the padding. */
static const char *const FRAMES[2][3][2] = {
    [OLLAMA] = {
        [UNARY] = {"{\"model\":\"bench:latest\"," WHEN ",\"message\":{\"role\":\"assistant\",\"content\":\"",
                   "\"},\"done\":true,\"done_reason\":\"stop\"," COUNTS "}"},
        [PIECE] = {"{\"model\":\"bench:latest\"," WHEN ",\"message\":{\"role\":\"assistant\",\"content\":" STAMP,
                   "\"},\"done\":false}\n"},
        [LAST] = {"{\"model\":\"bench:latest\"," WHEN ",\"message\":{\"role\":\"assistant\",\"content\":" STAMP,
                  "\"},\"done\":true,\"done_reason\":\"stop\"," COUNTS "}\n"},
    },
    [OPENAI] = {
        [UNARY] = {"{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1735689600,"
                   "\"model\":\"bench:latest\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
                   "\"content\":\"",
                   "\"},\"finish_reason\":\"stop\"}]," USAGE "}"},
        [PIECE] = {"data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1735689600,"
                   "\"model\":\"bench:latest\",\"choices\":[{\"index\":0,\"delta\":{\"content\":" STAMP,
                   "\"},\"finish_reason\":null}]}\n\n"},
        [LAST] = {"data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1735689600,"
                  "\"model\":\"bench:latest\",\"choices\":[{\"index\":0,\"delta\":{\"content\":" STAMP,
                  "\"},\"finish_reason\":\"stop\"}]," USAGE "}\n\ndata: [DONE]\n\n"},
    },
};

static const struct text *text_of(enum dialect dialect, enum text_kind kind, size_t bytes) {
    static struct text made[32];
    static unsigned count, oldest;
    for (unsigned i = 0; i < count; i++)
        if (made[i].dialect == dialect && made[i].kind == kind && made[i].bytes == bytes) return &made[i];
    struct text *text = count < 32 ? &made[count++] : &made[oldest++ % 32];
    const char *before = FRAMES[dialect][kind][0], *after = FRAMES[dialect][kind][1];
    size_t frame = strlen(before) + strlen(after), padding = bytes > frame ? bytes - frame : 0;
    size_t payload = frame + padding;
    char head[256];
    int head_bytes = kind == UNARY ? snprintf(head, sizeof head,
                                              "HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\n"
                                              "Content-Length: %zu\r\n\r\n",
                                              payload)
                                   : snprintf(head, sizeof head, "%zx\r\n", payload);
    const char *tail = kind == UNARY ? "" : kind == PIECE ? "\r\n" : "\r\n0\r\n\r\n";
    free(text->data);
    *text = (struct text){.dialect = dialect, .kind = kind, .bytes = bytes};
    if (!(text->data = malloc((size_t)head_bytes + payload + 16))) fail("memory");
    char *at = mempcpy(text->data, head, (size_t)head_bytes);
    at = mempcpy(at, before, strlen(before));
    if (kind != UNARY) text->stamp = (size_t)(at - text->data) - STAMP_DIGITS;
    memset(at, 'x', padding);
    at = mempcpy(at + padding, after, strlen(after));
    at = mempcpy(at, tail, strlen(tail));
    text->size = (size_t)(at - text->data);
    return text;
}

static const char *const STREAM_HEADS[2] = {
    [OLLAMA] = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n",
    [OPENAI] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
};

#define DETAILS                                                                                                    \
    "\"details\":{\"parent_model\":\"\",\"format\":\"gguf\",\"family\":\"bench\",\"families\":[\"bench\"],"         \
    "\"parameter_size\":\"1B\",\"quantization_level\":\"Q4_0\"}"
#define MODEL                                                                                                      \
    "\"name\":\"bench:latest\",\"model\":\"bench:latest\",\"size\":1000000000,"                                    \
    "\"digest\":\"be2c4be2c4be2c4be2c4be2c4be2c4be2c4be2c4be2c4be2c4be2c4be2c4be2c\"," DETAILS

static const struct {
    const char *path, *body;
} FIXED[] = {
    {"/", "Ollama is running"},
    {"/health", "{\"status\":\"ok\"}"},
    {"/api/version", "{\"version\":\"0.12.0\"}"},
    {"/api/tags", "{\"models\":[{" MODEL ",\"modified_at\":\"2025-01-01T00:00:00Z\"}]}"},
    {"/api/ps", "{\"models\":[{" MODEL ",\"expires_at\":\"2099-01-01T00:00:00Z\",\"size_vram\":1000000000,"
                "\"context_length\":4096}]}"},
    {"/api/show", "{\"license\":\"\",\"modelfile\":\"\",\"parameters\":\"\",\"template\":\"\"," DETAILS
                  ",\"model_info\":{\"general.architecture\":\"bench\"},\"capabilities\":[\"completion\"]}"},
    {"/v1/models", "{\"object\":\"list\",\"data\":[{\"id\":\"bench:latest\",\"object\":\"model\","
                   "\"created\":1735689600,\"owned_by\":\"library\"}]}"},
};

/* --- connections ------------------------------------------------------------------------------------------------ */

static void leave(struct conn *c) {
    if (c->closed) return;
    c->closed = true;
    heap_drop(c);
    close(c->fd);
    c->next_closed = closed; /* freed after this batch of events, which may still name it */
    closed = c;
}

static void watch(struct conn *c, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event);
}

static void send_bytes(struct conn *c, const char *data, size_t size) {
    if (!c->out_size) {
        ssize_t n = send(c->fd, data, size, MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN) {
            leave(c);
            return;
        }
        if (n > 0) data += n, size -= (size_t)n;
        if (!size) return;
        watch(c, EPOLLIN | EPOLLOUT);
    }
    if (c->out_size + size > OUT_MAX || !(c->out = realloc(c->out, c->out_size + size))) {
        leave(c); /* a reader that stopped reading */
        return;
    }
    memcpy(c->out + c->out_size, data, size);
    c->out_size += size;
}

static void on_writable(struct conn *c) {
    ssize_t n = send(c->fd, c->out, c->out_size, MSG_NOSIGNAL);
    if (n < 0) {
        if (errno != EAGAIN) leave(c);
        return;
    }
    c->out_size -= (size_t)n;
    memmove(c->out, c->out + n, c->out_size);
    if (!c->out_size) {
        free(c->out);
        c->out = NULL;
        watch(c, EPOLLIN);
    }
}

static void stamp(char *digits) {
    uint64_t t = now_ns();
    for (int i = STAMP_DIGITS - 1; i >= 0; i--, t /= 10) digits[i] = (char)('0' + t % 10);
}

/* Send the next piece of a stream and say when the one after it is due. */
static void send_piece(struct conn *c) {
    const struct text *text = text_of(c->dialect, c->sent + 1 < c->wish.chunks ? PIECE : LAST, c->wish.chunk_bytes);
    const char *head = c->sent ? "" : STREAM_HEADS[c->dialect];
    size_t head_bytes = strlen(head);
    memcpy(scratch, head, head_bytes);
    memcpy(scratch + head_bytes, text->data, text->size);
    stamp(scratch + head_bytes + text->stamp);
    c->sent++;
    send_bytes(c, scratch, head_bytes + text->size);
    if (c->closed) return;
    if (text->kind == LAST) {
        c->phase = IN_HEAD;
        heap_drop(c);
        if (c->close_after) leave(c);
    } else if (c->wish.hold) {
        heap_drop(c);
    } else {
        c->due += c->wish.gap_us * 1000;
        if (c->place) heap_settle(c->place, c);
        else heap_add(c);
    }
}

static void read_wish(struct wish *wish, const char *text) {
    static const struct {
        const char *name;
        size_t at;
        size_t limit;
    } NUMBERS[] = {
        {"bytes=", offsetof(struct wish, bytes), BYTES_MAX},
        {"chunks=", offsetof(struct wish, chunks), 1 << 30},
        {"chunk_bytes=", offsetof(struct wish, chunk_bytes), sizeof scratch / 2},
        {"gap_us=", offsetof(struct wish, gap_us), 1u << 31},
    };
    _Static_assert(sizeof(size_t) == sizeof(uint64_t), "64-bit machines only");
    for (size_t i = 0; i < sizeof NUMBERS / sizeof *NUMBERS; i++) {
        for (const char *found = text; (found = strstr(found, NUMBERS[i].name)); found++) {
            if (found > text && !strchr(" ?&", found[-1])) continue;
            size_t value = strtoull(found + strlen(NUMBERS[i].name), NULL, 10);
            *(size_t *)((char *)wish + NUMBERS[i].at) = value < NUMBERS[i].limit ? value : NUMBERS[i].limit;
            break;
        }
    }
    if (strstr(text, "hold=1")) wish->hold = true;
    if (!wish->chunks) wish->chunks = 1;
}

static void send_fixed(struct conn *c, const char *status, const char *body) {
    char answer[2048];
    int size = snprintf(answer, sizeof answer,
                        "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", status,
                        strlen(body), body);
    send_bytes(c, answer, (size_t)size);
}

/* A whole request is here. */
static void answer(struct conn *c) {
    c->phase = IN_HEAD;
    char *query = strchr(c->path, '?');
    if (query) *query = 0;
    c->prefix[c->prefix_size] = 0;
    bool ollama = !strcmp(c->path, "/api/chat");
    if (ollama || !strcmp(c->path, "/v1/chat/completions")) {
        c->dialect = ollama ? OLLAMA : OPENAI;
        c->wish = defaults;
        if (query) read_wish(&c->wish, query + 1);
        const char *marked = strstr(c->prefix, "bench ");
        if (marked) read_wish(&c->wish, marked + 5);
        const char *flag = strstr(c->prefix, "\"stream\":");
        bool stream = flag ? flag[9 + (flag[9] == ' ')] == 't' : ollama;
        if (stream) {
            c->phase = STREAMING;
            c->sent = 0;
            c->due = now_ns();
            send_piece(c);
            return;
        }
        const struct text *text = text_of(c->dialect, UNARY, c->wish.bytes);
        send_bytes(c, text->data, text->size);
    } else {
        const char *body = NULL;
        for (size_t i = 0; i < sizeof FIXED / sizeof *FIXED; i++)
            if (!strcmp(c->path, FIXED[i].path)) body = FIXED[i].body;
        if (body) send_fixed(c, "200 OK", body);
        else send_fixed(c, "404 Not Found", "{\"error\":\"not found\"}");
    }
    if (c->close_after) leave(c);
}

static void keep_prefix(void *context, const char *data, size_t size) {
    struct conn *c = context;
    size_t room = PREFIX - c->prefix_size, take = size < room ? size : room;
    memcpy(c->prefix + c->prefix_size, data, take);
    c->prefix_size += take;
}

/* Take what can be taken and keep the rest. */
static void consume(struct conn *c, const char *data, size_t size) {
    size_t used = 0;
    while (!c->closed && c->phase != STREAMING) {
        if (c->phase == IN_HEAD) {
            size_t head = head_size(data + used, size - used);
            if (!head) break;
            const char *start = data + used, *target = memchr(start, ' ', head);
            const char *target_end = target ? memchr(target + 1, ' ', head - (size_t)(target + 1 - start)) : NULL;
            size_t target_size = target_end ? (size_t)(target_end - target) - 1 : sizeof c->path;
            if (target_size >= sizeof c->path) {
                leave(c);
                break;
            }
            memcpy(c->path, target + 1, target_size);
            c->path[target_size] = 0;
            size_t value_size;
            const char *value = header(start, head, "connection", &value_size);
            c->close_after = value && value_size == 5 && !strncasecmp(value, "close", 5);
            c->prefix_size = 0;
            body_begin(&c->body, start, head);
            used += head;
            c->phase = IN_BODY;
        }
        used += body_feed(&c->body, data + used, size - used, keep_prefix, c);
        if (c->body.state == BODY_BROKEN) leave(c);
        if (c->body.state != BODY_DONE) break;
        /* answer() may use the scratch buffer, which holds `data`: what follows this request is kept first. */
        if (size - used > KEPT) {
            leave(c);
            break;
        }
        memmove(c->kept, data + used, c->kept_size = size - used);
        answer(c);
        memcpy(scratch, c->kept, size = c->kept_size);
        data = scratch;
        used = c->kept_size = 0;
    }
    if (size - used > KEPT || (size - used && c->phase == STREAMING)) leave(c); /* no pipelining behind a stream */
    else memmove(c->kept, data + used, c->kept_size = size - used);
}

static void on_readable(struct conn *c) {
    size_t kept = c->kept_size;
    memcpy(scratch, c->kept, kept);
    ssize_t n = read(c->fd, scratch + kept, sizeof scratch - kept);
    if (n <= 0) {
        if (!n || errno != EAGAIN) leave(c);
        return;
    }
    c->kept_size = 0;
    consume(c, scratch, kept + (size_t)n);
}

static void on_timer(void) {
    uint64_t expirations, now = now_ns();
    if (read(timer, &expirations, sizeof expirations) < 0) return;
    timer_due = 0;
    while (heap_size && heap[1]->due <= now) send_piece(heap[1]);
}

static void on_listener(int listener) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct conn *c = calloc(1, sizeof *c);
        if (!c) fail("memory");
        c->fd = fd;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event)) fail("epoll_ctl");
    }
}

int main(int argc, char **argv) {
    unsigned port = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        size_t value = strtoull(argv[i + 1], NULL, 10);
        if (!strcmp(argv[i], "--port")) port = (unsigned)value;
        else if (!strcmp(argv[i], "--bytes") && value <= BYTES_MAX) defaults.bytes = value;
        else if (!strcmp(argv[i], "--chunks") && value) defaults.chunks = value;
        else if (!strcmp(argv[i], "--gap-us")) defaults.gap_us = value;
        else if (!strcmp(argv[i], "--chunk-bytes") && value <= sizeof scratch / 2) defaults.chunk_bytes = value;
        else return fprintf(stderr, "mock: bad option %s %s\n", argv[i], argv[i + 1]), 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = {AF_INET, htons((uint16_t)port), {htonl(INADDR_LOOPBACK)}, {0}};
    socklen_t address_size = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) fail("listen");
    getsockname(listener, (struct sockaddr *)&address, &address_size);
    poller = epoll_create1(EPOLL_CLOEXEC);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &listener};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    event.data.ptr = &timer;
    epoll_ctl(poller, EPOLL_CTL_ADD, timer, &event);
    printf("port %u\n", ntohs(address.sin_port));
    fflush(stdout);

    for (;;) {
        struct epoll_event events[BATCH];
        arm_timer();
        int count = epoll_wait(poller, events, BATCH, -1);
        if (count < 0 && errno != EINTR) fail("epoll_wait");
        for (int i = 0; i < count; i++) {
            void *who = events[i].data.ptr;
            if (who == &listener) on_listener(listener);
            else if (who == &timer) on_timer();
            else {
                struct conn *c = who;
                if (!c->closed && events[i].events & EPOLLOUT) on_writable(c);
                if (!c->closed && events[i].events & ~(uint32_t)EPOLLOUT) on_readable(c);
            }
        }
        while (closed) {
            struct conn *c = closed;
            closed = c->next_closed;
            free(c->out);
            free(c);
        }
    }
}
