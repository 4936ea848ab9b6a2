/* A load generator for HTTP/1.1 POST on one thread: epoll, keep-alive, real framing. Prints one JSON object.
 *
 *   _load PORT CLIENTS SECONDS REQUESTS FILE
 *
 * FILE holds one whole request. Each of CLIENTS connections to 127.0.0.1 sends it, reads the answer to its end, and
 * sends it again, until SECONDS are over (what runs then is dropped) or REQUESTS have been sent in all (0: no limit).
 * Connecting is outside every measured time. Times are in milliseconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "_load_results.h"

enum { HEAD, LENGTH, SIZE, CHUNK, CHUNK_END, TRAILER };

typedef struct {
    int fd, state, close, chunked, first, status;
    long long left;
    char line[16384];
    int used;
    double sent, begun;
    size_t frame;
} Client;

static char *request;
static size_t request_length;
static int port, epoll_fd;

static void open_connection(Client *c) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&to, sizeof to)) fail("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &e)) fail("epoll_ctl");
}

static void begin(Client *c) {
    if (limit && started >= limit) return;
    if (c->fd < 0) open_connection(c);
    started++;
    c->state = HEAD;
    c->used = c->close = c->chunked = c->first = 0;
    c->left = -1;
    c->frame = 0;
    c->sent = now();
    if (write(c->fd, request, request_length) != (ssize_t)request_length) fail("write");
}

static void finish(Client *c) {
    if (c->status != 200) errors++;
    keep(now() - c->sent, c->begun - c->sent);
    if (c->close) {
        close(c->fd);
        c->fd = -1;
    }
    begin(c);
}

static void read_head(Client *c, char *head) {
    char *at;
    c->status = atoi(head + 9);
    c->left = -1;
    for (at = strstr(head, "\r\n"); at; at = strstr(at, "\r\n")) {
        at += 2;
        if (!strncasecmp(at, "content-length:", 15)) c->left = atoll(at + 15);
        if (!strncasecmp(at, "transfer-encoding: chunked", 26)) c->chunked = 1;
        if (!strncasecmp(at, "connection: close", 17)) c->close = 1;
    }
    if (c->left < 0 && !c->chunked) {
        fprintf(stderr, "an answer without framing\n");
        exit(1);
    }
    c->state = c->chunked ? SIZE : LENGTH;
}

/* Counts the events of a stream, also one whose mark is split over two reads. */
static void count_frames(Client *c, const char *data, size_t n) {
    static const char mark[] = "data: {";
    for (size_t i = 0; i < n; i++) {
        c->frame = data[i] == mark[c->frame] ? c->frame + 1 : data[i] == mark[0];
        if (!mark[c->frame]) {
            frames++;
            c->frame = 0;
        }
    }
}

/* Returns 1 where the answer is complete. */
static int feed(Client *c, char *data, ssize_t n) {
    while (n > 0 || (c->state == LENGTH && !c->left)) {
        if (c->state == LENGTH || c->state == CHUNK) {
            if (!c->first && n > 0) {
                c->first = 1;
                c->begun = now();
            }
            ssize_t take = n < c->left ? n : c->left;
            if (c->chunked) count_frames(c, data, take);
            data += take;
            n -= take;
            c->left -= take;
            if (!c->left) {
                if (c->state == LENGTH) return 1;
                c->state = CHUNK_END;
            }
            continue;
        }
        if (c->used >= (int)sizeof c->line - 1) {
            fprintf(stderr, "a line of the answer is too long\n");
            exit(1);
        }
        c->line[c->used++] = *data++;
        n--;
        c->line[c->used] = 0;
        if (c->line[c->used - 1] != '\n') continue;
        if (c->state == HEAD) {
            if (c->used < 4 || memcmp(c->line + c->used - 4, "\r\n\r\n", 4)) continue;
            read_head(c, c->line);
        } else if (c->state == SIZE) {
            c->left = strtoll(c->line, NULL, 16);
            c->state = c->left ? CHUNK : TRAILER;
        } else if (c->state == CHUNK_END) {
            c->state = SIZE;
        } else if (c->used == 2) {
            return 1;
        }
        c->used = 0;
    }
    return 0;
}

int main(int argc, char **argv) {
    static char buffer[262144];
    struct epoll_event events[256];
    if (argc != 6) return 2;
    port = atoi(argv[1]);
    int clients = atoi(argv[2]);
    double seconds = atof(argv[3]);
    limit = atol(argv[4]);
    FILE *file = fopen(argv[5], "rb");
    if (!file) fail(argv[5]);
    request = malloc(1 << 20);
    request_length = fread(request, 1, 1 << 20, file);
    epoll_fd = epoll_create1(0);
    Client *all = calloc(clients, sizeof *all);
    for (int i = 0; i < clients; i++) open_connection(&all[i]);
    double start = now(), end = start + seconds * 1e3;
    for (int i = 0; i < clients; i++) begin(&all[i]);
    while (now() < end && !(limit && done >= limit)) {
        int n = epoll_wait(epoll_fd, events, 256, 100);
        for (int i = 0; i < n; i++) {
            Client *c = events[i].data.ptr;
            ssize_t got = read(c->fd, buffer, sizeof buffer);
            if (got < 0 && errno == EAGAIN) continue;
            if (got <= 0) {
                errors++;
                close(c->fd);
                c->fd = -1;
                begin(c);
            } else if (feed(c, buffer, got)) {
                finish(c);
            }
        }
    }
    print_results((now() - start) / 1e3);
    return 0;
}
