/* What the load generators share: the clock, the times of the requests that ended, and how they are printed. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double *times, *firsts;
static long done, capacity, frames, errors, started, limit;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

/* One request ended; its times in milliseconds from when it was sent: all of it, and the first byte of the body. */
static void keep(double whole, double first) {
    if (done == capacity) {
        capacity = capacity ? capacity * 2 : 65536;
        times = realloc(times, capacity * sizeof *times);
        firsts = realloc(firsts, capacity * sizeof *firsts);
        if (!times || !firsts) fail("realloc");
    }
    times[done] = whole;
    firsts[done++] = first;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double at(double *sorted, double q) { return done ? sorted[(long)(q * (done - 1) + 0.5)] : 0; }

static void print_results(double seconds) {
    qsort(times, done, sizeof *times, ascending);
    qsort(firsts, done, sizeof *firsts, ascending);
    printf("{\"requests\": %ld, \"errors\": %ld, \"frames\": %ld, \"seconds\": %.6f, \"p50_ms\": %.6f, \"p99_ms\": %.6f, "
           "\"ttft_p50_ms\": %.6f, \"ttft_p99_ms\": %.6f}\n",
           done, errors, frames, seconds, at(times, .5), at(times, .99), at(firsts, .5), at(firsts, .99));
}
