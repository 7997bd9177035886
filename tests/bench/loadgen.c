/* Load for a service on loopback: one thread, one epoll set, figures as JSON.
 *
 *   loadgen rr   HOST PORT [-c CONNS] [-s SIZE] [-t SECS]   ping-pong on open connections
 *   loadgen crr  ...   connect, echo SIZE bytes, close; SIZE 0: connect, read to EOF, close
 *   loadgen bulk ...   keep an echo path full, count the chunks of SIZE bytes that come back
 *   loadgen udp  ...   ping-pong with datagrams
 *   loadgen idle ...   open CONNS connections, echo SIZE bytes on each once, hold them
 *
 * Prints one JSON line after SECS or on SIGTERM; idle prints one more as soon as every connection
 * is open or has failed. The size of each answer is checked. A refused or reset connection, a wrong
 * size and an answer later than STALL_SECS count as errors.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define WARM_UP_SECS 0.3
#define STALL_SECS   1.5  /* longer than the first retransmission of a lost SYN (1 s) */
#define SWEEP_SECS   0.05 /* interval of the search for stalled and closed connections */
#define SOURCES      200  /* client addresses from 127.0.0.1 up, so that ports do not run out */
#define IDLE_WINDOW  50   /* idle: connections opened at the same time (less than xinetd's 64) */
#define BULK_BURST   16   /* bulk: system calls for one connection before the next is served */
#define MAX_ANSWER   (1UL << 20) /* crr with SIZE 0: a longer answer is an error */
#define MAX_EVENTS   1024

enum mode { RR, CRR, BULK, UDP, IDLE };
static const char *const mode_names[] = {"rr", "crr", "bulk", "udp", "idle"};

enum state { CLOSED, CONNECTING, BUSY, HELD };

struct conn {
    int fd;
    enum state state;
    size_t sent;
    size_t received;
    double since; /* start of the operation; bulk: time of the last received data */
};

static struct {
    enum mode mode;
    struct sockaddr_in server;
    size_t conns;
    size_t size;
    double secs;
} opt = {.conns = 1, .secs = 2};

static struct conn *conns;
static size_t launched; /* conns[launched] and later ones were never opened */
static size_t held;
static char *payload;
static char scratch[1 << 18];
static int epoll_fd;
static volatile sig_atomic_t stopping;

static double started;
static double counting_since; /* end of the warm-up: ops, bytes, latencies count from here */
static uint64_t ops, bytes, warm_up_ops, errors;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* Latencies: a histogram of nanoseconds, 128 buckets to each power of two (precise to 1 %). */

#define SUB_BITS    7
#define SUB_BUCKETS (1U << SUB_BITS)
static uint64_t latencies[SUB_BUCKETS * (66 - SUB_BITS)];

static void record_latency(double secs)
{
    uint64_t ns = (uint64_t)(secs * 1e9);
    unsigned top_bit = 63U - (unsigned)__builtin_clzll(ns | 1);
    unsigned shift = top_bit > SUB_BITS ? top_bit - SUB_BITS : 0;
    latencies[shift * SUB_BUCKETS + (ns >> shift)]++;
}

static double bucket_us(size_t bucket)
{
    unsigned shift = bucket < 2 * SUB_BUCKETS ? 0 : (unsigned)(bucket / SUB_BUCKETS) - 1;
    double mantissa = (double)(bucket - (size_t)shift * SUB_BUCKETS) + 0.5;
    return mantissa * (double)(1ULL << shift) / 1e3;
}

static double percentile_us(double fraction)
{
    size_t buckets = sizeof latencies / sizeof latencies[0];
    uint64_t total = 0, seen = 0;
    for (size_t i = 0; i < buckets; i++)
        total += latencies[i];
    for (size_t i = 0; i < buckets; i++) {
        seen += latencies[i];
        if (seen > 0 && (double)seen >= fraction * (double)total)
            return bucket_us(i);
    }
    return 0;
}

static void start_counting(void)
{
    counting_since = now();
    warm_up_ops = ops;
    ops = 0;
    bytes = 0;
    memset(latencies, 0, sizeof latencies);
}

/* The share of time in which this process used its core; near 1 it is the bottleneck. */
static double busy(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double secs = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec);
    return (secs + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6) /
           (now() - started);
}

static void report(void)
{
    double elapsed = now() - counting_since;
    size_t open_now = 0;
    for (size_t i = 0; i < launched; i++)
        open_now += conns[i].state >= BUSY;
    printf("{\"mode\": \"%s\", \"rate\": %.1f, \"mbps\": %.2f, \"p50_us\": %.1f, "
           "\"p99_us\": %.1f, \"errors\": %" PRIu64 ", \"open\": %zu, \"ops\": %" PRIu64
           ", \"busy\": %.3f}\n",
           mode_names[opt.mode], (double)ops / elapsed, (double)bytes / elapsed / 1e6,
           percentile_us(0.50), percentile_us(0.99), errors, open_now, ops + warm_up_ops, busy());
    fflush(stdout);
}

/* The life of a connection: open_conn, on_writable, on_readable, finish or fail. */

static void fail(struct conn *c)
{
    errors++;
    held -= c->state == HELD;
    close(c->fd);
    c->state = CLOSED; /* sweep() reopens it later, so that a dead server is not flooded */
}

static int new_socket(void)
{
    static unsigned count;
    int type = opt.mode == UDP ? SOCK_DGRAM : SOCK_STREAM;
    int fd = socket(AF_INET, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket");
    int on = 1;
    if (type == SOCK_STREAM) {
        struct linger reset = {.l_onoff = 1, .l_linger = 0}; /* leaves no TIME_WAIT behind */
        if (opt.mode != CRR)                                 /* CRR sends only once */
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    }
    struct sockaddr_in source = {.sin_family = AF_INET};
    source.sin_addr.s_addr = htonl(INADDR_LOOPBACK + count++ % SOURCES);
    if (bind(fd, (struct sockaddr *)&source, sizeof source) < 0)
        die("bind");
    return fd;
}

static void open_conn(struct conn *c)
{
    uint32_t trigger = opt.mode == BULK ? 0 : (uint32_t)EPOLLET;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | trigger, .data.ptr = c};
    *c = (struct conn){.fd = new_socket(), .state = CONNECTING, .since = now()};
    if (connect(c->fd, (struct sockaddr *)&opt.server, sizeof opt.server) < 0 &&
        errno != EINPROGRESS) {
        fail(c);
        return;
    }
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event) < 0)
        die("epoll_ctl");
}

/* Sends the rest of the request. */
static void push(struct conn *c)
{
    while (c->sent < opt.size) {
        ssize_t n = send(c->fd, payload + c->sent, opt.size - c->sent, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN)
                fail(c);
            return;
        }
        c->sent += (size_t)n;
    }
}

static void finish(struct conn *c)
{
    double t = now();
    ops++;
    record_latency(t - c->since);
    if (opt.mode == CRR) {
        close(c->fd);
        open_conn(c);
    } else if (opt.mode == IDLE) {
        c->state = HELD;
        held++;
    } else {
        c->since = t;
        c->sent = c->received = 0;
        push(c);
    }
}

static void bulk_send(struct conn *c)
{
    for (int i = 0; i < BULK_BURST; i++) {
        ssize_t n = send(c->fd, payload, opt.size, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN)
                fail(c);
            return;
        }
        c->sent += (size_t)n;
    }
}

static void bulk_receive(struct conn *c)
{
    for (int i = 0; i < BULK_BURST; i++) {
        ssize_t n = recv(c->fd, scratch, sizeof scratch, 0);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0 || c->received + (size_t)n > c->sent) {
            fail(c);
            return;
        }
        ops += (c->received + (size_t)n) / opt.size - c->received / opt.size;
        c->received += (size_t)n;
        bytes += (uint64_t)n;
        c->since = now();
    }
}

static void on_writable(struct conn *c)
{
    if (c->state == CONNECTING)
        c->state = BUSY;
    if (opt.mode == BULK)
        bulk_send(c);
    else if (opt.mode == IDLE && opt.size == 0 && c->state == BUSY)
        finish(c);
    else
        push(c);
}

static bool answer_is_wrong(const struct conn *c, size_t length)
{
    if (opt.mode == CRR && opt.size == 0)
        return c->received > MAX_ANSWER;
    return c->state == HELD || c->received > opt.size || (opt.mode == UDP && length != opt.size);
}

/* Edge-triggered, so it reads to EAGAIN, except after a complete answer: no more can follow. */
static void on_readable(struct conn *c)
{
    for (;;) {
        ssize_t n = recv(c->fd, scratch, sizeof scratch, 0);
        if (n < 0) {
            if (errno != EAGAIN)
                fail(c);
            return;
        }
        c->received += (size_t)n;
        bytes += (uint64_t)n;
        if (n == 0 && opt.mode == CRR && opt.size == 0 && c->received > 0) {
            finish(c);
            return;
        }
        if (n == 0 || answer_is_wrong(c, (size_t)n)) {
            fail(c);
            return;
        }
        if (opt.size > 0 && c->received == opt.size) {
            finish(c);
            return;
        }
    }
}

static void on_event(struct conn *c, uint32_t events)
{
    if (c->state == CONNECTING && events & EPOLLERR)
        fail(c);
    else if (events & EPOLLOUT)
        on_writable(c);
    if (c->state == CLOSED || !(events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
        return;
    if (opt.mode == BULK)
        bulk_receive(c);
    else
        on_readable(c);
}

/* Fails stalled connections and reopens closed ones (idle leaves them closed). */
static void sweep(double t)
{
    for (size_t i = 0; i < launched; i++) {
        struct conn *c = &conns[i];
        if (c->state == CLOSED && opt.mode != IDLE)
            open_conn(c);
        else if ((c->state == CONNECTING || c->state == BUSY) && t - c->since > STALL_SECS)
            fail(c);
    }
}

static void launch(void)
{
    size_t window = opt.mode == IDLE ? IDLE_WINDOW : opt.conns;
    while (launched < opt.conns && launched - held - errors < window)
        open_conn(&conns[launched++]);
}

static void run(void)
{
    struct epoll_event events[MAX_EVENTS];
    double t = started = now();
    double end = t + opt.secs;
    double warm = opt.mode == IDLE ? end : t + WARM_UP_SECS;
    double next_sweep = t + SWEEP_SECS;
    bool opening_reported = false;

    counting_since = t;
    while (!stopping && (t = now()) < end) {
        if (t >= warm) {
            start_counting();
            warm = end;
        }
        if (t >= next_sweep) {
            sweep(t);
            next_sweep = t + SWEEP_SECS;
        }
        launch();
        int n = epoll_wait(epoll_fd, events, MAX_EVENTS, (int)(SWEEP_SECS * 1000));
        for (int i = 0; i < n; i++)
            on_event(events[i].data.ptr, events[i].events);
        if (opt.mode == IDLE && held + errors >= opt.conns && !opening_reported) {
            opening_reported = true;
            report();
        }
    }
    report();
}

static void stop(int signal_number)
{
    (void)signal_number;
    stopping = 1;
}

static void usage(void)
{
    fputs("usage: loadgen rr|crr|bulk|udp|idle HOST PORT [-c CONNS] [-s SIZE] [-t SECS]\n"
          "HOST is an address of 127.0.0.0/8; rr, bulk and udp need a SIZE\n",
          stderr);
    exit(2);
}

static enum mode parse_mode(const char *name)
{
    for (enum mode mode = RR; mode <= IDLE; mode++)
        if (strcmp(name, mode_names[mode]) == 0)
            return mode;
    usage();
    return RR;
}

static void parse(int argc, char **argv)
{
    int option;
    while ((option = getopt(argc, argv, "c:s:t:")) != -1) {
        if (option == 'c')
            opt.conns = strtoul(optarg, NULL, 10);
        else if (option == 's')
            opt.size = strtoul(optarg, NULL, 10);
        else if (option == 't')
            opt.secs = strtod(optarg, NULL);
        else
            usage();
    }
    if (argc - optind != 3)
        usage();
    opt.mode = parse_mode(argv[optind]);
    opt.server.sin_family = AF_INET;
    opt.server.sin_port = htons((uint16_t)strtoul(argv[optind + 2], NULL, 10));
    if (inet_pton(AF_INET, argv[optind + 1], &opt.server.sin_addr) != 1 ||
        ntohl(opt.server.sin_addr.s_addr) >> 24 != 127)
        usage();
    if (opt.conns == 0 || (opt.size == 0 && opt.mode != CRR && opt.mode != IDLE))
        usage();
}

static void raise_file_limit(void)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

int main(int argc, char **argv)
{
    parse(argc, argv);
    raise_file_limit();
    signal(SIGTERM, stop);
    conns = calloc(opt.conns, sizeof *conns);
    payload = malloc(opt.size + 1);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (conns == NULL || payload == NULL || epoll_fd < 0)
        die("start");
    memset(payload, 'x', opt.size);
    run();
    return 0;
}
