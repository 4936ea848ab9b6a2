/* The same for unary gRPC calls: HTTP/2 without TLS on one thread. Prints one JSON object.
 *
 *   _load_grpc PORT CLIENTS SECONDS REQUESTS FILE PATH
 *
 * FILE holds the message of a call to PATH (/package.Service/Method). Each of CLIENTS has a connection of its own and
 * one call under way. Of HTTP/2 it does what such a client needs: it acknowledges settings and pings, gives the server
 * windows it cannot fill, keeps to the server's, and sends headers that need no compression state. A call is good where
 * a message came before the trailers; the status in them is compressed, and one that failed carries no message.
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

enum { DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION };
enum { HEAD = 9, ACK = 1, END_STREAM = 1, END_HEADERS = 4, WINDOW = 1 << 30 };

typedef struct {
    int fd, used, stream, waiting;
    long window, taken;
    unsigned messages;
    double sent, begun;
    unsigned char in[262144];
} Client;

static unsigned char call[1 << 20];
static int call_length, data_length, headers_length, port, epoll_fd;

static unsigned char *frame(unsigned char *to, int length, int type, int flags, unsigned stream) {
    unsigned char head[HEAD] = {length >> 16, length >> 8, length, type, flags, stream >> 24, stream >> 16, stream >> 8, stream};
    memcpy(to, head, HEAD);
    return to + HEAD;
}

static void put32(unsigned char *to, unsigned value) {
    to[0] = value >> 24, to[1] = value >> 16, to[2] = value >> 8, to[3] = value;
}

static unsigned get(const unsigned char *from, int bytes) {
    unsigned value = 0;
    while (bytes--) value = value << 8 | *from++;
    return value;
}

static void send_all(Client *c, const unsigned char *data, int length) {
    if (write(c->fd, data, length) != length) fail("write");
}

static unsigned char *literal(unsigned char *to, const char *text) {
    int length = strlen(text);
    if (length > 126) exit(2);
    *to++ = length;
    memcpy(to, text, length);
    return to + length;
}

/* The frames of a call; only the number of its stream differs from one to the next. */
static void make_call(const char *path, const char *file) {
    unsigned char headers[512], *h = headers;
    *h++ = 0x83;  /* :method POST */
    *h++ = 0x86;  /* :scheme http */
    *h++ = 0x04;  /* :path */
    h = literal(h, path);
    *h++ = 0x01;  /* :authority */
    h = literal(h, "localhost");
    *h++ = 0x0f;  /* content-type, the 31st of the static table */
    *h++ = 31 - 15;
    h = literal(h, "application/grpc");
    *h++ = 0x00;
    h = literal(h, "te");
    h = literal(h, "trailers");
    const char *authorization = getenv("LOAD_AUTHORIZATION");
    if (authorization) {
        *h++ = 0x0f;  /* authorization, the 23rd of the static table */
        *h++ = 23 - 15;
        h = literal(h, authorization);
    }
    headers_length = h - headers;
    memcpy(call + HEAD, headers, headers_length);
    unsigned char *message = call + HEAD + headers_length + HEAD;
    FILE *opened = fopen(file, "rb");
    if (!opened) fail(file);
    int length = fread(message + 5, 1, 16384 - 5, opened);
    if (length == 16384 - 5) {
        fprintf(stderr, "a message longer than one frame\n");
        exit(1);
    }
    message[0] = 0;  /* not compressed */
    put32(message + 1, length);
    data_length = length + 5;
    call_length = HEAD + headers_length + HEAD + data_length;
}

static void begin(Client *c);

static void open_connection(Client *c) {
    static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    unsigned char first[128], *f = first;
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&to, sizeof to)) fail("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &e)) fail("epoll_ctl");
    memcpy(f, preface, 24);
    f = frame(f + 24, 12, SETTINGS, 0, 0);
    f[0] = 0, f[1] = 2;  /* no pushes */
    put32(f + 2, 0);
    f[6] = 0, f[7] = 4;  /* the window of a stream */
    put32(f + 8, WINDOW);
    f = frame(f + 12, 4, WINDOW_UPDATE, 0, 0);
    put32(f, WINDOW);
    send_all(c, first, f + 4 - first);
    c->used = c->waiting = 0;
    c->taken = 0;
    c->stream = -1;
    c->window = 65535;
}

static void send_call(Client *c) {
    c->waiting = 0;
    c->window -= data_length;
    frame(call, headers_length, HEADERS, END_HEADERS, c->stream);
    frame(call + HEAD + headers_length, data_length, DATA, END_STREAM, c->stream);
    c->sent = now();
    send_all(c, call, call_length);
}

static void begin(Client *c) {
    if (limit && started >= limit) return;
    if (c->fd < 0 || c->stream > 0x7ffffff0) {
        if (c->fd >= 0) close(c->fd);
        open_connection(c);
    }
    started++;
    c->stream += 2;
    c->messages = 0;
    c->begun = 0;
    if (c->window < data_length) c->waiting = 1;  /* until the server gives more */
    else send_call(c);
}

static void finish(Client *c, int good) {
    double end = now();
    if (!good) errors++;
    keep(end - c->sent, (c->begun ? c->begun : end) - c->sent);
    begin(c);
}

/* One frame; returns 0 where the connection is over. */
static int take(Client *c, int type, int flags, int stream, const unsigned char *payload, int length) {
    unsigned char answer[64];
    if (type == SETTINGS && !(flags & ACK)) {
        send_all(c, answer, frame(answer, 0, SETTINGS, ACK, 0) - answer);
    } else if (type == PING && !(flags & ACK)) {
        memcpy(frame(answer, 8, PING, ACK, 0), payload, 8);
        send_all(c, answer, HEAD + 8);
    } else if (type == WINDOW_UPDATE && !stream) {
        c->window += get(payload, 4);
        if (c->waiting && c->window >= data_length) send_call(c);
    } else if (type == GOAWAY) {
        return 0;
    } else if (type == DATA) {
        c->taken += length;
        if (c->taken > WINDOW / 2) {
            put32(frame(answer, 4, WINDOW_UPDATE, 0, 0), c->taken);
            send_all(c, answer, HEAD + 4);
            c->taken = 0;
        }
    }
    if (stream != c->stream || c->waiting) return 1;
    if (type == DATA && length) {
        if (!c->begun) c->begun = now();
        c->messages += length > 5 || c->messages;
    }
    if (type == RST_STREAM) finish(c, 0);
    else if ((type == DATA || type == HEADERS) && flags & END_STREAM) {
        if (type == HEADERS && !(flags & END_HEADERS)) {
            fprintf(stderr, "trailers in several frames\n");
            exit(1);
        }
        finish(c, c->messages > 0);
    }
    return 1;
}

static int feed(Client *c) {
    int from = 0;
    while (c->used - from >= HEAD) {
        unsigned char *head = c->in + from;
        int length = get(head, 3);
        if (length > (int)sizeof c->in - HEAD) {
            fprintf(stderr, "a frame of %d bytes\n", length);
            exit(1);
        }
        if (c->used - from - HEAD < length) break;
        if (!take(c, head[3], head[4], get(head + 5, 4) & 0x7fffffff, head + HEAD, length)) return 0;
        from += HEAD + length;
    }
    memmove(c->in, c->in + from, c->used - from);
    c->used -= from;
    return 1;
}

int main(int argc, char **argv) {
    struct epoll_event events[256];
    if (argc != 7) return 2;
    port = atoi(argv[1]);
    int clients = atoi(argv[2]);
    double seconds = atof(argv[3]);
    limit = atol(argv[4]);
    make_call(argv[6], argv[5]);
    epoll_fd = epoll_create1(0);
    Client *all = calloc(clients, sizeof *all);
    for (int i = 0; i < clients; i++) open_connection(&all[i]);
    double start = now(), end = start + seconds * 1e3;
    for (int i = 0; i < clients; i++) begin(&all[i]);
    while (now() < end && !(limit && done >= limit)) {
        int n = epoll_wait(epoll_fd, events, 256, 100);
        for (int i = 0; i < n; i++) {
            Client *c = events[i].data.ptr;
            ssize_t got = read(c->fd, c->in + c->used, sizeof c->in - c->used);
            if (got < 0 && errno == EAGAIN) continue;
            if (got > 0) c->used += got;
            if (got <= 0 || !feed(c)) {
                errors++;
                close(c->fd);
                c->fd = -1;
                begin(c);
            }
        }
    }
    print_results((now() - start) / 1e3);
    return 0;
}
