/* The baseline: echo (tcp and udp) and daytime (tcp) in bare C, one thread, one epoll set.
 *
 *   epoll_server ADDRESS ECHO_PORT DAYTIME_PORT
 *
 * It does only what the protocols require: no limits, no log, no configuration. The difference to
 * another server is the cost of a superserver.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BACKLOG    4096
#define MAX_EVENTS 1024
#define UDP_BURST  64 /* datagrams answered before connections are served again */

enum kind { ECHO_LISTENER, DAYTIME_LISTENER, UDP_SOCKET, CONNECTION };

struct source {
    enum kind kind;
    int fd;
    char *unsent; /* CONNECTION: data that is still to be sent, or NULL */
    size_t unsent_length;
};

static int epoll_fd;
static char buffer[1 << 16];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void watch(struct source *source, int operation, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = source};
    if (epoll_ctl(epoll_fd, operation, source->fd, &event) < 0)
        die("epoll_ctl");
}

static void add_source(enum kind kind, int fd)
{
    struct source *source = calloc(1, sizeof *source);
    if (source == NULL)
        die("calloc");
    source->kind = kind;
    source->fd = fd;
    watch(source, EPOLL_CTL_ADD, EPOLLIN);
}

static void add_bound(enum kind kind, const char *address, const char *port)
{
    struct sockaddr_in local = {.sin_family = AF_INET};
    int type = kind == UDP_SOCKET ? SOCK_DGRAM : SOCK_STREAM;
    int on = 1;
    local.sin_port = htons((uint16_t)strtoul(port, NULL, 10));
    if (inet_pton(AF_INET, address, &local.sin_addr) != 1)
        die(address);
    int fd = socket(AF_INET, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (fd < 0 || bind(fd, (struct sockaddr *)&local, sizeof local) < 0)
        die(port);
    if (type == SOCK_STREAM && listen(fd, BACKLOG) < 0)
        die("listen");
    add_source(kind, fd);
}

static void close_connection(struct source *connection)
{
    close(connection->fd);
    free(connection->unsent);
    free(connection);
}

static void keep_unsent(struct source *connection, const char *data, size_t length)
{
    connection->unsent = malloc(length);
    if (connection->unsent == NULL)
        die("malloc");
    memcpy(connection->unsent, data, length);
    connection->unsent_length = length;
    watch(connection, EPOLL_CTL_MOD, EPOLLOUT);
}

static void echo(struct source *connection)
{
    ssize_t length = recv(connection->fd, buffer, sizeof buffer, 0);
    if (length < 0 && errno == EAGAIN)
        return;
    if (length <= 0) {
        close_connection(connection);
        return;
    }
    ssize_t sent = send(connection->fd, buffer, (size_t)length, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN)
        close_connection(connection);
    else if (sent < length)
        keep_unsent(connection, buffer + (sent < 0 ? 0 : sent),
                    (size_t)(length - (sent < 0 ? 0 : sent)));
}

static void send_unsent(struct source *connection)
{
    ssize_t sent =
        send(connection->fd, connection->unsent, connection->unsent_length, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno != EAGAIN)
            close_connection(connection);
        return;
    }
    connection->unsent_length -= (size_t)sent;
    memmove(connection->unsent, connection->unsent + sent, connection->unsent_length);
    if (connection->unsent_length == 0) {
        free(connection->unsent);
        connection->unsent = NULL;
        watch(connection, EPOLL_CTL_MOD, EPOLLIN);
    }
}

static void echo_datagrams(int fd)
{
    struct sockaddr_in peer;
    for (int i = 0; i < UDP_BURST; i++) {
        socklen_t peer_length = sizeof peer;
        ssize_t length =
            recvfrom(fd, buffer, sizeof buffer, 0, (struct sockaddr *)&peer, &peer_length);
        if (length < 0)
            return;
        sendto(fd, buffer, (size_t)length, 0, (struct sockaddr *)&peer, peer_length);
    }
}

static void accept_echo(int listener)
{
    int on = 1;
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        add_source(CONNECTION, fd);
    }
}

static void accept_daytime(int listener)
{
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        char text[64];
        time_t clock = time(NULL);
        struct tm local;
        localtime_r(&clock, &local);
        size_t length = strftime(text, sizeof text, "%a %b %e %H:%M:%S %Y\r\n", &local);
        send(fd, text, length, MSG_NOSIGNAL);
        close(fd);
    }
}

static void on_event(struct source *source)
{
    if (source->kind == ECHO_LISTENER)
        accept_echo(source->fd);
    else if (source->kind == DAYTIME_LISTENER)
        accept_daytime(source->fd);
    else if (source->kind == UDP_SOCKET)
        echo_datagrams(source->fd);
    else if (source->unsent != NULL)
        send_unsent(source);
    else
        echo(source);
}

int main(int argc, char **argv)
{
    struct epoll_event events[MAX_EVENTS];
    if (argc != 4) {
        fputs("usage: epoll_server ADDRESS ECHO_PORT DAYTIME_PORT\n", stderr);
        return 2;
    }
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0)
        die("epoll_create1");
    add_bound(ECHO_LISTENER, argv[1], argv[2]);
    add_bound(UDP_SOCKET, argv[1], argv[2]);
    add_bound(DAYTIME_LISTENER, argv[1], argv[3]);
    for (;;) {
        int n = epoll_wait(epoll_fd, events, MAX_EVENTS, -1);
        if (n < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < n; i++)
            on_event(events[i].data.ptr);
    }
}
