/* A load client on one epoll thread: many connections to one address, every answer checked to its end.
 *
 *   load unary  --url http://127.0.0.1:P/api/chat --connections N --seconds S [--request-bytes N] [--answer-bytes N]
 *   load stream --url ... --connections N --rounds N --chunks N --gap-us N [--spread-us N] [--chunk-bytes N]
 *   load idle   --url ... --connections N
 *   ... [--header "Name: value"]... [--any-length]
 *
 * unary   keep-alive requests, one after the other on each connection, for S seconds; open ones are finished.
 * stream  each connection asks for `rounds` streams of `chunks` pieces `gap_us` apart, one after the other; connections
 *         begin `spread_us` microseconds / connections apart, so that pieces do not arrive in step.
 * idle    opens streams that send one piece and then nothing, prints {"ready":N}, holds them until stdin ends.
 *
 * Prints one line of JSON. Times: ttft_us from sending a request to its first whole piece; delay_us from the moment
 * the mock stamped a piece to the moment this client read it; latency_us from sending a request to the answer's end.
 * Anything but status 200 and a complete body is an error: ten end the run, one makes the exit code 1. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "http.h"

enum { KEPT = 16384, LINE = 16384, BATCH = 256, ERRORS_MAX = 10, OPENING_MAX = 64 };

enum mode { UNARY, STREAM, IDLE };

struct conn {
    int fd;
    size_t written; /* of the request */
    uint64_t sent_ns;
    enum { CLOSED, CONNECTING, WRITING, IN_HEAD, IN_BODY, HELD } phase;
    struct body body;
    char *kept; /* an incomplete head */
    size_t kept_size;
    char *line; /* an incomplete line of a stream */
    size_t line_size;
    size_t pieces, rounds;
    bool terminal;
    char last; /* byte of the body */
};

/* Samples of one kind, in nanoseconds. */
struct samples {
    uint64_t *values;
    size_t size, room;
};

static enum mode mode;
static struct sockaddr_in address;
static char *request;
static size_t request_size;
static size_t connections = 32, rounds = 1, chunks = 100, request_bytes = 200, answer_bytes = 500, chunk_bytes = 150;
static uint64_t gap_us = 10000, spread_us, deadline;
static bool any_length;

static int poller, timer;
static struct conn *conns;
static size_t started, live, ready, done, pieces, errors;
static char first_error[512];
static uint64_t begun;
static struct samples ttft, delay, latency;
static char scratch[256 * 1024];

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void sample(struct samples *samples, uint64_t value) {
    if (samples->size == samples->room) {
        samples->room = samples->room ? samples->room * 2 : 65536;
        if (!(samples->values = realloc(samples->values, samples->room * sizeof *samples->values))) fail("memory");
    }
    samples->values[samples->size++] = value;
}

static int ascending(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void print_samples(const char *name, struct samples *samples) {
    if (!samples->size) return;
    qsort(samples->values, samples->size, sizeof *samples->values, ascending);
    printf(",\"%s\":{\"count\":%zu", name, samples->size);
    static const struct {
        const char *name;
        double share;
    } POINTS[] = {{"p50", .5}, {"p90", .9}, {"p99", .99}, {"max", 1}};
    for (size_t i = 0; i < sizeof POINTS / sizeof *POINTS; i++) {
        size_t at = (size_t)(POINTS[i].share * (double)samples->size);
        if (at >= samples->size) at = samples->size - 1;
        printf(",\"%s\":%.3f", POINTS[i].name, (double)samples->values[at] / 1e3);
    }
    printf("}");
}

static void report(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e6 +
                 (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    printf("{\"requests\":%zu,\"chunks\":%zu,\"errors\":%zu,\"seconds\":%.6f,\"cpu_us\":%.0f", done, pieces, errors,
           (double)(now_ns() - begun) / 1e9, cpu);
    print_samples("ttft_us", &ttft);
    print_samples("delay_us", &delay);
    print_samples("latency_us", &latency);
    if (errors) {
        printf(",\"first_error\":\"");
        for (const char *c = first_error; *c; c++) {
            if (*c == '"' || *c == '\\') putchar('\\');
            putchar(*c >= ' ' && *c < 127 ? *c : ' ');
        }
        printf("\"");
    }
    puts("}");
    fflush(stdout);
    exit(errors ? 1 : 0);
}

static void leave(struct conn *c) {
    if (c->phase == CLOSED) return;
    c->phase = CLOSED;
    close(c->fd);
    live--;
}

static void give_up(struct conn *c, const char *what, const char *data, size_t size) {
    if (!errors) snprintf(first_error, sizeof first_error, "%s: %.*s", what, (int)(size < 300 ? size : 300), data);
    leave(c);
    if (++errors >= ERRORS_MAX || mode == IDLE) report();
}

static void watch(struct conn *c, uint32_t events, int how) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(poller, how, c->fd, &event)) fail("epoll_ctl");
}

static void write_request(struct conn *c) {
    ssize_t n = send(c->fd, request + c->written, request_size - c->written, MSG_NOSIGNAL);
    if (n < 0) {
        if (errno != EAGAIN) {
            give_up(c, "write", strerror(errno), strlen(strerror(errno)));
            return;
        }
        n = 0;
    }
    c->written += (size_t)n;
    if (c->written == request_size) {
        if (c->phase == WRITING) watch(c, EPOLLIN, EPOLL_CTL_MOD);
        c->phase = IN_HEAD;
    } else if (c->phase != WRITING) {
        c->phase = WRITING;
        watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
    }
}

static void ask(struct conn *c) {
    c->written = c->pieces = c->line_size = 0;
    c->terminal = false;
    c->sent_ns = now_ns();
    write_request(c);
}

static void open_conn(struct conn *c) {
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) fail("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    live++;
    c->phase = CONNECTING;
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) {
        give_up(c, "connect", strerror(errno), strlen(strerror(errno)));
        return;
    }
    watch(c, EPOLLOUT, EPOLL_CTL_ADD);
}

/* Begin the connections whose time has come. */
static void start_due(void) {
    uint64_t now = now_ns(), step = spread_us * 1000 / connections;
    while (started < connections && (mode != IDLE || started - ready < OPENING_MAX)) {
        uint64_t due = begun + started * step;
        if (due > now) {
            struct itimerspec when = {.it_value = {(time_t)(due / 1000000000u), (long)(due % 1000000000u)}};
            timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
            return;
        }
        open_conn(&conns[started++]);
    }
}

static void finish(struct conn *c) {
    done++;
    c->rounds++;
    sample(&latency, now_ns() - c->sent_ns);
    bool more = mode == UNARY ? now_ns() < deadline : c->rounds < rounds;
    c->phase = IN_HEAD;
    if (more) ask(c);
    else leave(c);
}

/* One whole line of a stream. */
static void see_line(struct conn *c, const char *line, size_t size) {
    const char *mark = memmem(line, size, STAMP_MARK, sizeof STAMP_MARK - 1);
    if (mark && (size_t)(line + size - mark) > sizeof STAMP_MARK - 1 + STAMP_DIGITS) {
        uint64_t now = now_ns();
        sample(&delay, now - strtoull(mark + sizeof STAMP_MARK - 1, NULL, 10));
        if (!c->pieces++) sample(&ttft, now - c->sent_ns);
        pieces++;
    }
    if (memmem(line, size, "\"done\":true", 11) || memmem(line, size, "data: [DONE]", 12)) c->terminal = true;
}

static void see_body(void *context, const char *data, size_t size) {
    struct conn *c = context;
    c->last = data[size - 1] == '\n' && size > 1 ? data[size - 2] : data[size - 1];
    if (mode == UNARY) return;
    const char *end = data + size, *newline;
    while (data < end && (newline = memchr(data, '\n', (size_t)(end - data)))) {
        size_t part = (size_t)(newline - data);
        if (c->line_size) {
            if (c->line_size + part <= LINE) memcpy(c->line + c->line_size, data, part);
            see_line(c, c->line, c->line_size + part <= LINE ? c->line_size + part : LINE);
            c->line_size = 0;
        } else {
            see_line(c, data, part);
        }
        data = newline + 1;
    }
    size_t rest = (size_t)(end - data);
    if (!rest) return;
    if (!c->line && !(c->line = malloc(LINE))) fail("memory");
    if (c->line_size + rest <= LINE) {
        memcpy(c->line + c->line_size, data, rest);
        c->line_size += rest;
    }
}

static void on_answer(struct conn *c) {
    char text[200];
    if (mode == UNARY && !any_length && c->body.size != answer_bytes)
        give_up(c, "answer size", text, (size_t)snprintf(text, sizeof text, "%zu bytes, not %zu", c->body.size, answer_bytes));
    else if (mode == UNARY && c->last != '}')
        give_up(c, "answer", "does not end a JSON object", 26);
    else if (mode != UNARY && (c->pieces != chunks || !c->terminal))
        give_up(c, "stream", text, (size_t)snprintf(text, sizeof text, "ended after %zu of %zu pieces, %s terminal line",
                                                    c->pieces, chunks, c->terminal ? "with" : "without"));
    else
        finish(c);
}

static void consume(struct conn *c, const char *data, size_t size) {
    size_t used = 0;
    if (c->phase == WRITING && c->written == request_size) c->phase = IN_HEAD;
    if (c->phase == WRITING || c->phase == IN_HEAD) {
        size_t head = head_size(data, size);
        if (!head) {
            if (size > KEPT || (!c->kept && !(c->kept = malloc(KEPT)))) {
                give_up(c, "head", "too large", 9);
                return;
            }
            memmove(c->kept, data, c->kept_size = size);
            return;
        }
        c->kept_size = 0;
        if (head < 12 || memcmp(data + 8, " 200", 4) || c->phase == WRITING) {
            give_up(c, c->phase == WRITING ? "answered before the request ended" : "status", data, size);
            return;
        }
        body_begin(&c->body, data, head);
        used = head;
        c->phase = IN_BODY;
    }
    used += body_feed(&c->body, data + used, size - used, see_body, c);
    if (mode == IDLE && c->pieces && c->phase == IN_BODY) {
        c->phase = HELD;
        if (++ready == connections) {
            printf("{\"ready\":%zu}\n", ready);
            fflush(stdout);
        }
        start_due();
    }
    if (c->body.state == BODY_BROKEN || used != size)
        give_up(c, "body", "broken chunked coding or bytes after the end", 44);
    else if (c->body.state == BODY_DONE)
        on_answer(c);
}

static void on_readable(struct conn *c) {
    size_t kept = c->kept_size;
    if (kept) memcpy(scratch, c->kept, kept);
    ssize_t n = read(c->fd, scratch + kept, sizeof scratch - kept);
    if (n > 0) {
        consume(c, scratch, kept + (size_t)n);
    } else if (!n || errno != EAGAIN) {
        const char *why = n ? strerror(errno) : "closed before the answer's end";
        give_up(c, "read", why, strlen(why));
    }
}

static void on_event(struct conn *c, uint32_t events) {
    if (c->phase == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            give_up(c, "connect", strerror(error), strlen(strerror(error)));
            return;
        }
        watch(c, EPOLLIN, EPOLL_CTL_MOD);
        c->phase = IN_HEAD;
        ask(c);
        return;
    }
    if (c->phase == WRITING && events & EPOLLOUT) write_request(c);
    if (c->phase != CLOSED && events & ~(uint32_t)EPOLLOUT) on_readable(c);
}

/* The request: a chat of request_bytes body bytes whose first message says what the mock shall do. */
static void make_request(const char *host, const char *path, const char *headers) {
    char wish[160];
    if (mode == UNARY) snprintf(wish, sizeof wish, "bench bytes=%zu; ", answer_bytes);
    else
        snprintf(wish, sizeof wish, "bench chunks=%zu gap_us=%lu chunk_bytes=%zu%s; ", chunks, gap_us, chunk_bytes,
                 mode == IDLE ? " hold=1" : "");
    char *body = malloc(request_bytes + 1024);
    if (!body || !(request = malloc(request_bytes + 8192))) fail("memory");
    size_t size = (size_t)sprintf(body, "{\"model\":\"bench:latest\",\"stream\":%s,\"messages\":[{\"role\":\"user\","
                                        "\"content\":\"%s",
                                  mode == UNARY ? "false" : "true", wish);
    static const char END[] = "\"}]}";
    while (size + sizeof END - 1 < request_bytes) {
        body[size] = size % 7 ? 'x' : ' ';
        size++;
    }
    size += (size_t)sprintf(body + size, "%s", END);
    request_size = (size_t)snprintf(request, 8192,
                                    "POST %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench\r\nAccept: */*\r\n"
                                    "Content-Type: application/json\r\nContent-Length: %zu\r\n%s\r\n",
                                    path, host, size, headers);
    memcpy(request + request_size, body, size);
    request_size += size;
    free(body);
}

static int usage(const char *what) {
    fprintf(stderr, "load: bad argument %s; see the head of bench/load.c\n", what);
    return 2;
}

int main(int argc, char **argv) {
    static const char *const MODES[] = {"unary", "stream", "idle"};
    struct {
        const char *name;
        size_t *value;
    } numbers[] = {
        {"--connections", &connections}, {"--rounds", &rounds},           {"--chunks", &chunks},
        {"--request-bytes", &request_bytes}, {"--answer-bytes", &answer_bytes}, {"--chunk-bytes", &chunk_bytes},
        {"--gap-us", (size_t *)&gap_us}, {"--spread-us", (size_t *)&spread_us},
    };
    _Static_assert(sizeof(size_t) == sizeof(uint64_t), "64-bit machines only");
    char headers[4096] = "", host[64] = "", *path = NULL;
    size_t headers_size = 0;
    double seconds = 2;

    if (argc < 2) return usage("(none)");
    for (mode = UNARY; mode <= IDLE && strcmp(argv[1], MODES[mode]);) mode++;
    if (mode > IDLE) return usage(argv[1]);
    for (int i = 2; i < argc; i++) {
        const char *name = argv[i];
        if (!strcmp(name, "--any-length")) {
            any_length = true;
            continue;
        }
        if (++i == argc) return usage(name);
        bool known = true;
        if (!strcmp(name, "--header")) {
            headers_size += (size_t)snprintf(headers + headers_size, sizeof headers - headers_size, "%s\r\n", argv[i]);
            if (headers_size >= sizeof headers) return usage(name);
        } else if (!strcmp(name, "--seconds")) {
            seconds = strtod(argv[i], NULL);
        } else if (!strcmp(name, "--url")) {
            char *start = argv[i];
            if (strncmp(start, "http://", 7) || !(path = strchr(start + 7, '/'))) return usage(start);
            snprintf(host, sizeof host, "%.*s", (int)(path - start - 7), start + 7);
        } else {
            known = false;
            for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++)
                if (!strcmp(name, numbers[k].name)) known = true, *numbers[k].value = strtoull(argv[i], NULL, 10);
        }
        if (!known) return usage(name);
    }
    char ip[64], *colon = strchr(host, ':');
    snprintf(ip, sizeof ip, "%.*s", (int)(colon ? colon - host : (long)strlen(host)), host);
    address.sin_family = AF_INET;
    address.sin_port = htons(colon ? (uint16_t)atoi(colon + 1) : 80);
    if (!path || !inet_pton(AF_INET, ip, &address.sin_addr)) return usage("--url (http://ADDRESS:PORT/path)");
    if (!connections || !rounds || !chunks) return usage("(a number is zero)");

    prctl(PR_SET_PDEATHSIG, SIGTERM);
    make_request(host, path, headers);
    if (!(conns = calloc(connections, sizeof *conns))) fail("memory");
    poller = epoll_create1(EPOLL_CLOEXEC);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &timer};
    epoll_ctl(poller, EPOLL_CTL_ADD, timer, &event);
    if (mode == IDLE) {
        event.data.ptr = NULL;
        if (epoll_ctl(poller, EPOLL_CTL_ADD, STDIN_FILENO, &event)) fail("stdin must be a pipe");
    }
    begun = now_ns();
    deadline = begun + (uint64_t)(seconds * 1e9);
    start_due();
    while (live || started < connections) {
        struct epoll_event events[BATCH];
        int count = epoll_wait(poller, events, BATCH, -1);
        if (count < 0 && errno != EINTR) fail("epoll_wait");
        for (int i = 0; i < count; i++) {
            void *who = events[i].data.ptr;
            if (!who) {
                report(); /* stdin ended: the holder has seen enough */
            } else if (who == &timer) {
                uint64_t expirations;
                if (read(timer, &expirations, sizeof expirations) > 0) start_due();
            } else {
                on_event(who, events[i].events);
            }
        }
    }
    report();
}
