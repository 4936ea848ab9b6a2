/* The block codec of the store: adaptive tables, 64 interleaved rANS states, differences of ordered floats.
 *
 * One file without dependencies, compiled on the machine it runs on (see _native.py). docs/store-format.md describes
 * the bytes; _numpy.py writes and reads the same ones. Selected at compile time: AVX-512 (F, BW, VL, DQ), AVX2 or plain C.
 *
 * Every function is given its memory; none allocates. Decoders trust nothing in `in`: they return a negative number for
 * what no encoder wrote and never read or write outside of what they were given.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include <immintrin.h>
#define WIDE 512
#elif defined(__AVX2__)
#include <immintrin.h>
#define WIDE 256
#else
#define WIDE 0
#endif

#define LANES 64
#define MOST_BITS 11 /* frequencies sum to 2^10 under many contexts, so that the tables fit the cache, else to 2^11 */
#define LOW (1u << 16) /* a state is in [LOW, 2^32) between symbols */
#define CONTEXTS 32
#define SYMBOLS 256
#define ESCAPE 255 /* the value follows apart, whole */
#define ZERO 254   /* positive zero where the difference is too large: what pruning leaves */
#define FINE 11    /* bits of a section of bytes or of exponents */
#define COARSE 10  /* bits of a section of differences, which has more contexts */
#define GROUP 32   /* elements; segments are whole groups */
#define WINDOW 32  /* distances of exponents that the rate of change is looked up by */

enum { DAMAGED = -1, TOO_LONG = -2 };

int pressroom_kernel_width(void) { return WIDE; }

/* ---- bits, least significant first ---- */

typedef struct {
    uint8_t *at, *end;
    uint64_t held;
    unsigned count;
    int full;
} Bits;

static void bits_put(Bits *b, uint32_t value, unsigned width) {
    b->held |= (uint64_t)value << b->count;
    b->count += width;
    while (b->count >= 8) {
        if (b->at == b->end) { b->full = 1; b->count = 0; return; }
        *b->at++ = (uint8_t)b->held;
        b->held >>= 8;
        b->count -= 8;
    }
}

static void bits_end(Bits *b) { if (b->count) bits_put(b, 0, 8 - b->count); }

typedef struct {
    const uint8_t *at, *end;
    uint64_t held;
    unsigned count;
    int empty;
} BitsIn;

static inline void bits_fill(BitsIn *b) { /* at least 56 bits, unless there are no more */
    while (b->count <= 56 && b->at < b->end) {
        b->held |= (uint64_t)*b->at++ << b->count;
        b->count += 8;
    }
}

static inline uint32_t bits_get(BitsIn *b, unsigned width) {
    if (b->count < width) {
        bits_fill(b);
        if (b->count < width) { b->empty = 1; return 0; }
    }
    uint32_t value = (uint32_t)(b->held & ((1ull << width) - 1));
    b->held >>= width;
    b->count -= width;
    return value;
}

/* Ones up to the next zero, which is taken, too; more than 32 where there are too many. */
static inline unsigned bits_ones(BitsIn *b) {
    if (b->count < 40) bits_fill(b);
    unsigned ones = ~b->held ? (unsigned)__builtin_ctzll(~b->held) : 64;
    if (ones >= b->count) { b->empty = 1; return 99; }
    b->held >>= ones + 1 > 63 ? 63 : ones + 1;
    b->count -= ones + 1;
    return ones;
}

/* What put_shift has put; beyond all bounds where it is none. */
static inline int get_shift(BitsIn *b) {
    unsigned z = bits_ones(b);
    if (z > 30) return 99;
    return z & 1 ? -(int)((z + 1) / 2) : (int)(z / 2);
}

/* A small number: zig-zag, unary. */
static void put_shift(Bits *b, int k) {
    unsigned z = (unsigned)(k < 0 ? -2 * k - 1 : 2 * k);
    bits_put(b, (1u << z) - 1, z + 1);
}

static unsigned length_of(uint32_t v) {
    return v ? 32u - (unsigned)__builtin_clz(v) : 0;
}

/* ---- tables of frequencies ---- */

/* Frequencies that sum to 2^bits from counts: at least 1 for what is kept, four significant bits for all but the most
 * frequent symbol, which takes the rest and is returned. With `escapes`, symbols too rare to be worth their place are left to ESCAPE;
 * that one's count is given and grows. */
static int normalise(uint32_t *count, uint16_t *freq, unsigned bits, int escapes) {
    const uint32_t whole = 1u << bits;
    uint64_t total = 0;
    memset(freq, 0, SYMBOLS * sizeof *freq);
    for (int s = 0; s < SYMBOLS; s++) total += count[s];
    if (!total) return 0;
    if (escapes) {
        for (int s = 1; s < ESCAPE; s++)
            if (count[s] && s != ZERO && (uint64_t)count[s] * 11 <= 6 + (total * 3 / 2 >> bits)) { count[ESCAPE] += count[s]; count[s] = 0; }
    }
    int top = 0;
    for (int s = 1; s < SYMBOLS; s++) if (count[s] > count[top]) top = s;
    uint32_t others = 0;
    for (int s = 0; s < SYMBOLS; s++) {
        if (s == top || !count[s]) continue;
        uint32_t f = (uint32_t)(((uint64_t)count[s] * whole + total / 2) / total);
        if (f < 1) f = 1;
        unsigned n = length_of(f);
        if (n > 4) {
            uint32_t half = 1u << (n - 5);
            f = ((f + half) >> (n - 4)) << (n - 4);
        }
        freq[s] = (uint16_t)f;
        others += f;
    }
    /* What rounding the others up has taken from the most frequent one is given back by the largest of them, in turn. */
    uint32_t share = (uint32_t)((uint64_t)count[top] * whole / total);
    share = share < 1 ? 1 : share;
    while (others > whole - share) {
        int largest = top ? 0 : 1;
        for (int s = 0; s < SYMBOLS; s++) if (s != top && freq[s] > freq[largest]) largest = s;
        if (freq[largest] < 2) break;
        unsigned n = length_of(freq[largest]);
        uint32_t step = n > 4 ? 1u << (n - 4) : 1;
        freq[largest] = (uint16_t)(freq[largest] - step);
        others -= step;
    }
    if (!others) { /* one symbol only: the place in a range has no room for all of it, so another one is given a place it never uses */
        freq[top == ESCAPE ? 0 : ESCAPE] = 1;
        others = 1;
    }
    freq[top] = (uint16_t)(whole - others);
    return top;
}

/* The tables that are used, in order: a bit each; then top (8 bits), last symbol (8 bits), and for every symbol up to it
 * but `top` the change of the length of its frequency from that of the symbol before (zig-zag, unary), and its bits below
 * the leading one, three at most. */
static void tables_write(Bits *b, uint16_t freq[CONTEXTS][SYMBOLS], const uint8_t tops[CONTEXTS]) {
    for (int c = 0; c < CONTEXTS; c++) {
        int top = tops[c], last = 0, previous = 0;
        for (int s = 0; s < SYMBOLS; s++) if (freq[c][s]) last = s;
        if (!freq[c][top]) { bits_put(b, 0, 1); continue; }
        bits_put(b, 1, 1);
        bits_put(b, (uint32_t)top, 8);
        bits_put(b, (uint32_t)last, 8);
        for (int s = 0; s <= last; s++) {
            if (s == top) { previous = 9; continue; }
            uint32_t f = freq[c][s];
            int n = (int)length_of(f), d = n - previous, z = d < 0 ? -2 * d - 1 : 2 * d;
            bits_put(b, (1u << z) - 1, (unsigned)z + 1);
            if (n > 1) {
                unsigned kept = n > 4 ? 3 : (unsigned)n - 1;
                bits_put(b, (f >> ((unsigned)n - 1 - kept)) & ((1u << kept) - 1), kept);
            }
            previous = n;
        }
    }
}

static int tables_read(BitsIn *b, uint16_t freq[CONTEXTS][SYMBOLS], unsigned bits) {
    for (int c = 0; c < CONTEXTS; c++) {
        memset(freq[c], 0, sizeof freq[c]);
        if (!bits_get(b, 1)) continue;
        int top = (int)bits_get(b, 8), last = (int)bits_get(b, 8), previous = 0;
        uint32_t others = 0;
        for (int s = 0; s <= last; s++) {
            if (s == top) { previous = 9; continue; }
            unsigned z = bits_ones(b);
            if (z > 28) return DAMAGED;
            int n = previous + ((z & 1) ? -(int)((z + 1) / 2) : (int)(z / 2));
            if (n < 0 || n > (int)bits) return DAMAGED;
            uint32_t f = (uint32_t)(n > 0);
            if (n > 1) {
                unsigned kept = n > 4 ? 3 : (unsigned)n - 1;
                f = ((1u << kept) | bits_get(b, kept)) << ((unsigned)n - 1 - kept);
            }
            freq[c][s] = (uint16_t)f;
            others += f;
            previous = n;
        }
        if (b->empty || others < 1 || others >= 1u << bits) return DAMAGED;
        freq[c][top] = (uint16_t)((1u << bits) - others);
    }
    return b->empty ? DAMAGED : 0;
}

/* ---- memory of one call ---- */

typedef struct {
    uint32_t slots[CONTEXTS << MOST_BITS]; /* symbol << 24 | frequency << 12 | place in the symbol's range */
    uint16_t freq[CONTEXTS][SYMBOLS];
    uint8_t top[CONTEXTS];
    uint64_t codes[CONTEXTS * SYMBOLS]; /* inverse of the frequency << 32 | sum of those before << 16 | frequency */
    uint32_t count[CONTEXTS * SYMBOLS];
    uint16_t part[4][CONTEXTS * SYMBOLS];
} Tables;

size_t pressroom_tables_size(void) { return sizeof(Tables) + 64; }

static Tables *tables_of(void *memory) { return (Tables *)(((uintptr_t)memory + 63) & ~(uintptr_t)63); }

static void slots_fill(Tables *t, unsigned bits) {
    for (int c = 0; c < CONTEXTS; c++) {
        uint32_t *at = t->slots + ((size_t)c << bits);
        for (int s = 0; s < SYMBOLS; s++) {
            uint32_t f = t->freq[c][s];
            if (!f) continue;
            uint32_t base = (uint32_t)s << 24 | f << 12;
            for (uint32_t i = 0; i < f; i++) at[i] = base | i;
            at += f;
        }
        /* A context without a table keeps what was there: only damaged bytes lead to it, to a symbol that no check
         * lets pass, and filling it would cost as much as a context that is used. */
    }
}

static void codes_fill(Tables *t) {
    for (int c = 0; c < CONTEXTS; c++) {
        uint32_t sum = 0;
        for (int s = 0; s < SYMBOLS; s++) {
            uint32_t f = t->freq[c][s];
            size_t i = (size_t)c * SYMBOLS + (size_t)s;
            t->codes[i] = (f > 1 ? (1ull << 32) / f : 0xFFFFFFFFull) << 32 | sum << 16 | f;
            sum += f;
        }
    }
}

/* Context << 8 | symbol of each element, counted: in four copies, so that equal neighbours do not wait for each other,
 * and of 16 bits, so that they fit the cache. */
static void count_all(Tables *t, const uint16_t *index, size_t n) {
    memset(t->count, 0, sizeof t->count);
    for (size_t from = 0; from < n;) {
        size_t end = n - from > 4 * 65535 ? from + 4 * 65535 : n, i = from;
        memset(t->part, 0, sizeof t->part);
        for (; i + 4 <= end; i += 4) {
            t->part[0][index[i]]++;
            t->part[1][index[i + 1]]++;
            t->part[2][index[i + 2]]++;
            t->part[3][index[i + 3]]++;
        }
        for (; i < end; i++) t->count[index[i]]++;
        for (size_t k = 0; k < CONTEXTS * SYMBOLS; k++) t->count[k] += t->part[0][k] + t->part[1][k] + t->part[2][k] + t->part[3][k];
        from = end;
    }
}

/* ---- rANS ---- */

/* Which element of a step is coded by the states in order: the one that unpacking 32 values of 16 bits into two vectors
 * of 32 bits gives, low halves first. */
#define LANE(j) (((j) & 32) | ((j) & 12) << 1 | ((j) & 16) >> 2 | ((j) & 3))

/* Encode index[0..n) from the last to the first, n a multiple of LANES; words are written downwards from `end`.
 * Returns the first word. Room for n words is needed. */

#if WIDE == 512
static inline __m512i eight64(const uint64_t *t, const uint32_t *i) {
    __m128i a = _mm_set_epi64x((long long)t[i[1]], (long long)t[i[0]]), b = _mm_set_epi64x((long long)t[i[3]], (long long)t[i[2]]);
    __m128i c = _mm_set_epi64x((long long)t[i[5]], (long long)t[i[4]]), d = _mm_set_epi64x((long long)t[i[7]], (long long)t[i[6]]);
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_set_m128i(b, a)), _mm256_set_m128i(d, c), 1);
}
static inline __m512i gather16(__m512i k, const uint32_t *t) { /* in halves: a third faster than whole on Zen 4 */
    __m256i low = _mm256_i32gather_epi32((const int *)t, _mm512_castsi512_si256(k), 4);
    __m256i high = _mm256_i32gather_epi32((const int *)t, _mm512_extracti64x4_epi64(k, 1), 4);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
#endif
static inline uint16_t *rans_encode(const Tables *t, const uint16_t *index, size_t n, unsigned bits, uint32_t *state, uint16_t *end) {
    uint16_t *at = end;
#if WIDE == 512
    __m512i x[4], zero = _mm512_setzero_si512();
    __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    __m512i odds = _mm512_or_si512(evens, _mm512_set1_epi32(1));
    for (int v = 0; v < 4; v++) x[v] = _mm512_set1_epi32(LOW);
    for (size_t i = n; i;) {
        i -= LANES;
        __m512i first[4], inverse[4];
        for (int v = 3; v >= 0; v--) {
            __m512i both = _mm512_loadu_si512(index + i + 32 * (v / 2));
            __m512i k = v & 1 ? _mm512_unpackhi_epi16(both, zero) : _mm512_unpacklo_epi16(both, zero);
            uint32_t at16[16] __attribute__((aligned(64)));
            _mm512_store_si512(at16, k);
            __m512i low8 = eight64(t->codes, at16), high8 = eight64(t->codes, at16 + 8);
            first[v] = _mm512_permutex2var_epi32(low8, evens, high8);
            inverse[v] = _mm512_permutex2var_epi32(low8, odds, high8);
        }
        for (int v = 3; v >= 0; v--) {
            __m512i f = _mm512_and_si512(first[v], _mm512_set1_epi32(0xFFFF));
            __m512i y = x[v];
            __mmask16 m = _mm512_cmpge_epu32_mask(y, _mm512_slli_epi32(f, 32 - bits));
            unsigned words = (unsigned)__builtin_popcount(m);
            at -= words;
            __m256i low = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(m, y));
            _mm256_mask_storeu_epi16(at, (__mmask16)((1u << words) - 1), low);
            y = _mm512_mask_srli_epi32(y, m, y, 16);
            __m512i even = _mm512_srli_epi64(_mm512_mul_epu32(y, inverse[v]), 32);
            __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(y, 32), _mm512_srli_epi64(inverse[v], 32));
            __m512i q = _mm512_mask_blend_epi32(0xAAAA, even, odd);
            __m512i r = _mm512_sub_epi32(y, _mm512_mullo_epi32(q, f));
            __mmask16 over = _mm512_cmpge_epu32_mask(r, f);
            q = _mm512_mask_add_epi32(q, over, q, _mm512_set1_epi32(1));
            r = _mm512_mask_sub_epi32(r, over, r, f);
            x[v] = _mm512_add_epi32(_mm512_slli_epi32(q, bits), _mm512_add_epi32(r, _mm512_srli_epi32(first[v], 16)));
        }
    }
    for (int v = 0; v < 4; v++) _mm512_storeu_si512(state + 16 * v, x[v]);
#else
    for (int l = 0; l < LANES; l++) state[l] = LOW;
    for (size_t i = n; i;) {
        i -= LANES;
        for (int l = LANES - 1; l >= 0; l--) {
            uint64_t code = t->codes[index[i + LANE((size_t)l)]];
            uint32_t f = code & 0xFFFF, x = state[l];
            if (x >= f << (32 - bits)) { *--at = (uint16_t)x; x >>= 16; }
            uint32_t q = (uint32_t)(((uint64_t)x * (code >> 32)) >> 32), r = x - q * f;
            if (r >= f) { q++; r -= f; }
            state[l] = (q << bits) + r + (uint32_t)(code >> 16 & 0xFFFF);
        }
    }
#endif
    return at;
}

/* What feeds the decoders: the states, and the words that are left. Near the end the words are read from `tail`, a copy
 * with zeros behind, so that a whole step may always be read. */
typedef struct {
    const uint16_t *at, *end;
    uint16_t tail[2 * LANES + 32];
    int in_tail;
} Words;

static int words_step(Words *w) { /* before each step of LANES symbols */
    if (w->end - w->at >= LANES + 16) return 0;
    if (!w->in_tail) {
        size_t left = (size_t)(w->end - w->at);
        memset(w->tail, 0, sizeof w->tail);
        memcpy(w->tail, w->at, left * 2);
        w->at = w->tail;
        w->end = w->tail + left;
        w->in_tail = 1;
    }
    return w->at > w->end ? DAMAGED : 0;
}

static inline uint16_t unaligned16(const void *p) { uint16_t v; memcpy(&v, p, 2); return v; }
static inline uint32_t unaligned32(const void *p) { uint32_t v; memcpy(&v, p, 4); return v; }

/* Half: 32 values of 16 bits. step64 takes the contexts' places in the table (context << BITS) and gives the symbols. */
#if WIDE == 512
typedef __m512i Half;
typedef struct { __m512i of[4]; } States;
static inline Half h_load(const void *p) { return _mm512_loadu_si512(p); }
static inline void h_store(void *p, Half v) { _mm512_storeu_si512(p, v); }
static inline Half h_bytes(const uint8_t *p) { return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)p)); }
static inline void h_store_bytes(uint8_t *p, Half v) { _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi16_epi8(v)); }
static inline Half h_all(int v) { return _mm512_set1_epi16((short)v); }
static inline Half h_and(Half a, Half b) { return _mm512_and_si512(a, b); }
static inline Half h_or(Half a, Half b) { return _mm512_or_si512(a, b); }
static inline Half h_xor(Half a, Half b) { return _mm512_xor_si512(a, b); }
static inline Half h_add(Half a, Half b) { return _mm512_add_epi16(a, b); }
static inline Half h_sub(Half a, Half b) { return _mm512_sub_epi16(a, b); }
static inline Half h_subs(Half a, Half b) { return _mm512_subs_epu16(a, b); }
static inline Half h_min(Half a, Half b) { return _mm512_min_epu16(a, b); }
static inline Half h_sll(Half a, int n) { return _mm512_sll_epi16(a, _mm_cvtsi32_si128(n)); }
static inline Half h_srl(Half a, int n) { return _mm512_srl_epi16(a, _mm_cvtsi32_si128(n)); }
static inline Half h_sign(Half a) { return _mm512_srai_epi16(a, 15); }
static inline uint32_t h_equal(Half a, Half b) { return _mm512_cmpeq_epi16_mask(a, b); }
static inline Half h_clear(Half a, uint32_t mask) { return _mm512_maskz_mov_epi16(~mask, a); }
typedef __m512i Table; /* of 32 small numbers */
static inline Table h_table(const uint16_t *p) { return _mm512_loadu_si512(p); }
static inline Half h_lookup(Table t, Half at) { return _mm512_permutexvar_epi16(at, t); }
static inline States states_load(const uint32_t *p) {
    States s;
    for (int v = 0; v < 4; v++) s.of[v] = _mm512_loadu_si512(p + 16 * v);
    return s;
}
static inline void states_store(uint32_t *p, States s) { for (int v = 0; v < 4; v++) _mm512_storeu_si512(p + 16 * v, s.of[v]); }
/* The four vectors take each part of the work one after the other, so that none waits for its own last part. */
static inline void step64(const uint32_t *slots, const Half base[2], unsigned bits, States *s, const uint16_t **words, Half symbol[2]) {
    __m512i zero = _mm512_setzero_si512(), low = _mm512_set1_epi32((int)(1u << bits) - 1), e[4], x[4];
    __mmask16 m[4];
    for (int v = 0; v < 4; v++) {
        __m512i at = v & 1 ? _mm512_unpackhi_epi16(base[v / 2], zero) : _mm512_unpacklo_epi16(base[v / 2], zero);
        e[v] = gather16(_mm512_or_si512(at, _mm512_and_si512(s->of[v], low)), slots);
    }
    for (int v = 0; v < 4; v++) {
        __m512i f = _mm512_and_si512(_mm512_srli_epi32(e[v], 12), _mm512_set1_epi32(0xFFF));
        x[v] = _mm512_add_epi32(_mm512_mullo_epi32(f, _mm512_srli_epi32(s->of[v], bits)), _mm512_and_si512(e[v], low));
        m[v] = _mm512_cmplt_epu32_mask(x[v], _mm512_set1_epi32(LOW));
    }
    const uint16_t *at = *words;
    for (int v = 0; v < 4; v++) {
        __m512i next = _mm512_maskz_expand_epi32(m[v], _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)at)));
        at += __builtin_popcount(m[v]);
        s->of[v] = _mm512_mask_or_epi32(x[v], m[v], _mm512_slli_epi32(x[v], 16), next);
    }
    *words = at;
    for (int h = 0; h < 2; h++) symbol[h] = _mm512_packus_epi32(_mm512_srli_epi32(e[2 * h], 24), _mm512_srli_epi32(e[2 * h + 1], 24));
}
#elif WIDE == 256
typedef struct { __m256i a, b; } Half;
typedef struct { __m256i of[8]; } States;
#define H(x, y) (Half){x, y}
static inline Half h_load(const void *p) {
    return H(_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)p + 1));
}
static inline void h_store(void *p, Half v) {
    _mm256_storeu_si256((__m256i *)p, v.a);
    _mm256_storeu_si256((__m256i *)p + 1, v.b);
}
static inline Half h_bytes(const uint8_t *p) {
    return H(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p)), _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p + 1)));
}
static inline void h_store_bytes(uint8_t *p, Half v) {
    _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(_mm256_packus_epi16(v.a, v.b), 0xD8));
}
static inline Half h_all(int v) { return H(_mm256_set1_epi16((short)v), _mm256_set1_epi16((short)v)); }
static inline Half h_and(Half x, Half y) { return H(_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)); }
static inline Half h_or(Half x, Half y) { return H(_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)); }
static inline Half h_xor(Half x, Half y) { return H(_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)); }
static inline Half h_add(Half x, Half y) { return H(_mm256_add_epi16(x.a, y.a), _mm256_add_epi16(x.b, y.b)); }
static inline Half h_sub(Half x, Half y) { return H(_mm256_sub_epi16(x.a, y.a), _mm256_sub_epi16(x.b, y.b)); }
static inline Half h_subs(Half x, Half y) { return H(_mm256_subs_epu16(x.a, y.a), _mm256_subs_epu16(x.b, y.b)); }
static inline Half h_min(Half x, Half y) { return H(_mm256_min_epu16(x.a, y.a), _mm256_min_epu16(x.b, y.b)); }
static inline Half h_sll(Half x, int n) {
    __m128i by = _mm_cvtsi32_si128(n);
    return H(_mm256_sll_epi16(x.a, by), _mm256_sll_epi16(x.b, by));
}
static inline Half h_srl(Half x, int n) {
    __m128i by = _mm_cvtsi32_si128(n);
    return H(_mm256_srl_epi16(x.a, by), _mm256_srl_epi16(x.b, by));
}
static inline Half h_sign(Half x) { return H(_mm256_srai_epi16(x.a, 15), _mm256_srai_epi16(x.b, 15)); }
static inline uint32_t h_equal(Half x, Half y) {
    __m256i bytes = _mm256_packs_epi16(_mm256_cmpeq_epi16(x.a, y.a), _mm256_cmpeq_epi16(x.b, y.b));
    return (uint32_t)_mm256_movemask_epi8(_mm256_permute4x64_epi64(bytes, 0xD8));
}
static inline Half h_clear(Half x, uint32_t mask) {
    uint16_t v[32];
    h_store(v, x);
    for (; mask; mask &= mask - 1) v[__builtin_ctz(mask)] = 0;
    return h_load(v);
}
typedef struct { __m256i low, high; } Table; /* of 32 small numbers: bytes, 16 in each half of both */
static inline Table h_table(const uint16_t *p) {
    uint8_t b[32];
    for (int i = 0; i < 32; i++) b[i] = (uint8_t)p[i];
    return (Table){_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)b)),
                   _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)b + 1))};
}
static inline __m256i lookup8(Table t, __m256i at) {
    __m256i far = _mm256_cmpgt_epi16(at, _mm256_set1_epi16(15));
    __m256i found = _mm256_blendv_epi8(_mm256_shuffle_epi8(t.low, at), _mm256_shuffle_epi8(t.high, at), far);
    return _mm256_and_si256(found, _mm256_set1_epi16(255));
}
static inline Half h_lookup(Table t, Half at) { return H(lookup8(t, at.a), lookup8(t, at.b)); }
static inline States states_load(const uint32_t *p) {
    States s;
    for (int v = 0; v < 8; v++) s.of[v] = _mm256_loadu_si256((const __m256i *)p + v);
    return s;
}
static inline void states_store(uint32_t *p, States s) { for (int v = 0; v < 8; v++) _mm256_storeu_si256((__m256i *)p + v, s.of[v]); }
/* For each mask of eight lanes: which word goes into which lane. */
static uint32_t spread[256][8];
__attribute__((constructor)) static void spread_make(void) {
    for (int m = 0; m < 256; m++) {
        uint32_t next = 0;
        for (int l = 0; l < 8; l++) spread[m][l] = (m >> l) & 1 ? next++ : 0;
    }
}
static inline __m256i step8(const uint32_t *slots, __m256i base, unsigned bits, __m256i *state, const uint16_t **words) {
    __m256i x = *state, low = _mm256_set1_epi32((int)(1u << bits) - 1);
    __m256i e = _mm256_i32gather_epi32((const int *)slots, _mm256_or_si256(base, _mm256_and_si256(x, low)), 4);
    __m256i f = _mm256_and_si256(_mm256_srli_epi32(e, 12), _mm256_set1_epi32(0xFFF));
    x = _mm256_add_epi32(_mm256_mullo_epi32(f, _mm256_srli_epi32(x, (int)bits)), _mm256_and_si256(e, low));
    __m256i small = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), _mm256_setzero_si256());
    int m = _mm256_movemask_ps(_mm256_castsi256_ps(small));
    __m256i next = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)*words));
    next = _mm256_permutevar8x32_epi32(next, _mm256_loadu_si256((const __m256i *)spread[m]));
    *words += __builtin_popcount((unsigned)m);
    *state = _mm256_blendv_epi8(x, _mm256_or_si256(_mm256_slli_epi32(x, 16), next), small);
    return _mm256_srli_epi32(e, 24);
}
static inline Half step32(const uint32_t *slots, Half base, unsigned bits, States *s, int half, const uint16_t **words) {
    __m256i zero = _mm256_setzero_si256(), *of = s->of + 4 * half;
    __m256i a = step8(slots, _mm256_unpacklo_epi16(base.a, zero), bits, of, words);
    __m256i b = step8(slots, _mm256_unpacklo_epi16(base.b, zero), bits, of + 1, words);
    __m256i c = step8(slots, _mm256_unpackhi_epi16(base.a, zero), bits, of + 2, words);
    __m256i d = step8(slots, _mm256_unpackhi_epi16(base.b, zero), bits, of + 3, words);
    return H(_mm256_packus_epi32(a, c), _mm256_packus_epi32(b, d));
}
static inline void step64(const uint32_t *slots, const Half base[2], unsigned bits, States *s, const uint16_t **words, Half symbol[2]) {
    for (int h = 0; h < 2; h++) symbol[h] = step32(slots, base[h], bits, s, h, words);
}
#else
static inline uint32_t step1(const uint32_t *slots, uint32_t base, unsigned bits, uint32_t *state, const uint16_t **words) {
    uint32_t x = *state, low = (1u << bits) - 1, e = slots[base | (x & low)];
    x = ((e >> 12) & 0xFFF) * (x >> bits) + (e & low);
    if (x < LOW) x = x << 16 | unaligned16((*words)++);
    *state = x;
    return e >> 24;
}
#endif

static int finished(const uint32_t *state, const Words *w) {
    if (w->at != w->end) return DAMAGED;
    for (int l = 0; l < LANES; l++) if (state[l] != LOW) return DAMAGED;
    return 0;
}

/* ---- bytes, each under a context ---- */

/* Section: u32 words, u32 length of the tables, tables, states, words. */

static inline int64_t section_write(Tables *t, const uint16_t *index, size_t padded, unsigned bits, uint16_t *work, uint8_t *out, size_t room) {
    uint32_t state[LANES];
    if (room < 8 + 4 * LANES) return TOO_LONG;
    Bits b = {out + 8, out + room, 0, 0, 0};
    tables_write(&b, t->freq, t->top);
    bits_end(&b);
    if (b.full) return TOO_LONG;
    size_t tables = (size_t)(b.at - (out + 8));
    codes_fill(t);
    uint16_t *end = work + padded, *first = rans_encode(t, index, padded, bits, state, end);
    size_t words = (size_t)(end - first), need = 8 + tables + 4 * LANES + 2 * words;
    if (need > room) return TOO_LONG;
    uint32_t head[2] = {(uint32_t)words, (uint32_t)tables};
    memcpy(out, head, 8);
    memcpy(out + 8 + tables, state, sizeof state);
    memcpy(out + 8 + tables + sizeof state, first, 2 * words);
    return (int64_t)need;
}

static int64_t section_open(Tables *t, const uint8_t *in, size_t length, unsigned bits, uint32_t *state, Words *w) {
    if (length < 8) return DAMAGED;
    size_t words = unaligned32(in), tables = unaligned32(in + 4);
    if (tables > length - 8 || 4 * LANES > length - 8 - tables) return DAMAGED;
    if (words > (length - 8 - tables - 4 * LANES) / 2) return DAMAGED;
    BitsIn b = {in + 8, in + 8 + tables, 0, 0, 0};
    if (tables_read(&b, t->freq, bits) || b.at != b.end || b.count > 7 || b.held) return DAMAGED;
    slots_fill(t, bits);
    memcpy(state, in + 8 + tables, 4 * LANES);
    for (int l = 0; l < LANES; l++) if (state[l] < LOW) return DAMAGED;
    w->at = (const uint16_t *)(in + 8 + tables + 4 * LANES);
    w->end = w->at + words;
    w->in_tail = 0;
    return (int64_t)(8 + tables + 4 * LANES + 2 * words);
}

static size_t padded_to_lanes(size_t n) { return (n + LANES - 1) / LANES * LANES; }

/* The elements that fill the last step: the most frequent symbol of the first context that has a table. */
static int padding_of(uint16_t freq[CONTEXTS][SYMBOLS]) {
    for (int c = 0; c < CONTEXTS; c++) {
        int top = 0;
        for (int s = 0; s < SYMBOLS; s++) if (freq[c][s] > freq[c][top]) top = s;
        if (freq[c][top]) return c << 8 | top;
    }
    return 0;
}

static void tables_make(Tables *t, unsigned bits, int escapes) {
    for (int c = 0; c < CONTEXTS; c++) t->top[c] = (uint8_t)normalise(t->count + c * SYMBOLS, t->freq[c], bits, escapes);
}

/* One step whose contexts are given: LANES symbols into `out`. */
static inline void step_given(const Tables *t, const uint8_t *context, unsigned bits, uint32_t *state, Words *w, uint8_t *out) {
#if WIDE
    States s = states_load(state);
    Half base[2], found[2];
    for (int h = 0; h < 2; h++) base[h] = h_sll(h_bytes(context + 32 * h), (int)bits);
    step64(t->slots, base, bits, &s, &w->at, found);
    for (int h = 0; h < 2; h++) h_store_bytes(out + 32 * h, found[h]);
    states_store(state, s);
#else
    for (int l = 0; l < LANES; l++) out[LANE(l)] = (uint8_t)step1(t->slots, (uint32_t)context[LANE(l)] << bits, bits, state + l, &w->at);
#endif
}

/* Symbols under contexts 0 to 31 (NULL: all 0). `index`: room for n + LANES values, `work`: for as many words.
 * Returns the bytes of the section, or TOO_LONG. */
int64_t pressroom_bytes_encode(const uint8_t *symbol, const uint8_t *context, size_t n, uint16_t *index, uint16_t *work,
                               uint8_t *out, size_t room, void *memory) {
    Tables *t = tables_of(memory);
    if (context) for (size_t i = 0; i < n; i++) index[i] = (uint16_t)((context[i] & (CONTEXTS - 1)) << 8 | symbol[i]);
    else for (size_t i = 0; i < n; i++) index[i] = symbol[i];
    count_all(t, index, n);
    tables_make(t, FINE, 0);
    int pad = padding_of(t->freq);
    for (size_t i = n; i < padded_to_lanes(n); i++) index[i] = (uint16_t)pad;
    return section_write(t, index, padded_to_lanes(n), FINE, work, out, room);
}

int64_t pressroom_bytes_decode(const uint8_t *in, size_t length, const uint8_t *context, uint8_t *symbol, size_t n, void *memory) {
    Tables *t = tables_of(memory);
    uint32_t state[LANES];
    Words w;
    int64_t read = section_open(t, in, length, FINE, state, &w);
    if (read < 0) return read;
    uint8_t given[LANES], last[LANES];
    size_t i = 0;
    memset(given, 0, sizeof given);
#if WIDE
    States s = states_load(state);
    for (; i + LANES <= n; i += LANES) {
        if (words_step(&w)) return DAMAGED;
        Half base[2], found[2];
        for (int h = 0; h < 2; h++) base[h] = context ? h_sll(h_and(h_bytes(context + i + 32 * h), h_all(CONTEXTS - 1)), FINE) : h_all(0);
        step64(t->slots, base, FINE, &s, &w.at, found);
        for (int h = 0; h < 2; h++) h_store_bytes(symbol + i + 32 * h, found[h]);
    }
    states_store(state, s);
#else
    for (; i + LANES <= n; i += LANES) {
        if (words_step(&w)) return DAMAGED;
        if (context) for (int l = 0; l < LANES; l++) given[l] = context[i + (size_t)l] & (CONTEXTS - 1);
        step_given(t, given, FINE, state, &w, symbol + i);
    }
#endif
    if (i < n) {
        if (words_step(&w)) return DAMAGED;
        memset(given, padding_of(t->freq) >> 8, sizeof given);
        for (size_t l = 0; l < n - i; l++) given[l] = context ? context[i + l] & (CONTEXTS - 1) : 0;
        step_given(t, given, FINE, state, &w, last);
        memcpy(symbol + i, last, n - i);
    }
    return finished(state, &w) ? DAMAGED : read;
}

/* ---- 16-bit floats ---- */

/* Block: the head below; what each segment is shifted by, in bits, where flag SEGMENTS is set, and what each column is,
 * where COLUMNS is; a section; the escapes
 * (u16); and where there is no parent the byte of sign and mantissa of each element. A segment is `groups` times 32
 * elements (a row, as a rule), of which the last may be shorter.
 *
 * Alone: the symbol is the value without sign and lowest seven bits (the exponent of bfloat16), its context that of the
 * segment. Near: the symbol is the difference in the order of floats, zig-zag; its context says how far the parent is
 * below `top`. An optimiser moves all weights of a row by about as much, so what part of them comes out changed after
 * rounding depends on the exponent they had. The context counts in half octaves (`unit` 1) and takes the row's own rate
 * into account; where all small values became zero it counts in units of the last place, and the first context ends
 * exactly where they begin. */
enum { ALONE = 2, NEAR = 3, SEGMENTS = 1, COLUMNS = 2, FURTHEST = 12 };
#define HEAD 28
typedef struct {
    uint8_t kind, flags, shift, unit; /* the parent's magnitude >> shift << unit is what `top` is compared with */
    uint32_t n, escapes, extra;       /* extra: bytes of the segments' shifts */
    uint16_t groups, top, most, zero; /* most: the last context; whatever is further below `top` has that one, too */
    uint32_t starts;                  /* near: a bit for each context that has a table of its own */
} Head;

static inline uint16_t ordered(uint16_t x) { return (uint16_t)(x ^ ((uint16_t)-(x >> 15) & 0x7FFF)); }

static size_t segments_of(size_t n, size_t groups) { return (n + groups * GROUP - 1) / (groups * GROUP); }

static inline unsigned below(unsigned top, uint16_t parent, unsigned shift, unsigned unit) {
    unsigned e = (parent & 0x7FFFu) >> shift << unit;
    return e < top ? top - e : 0;
}

/* How far the exponent of each element of a segment is below `top`, looked up in `rate` and summed; and the changed. */
static void segment_rates(const uint16_t *x, const uint16_t *p, size_t n, unsigned shift, unsigned top,
                          const uint16_t rate[WINDOW], uint64_t *expected, uint64_t *changed) {
    uint64_t sum = 0, differ = 0;
    size_t i = 0;
#if WIDE == 512
    __m512i table = _mm512_loadu_si512(rate), total = _mm512_setzero_si512(), ones = _mm512_set1_epi16(1);
    for (; i + 32 <= n; i += 32) {
        __m512i parent = _mm512_loadu_si512(p + i);
        differ += (uint64_t)__builtin_popcount(_mm512_cmpneq_epu16_mask(_mm512_loadu_si512(x + i), parent));
        __m512i e = _mm512_srl_epi16(_mm512_and_si512(parent, _mm512_set1_epi16(0x7FFF)), _mm_cvtsi32_si128((int)shift));
        __m512i v = _mm512_min_epu16(_mm512_subs_epu16(_mm512_set1_epi16((short)top), e), _mm512_set1_epi16(WINDOW - 1));
        total = _mm512_add_epi32(total, _mm512_madd_epi16(_mm512_permutexvar_epi16(v, table), ones));
    }
    sum = (uint64_t)(uint32_t)_mm512_reduce_add_epi32(total);
#endif
    for (; i < n; i++) {
        unsigned v = below(top, p[i], shift, 0);
        sum += rate[v < WINDOW ? v : WINDOW - 1];
        differ += x[i] != p[i];
    }
    *expected = sum;
    *changed = differ;
}

/* From every 32nd group: which exponent is the first that matters (1/256 of the elements are above it), how often an
 * element so far below it changed, in 1/4096; returns how many of 256 became positive zero. */
static unsigned look_around(const uint16_t *x, const uint16_t *p, size_t n, unsigned shift, unsigned *top, uint16_t rate[WINDOW]) {
    uint64_t both[256] = {0}; /* changed << 32 | counted */
    uint32_t count[256], changed[256], total = 0, above = 0, zeros = 0;
    for (size_t g = 0; g < n; g += 32 * GROUP) {
        size_t end = n - g < GROUP ? n : g + GROUP;
        for (size_t i = g; i < end; i++) both[(p[i] & 0x7FFFu) >> shift & 255] += (uint64_t)(x[i] != p[i]) << 32 | 1;
        for (size_t i = g; i < end; i++) zeros += (x[i] == 0) & (p[i] != 0);
        total += (uint32_t)(end - g);
    }
    for (int e = 0; e < 256; e++) {
        count[e] = (uint32_t)both[e];
        changed[e] = (uint32_t)(both[e] >> 32);
    }
    unsigned highest = 255;
    while (highest && (above += count[highest]) <= total / 256) highest--;
    uint32_t by_count[WINDOW] = {0}, by_changed[WINDOW] = {0};
    for (unsigned e = 0; e < 256; e++) {
        unsigned v = e < highest ? highest - e : 0;
        if (v >= WINDOW) v = WINDOW - 1;
        by_count[v] += count[e];
        by_changed[v] += changed[e];
    }
    for (int v = 0; v < WINDOW; v++)
        rate[v] = by_count[v] ? (uint16_t)(1 + (uint64_t)by_changed[v] * 4096 / by_count[v]) : 1;
    *top = highest;
    return zeros * 256 / total;
}

/* The binary logarithm in 1/256, of whole numbers below 2^40, in whole numbers: every machine takes the same decisions. */
static uint64_t worked_out(uint64_t v) {
    unsigned n = 63u - (unsigned)__builtin_clzll(v);
    uint64_t m = n > 15 ? v >> (n - 15) : v << (15 - n), part = 0; /* 1 to 2 in 1/32768 */
    for (int i = 0; i < 8; i++) {
        m = m * m >> 15;
        part <<= 1;
        if (m >> 16) { part |= 1; m >>= 1; }
    }
    return (uint64_t)n << 8 | part;
}

static uint16_t small_logarithms[4096];
__attribute__((constructor)) static void small_logarithms_make(void) {
    for (uint64_t v = 1; v < 4096; v++) small_logarithms[v] = (uint16_t)worked_out(v);
}
static inline uint64_t logarithm(uint64_t v) { return v < 4096 ? small_logarithms[v] : worked_out(v); }

static uint64_t cost_of(const uint32_t *a, const uint32_t *b) { /* of coding what both have counted in one context */
    uint64_t total = 0, sum = 0;
    for (int s = 0; s < SYMBOLS; s++) {
        uint64_t v = (uint64_t)a[s] + (b ? b[s] : 0);
        if (!v) continue;
        total += v;
        sum += v * logarithm(v);
    }
    return total ? total * logarithm(total) - sum : 0;
}

/* Put neighbouring contexts together where telling them apart saves fewer bits than another table has. Returns a bit for
 * each context that has a table of its own; the others use that of the nearest one before. Counts are added up there. */
static uint32_t merge_contexts(Tables *t, unsigned most) {
    uint32_t starts = 1;
    unsigned own = 0;
    uint64_t cost = cost_of(t->count, NULL);
    for (unsigned c = 1; c <= most; c++) {
        uint32_t *first = t->count + own * SYMBOLS, *next = t->count + c * SYMBOLS;
        uint64_t symbols = 0, alone = cost_of(next, NULL), together = cost_of(first, next);
        for (int s = 0; s < SYMBOLS; s++) symbols += next[s] > 0;
        if (together <= cost + alone + 256 * (20 + 5 * symbols)) {
            for (int s = 0; s < SYMBOLS; s++) first[s] += next[s];
            memset(next, 0, SYMBOLS * sizeof *next);
            cost = together;
        } else {
            starts |= 1u << c;
            own = c;
            cost = alone;
        }
    }
    return starts;
}

/* The context whose table each one uses. */
static void map_contexts(uint32_t starts, uint16_t map[CONTEXTS]) {
    uint16_t own = 0;
    for (unsigned c = 0; c < CONTEXTS; c++) {
        if (starts >> c & 1) own = (uint16_t)c;
        map[c] = own;
    }
}

static void remap(uint16_t *index, size_t n, const uint16_t map[CONTEXTS]) {
    size_t i = 0;
#if WIDE == 512
    __m512i table = _mm512_loadu_si512(map), low = _mm512_set1_epi16(255);
    for (; i + 32 <= n; i += 32) {
        __m512i k = _mm512_loadu_si512(index + i), c = _mm512_permutexvar_epi16(_mm512_srli_epi16(k, 8), table);
        _mm512_storeu_si512(index + i, _mm512_or_si512(_mm512_slli_epi16(c, 8), _mm512_and_si512(k, low)));
    }
#endif
    for (; i < n; i++) index[i] = (uint16_t)(map[index[i] >> 8] << 8 | (index[i] & 255));
}

/* By how many half octaves a segment moved more (or less) than the block: twice the logarithm of changed to expected. */
static int shift_of(uint64_t expected, uint64_t changed) {
    uint64_t a = changed * 4096;
    int k = 0;
    if (expected < 8192 && a < 8192) return 0;
    if (a < 1024) a = 1024;
    if (expected < 1024) expected = 1024;
    while (k < FURTHEST && a * 128 > expected * 152) { expected = expected * 181 / 128; k++; }
    while (k > -FURTHEST && a * 152 < expected * 128) { a = a * 181 / 128; k--; }
    return k;
}

/* 2^(k/2) in 1/64 for k from -12 to 12. */
static const uint16_t scale[2 * FURTHEST + 1] = {1, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512, 724,
                                                 1024, 1448, 2048, 2896, 4096};
/* What telling a column by k half octaves saves, in 1/256 bit for each change expected: (r ln r - r + 1) / ln 2 for
 * r = 2^(k/2), the divergence of two rates of rare events. */
static const uint16_t saved[2 * FURTHEST + 1] = {333, 324, 313, 298, 279, 253, 215, 188, 149, 103, 57, 18, 0, 28, 143, 410, 885,
                                                 1650, 2837, 4549, 7000, 10400, 15100, 21500, 30200};

/* As segment_rates, but for the columns of some rows, each with its own shift: what is expected and what changed is added
 * to the sums of every column. `work` has room for 32 values. */
static void column_rates(const uint16_t *x, const uint16_t *p, size_t columns, unsigned shift, unsigned top,
                         const uint16_t rate[WINDOW], int k, uint32_t *expected, uint32_t *changed) {
    uint16_t scaled[WINDOW];
    for (int v = 0; v < WINDOW; v++) {
        uint32_t r = (uint32_t)rate[v] * scale[k + FURTHEST] >> 6;
        scaled[v] = (uint16_t)(r < 4096 ? r : 4096);
    }
    size_t i = 0;
#if WIDE == 512
    __m512i table = _mm512_loadu_si512(scaled), one = _mm512_set1_epi16(1);
    for (; i + 32 <= columns; i += 32) {
        __m512i parent = _mm512_loadu_si512(p + i);
        __m512i e = _mm512_srl_epi16(_mm512_and_si512(parent, _mm512_set1_epi16(0x7FFF)), _mm_cvtsi32_si128((int)shift));
        __m512i v = _mm512_min_epu16(_mm512_subs_epu16(_mm512_set1_epi16((short)top), e), _mm512_set1_epi16(WINDOW - 1));
        __m512i r = _mm512_permutexvar_epi16(v, table);
        __m512i d = _mm512_maskz_mov_epi16(_mm512_cmpneq_epu16_mask(_mm512_loadu_si512(x + i), parent), one);
        for (int h = 0; h < 2; h++) {
            __m512i r32 = _mm512_cvtepu16_epi32(h ? _mm512_extracti64x4_epi64(r, 1) : _mm512_castsi512_si256(r));
            __m512i d32 = _mm512_cvtepu16_epi32(h ? _mm512_extracti64x4_epi64(d, 1) : _mm512_castsi512_si256(d));
            uint32_t *es = expected + i + 16 * h, *cs = changed + i + 16 * h;
            _mm512_storeu_si512(es, _mm512_add_epi32(_mm512_loadu_si512(es), r32));
            _mm512_storeu_si512(cs, _mm512_add_epi32(_mm512_loadu_si512(cs), d32));
        }
    }
#endif
    for (; i < columns; i++) {
        unsigned v = below(top, p[i], shift, 0);
        expected[i] += scaled[v < WINDOW ? v : WINDOW - 1];
        changed[i] += x[i] != p[i];
    }
}

/* Where all of the parent's small values became zero and no other did: the least magnitude that stayed, else 0. */
static unsigned pruned_below(const uint16_t *x, const uint16_t *p, size_t n) {
    uint16_t gone = 0, stayed = 0x7FFF;
    for (size_t from = 0; from < n && gone < stayed; from += 4096) {
        const uint16_t *xs = x + from, *ps = p + from;
        size_t count = n - from < 4096 ? n - from : 4096;
        for (size_t i = 0; i < count; i++) {
            uint16_t m = ps[i] & 0x7FFF, zero = (uint16_t)-(xs[i] == 0), a = m & zero, b = m | (zero & 0x7FFF);
            gone = gone > a ? gone : a;
            stayed = stayed < b ? stayed : b;
        }
    }
    return gone < stayed ? stayed : 0;
}

/* Mark what has no place in its table as ESCAPE, and put the values of all that are marked into `apart`, in order. */
static size_t escape_all(const Tables *t, const uint16_t *x, uint16_t *index, size_t n, uint16_t *apart) {
    size_t count = 0;
    uint16_t least[CONTEXTS]; /* of each context: the first symbol without a place */
    for (int c = 0; c < CONTEXTS; c++) {
        int s = 0;
        while (s < ESCAPE && (t->freq[c][s] || s == ZERO)) s++;
        least[c] = (uint16_t)s;
    }
    size_t i = 0;
#if WIDE == 512
    __m512i table = _mm512_loadu_si512(least), low = _mm512_set1_epi16(255), zero = _mm512_set1_epi16(ZERO);
    for (; i + 32 <= n; i += 32) {
        __m512i k = _mm512_loadu_si512(index + i), s = _mm512_and_si512(k, low);
        __mmask32 m = _mm512_cmpge_epu16_mask(s, _mm512_permutexvar_epi16(_mm512_srli_epi16(k, 8), table));
        for (m &= _mm512_cmpneq_epi16_mask(s, zero); m; m &= m - 1) {
            size_t j = i + (size_t)__builtin_ctz(m);
            if (t->freq[index[j] >> 8][index[j] & 255] && (index[j] & 255) != ESCAPE) continue;
            index[j] |= ESCAPE;
            apart[count++] = x[j];
        }
    }
#endif
    for (; i < n; i++) {
        unsigned k = index[i], s = k & 255;
        if (s < least[k >> 8] || s == ZERO || (t->freq[k >> 8][s] && s != ESCAPE)) continue;
        index[i] |= ESCAPE;
        apart[count++] = x[i];
    }
    return count;
}

/* `columns`: what is added to the base of each element; zeros where columns are not told apart. */
static inline void index_near(const uint16_t *x, const uint16_t *p, size_t n, uint16_t base, const uint16_t *columns, uint16_t most,
                              const unsigned shift, const unsigned unit, uint16_t *index) {
    for (size_t i = 0; i < n; i++) {
        uint16_t e = (uint16_t)((uint16_t)((uint16_t)(p[i] & 0x7FFF) >> shift) << unit);
        uint16_t above = (uint16_t)(base + columns[i]), c = (uint16_t)(above > e ? above - e : 0);
        c = c < most ? c : most;
        uint16_t d = (uint16_t)(ordered(x[i]) - ordered(p[i]));
        uint16_t z = (uint16_t)((uint16_t)(d << 1) ^ (uint16_t)-(d >> 15));
        uint16_t symbol = z < ZERO ? z : (x[i] ? ESCAPE : ZERO);
        index[i] = (uint16_t)(c << 8 | symbol);
    }
}

/* `groups`: of 32 elements in a segment, at least 1; `columns`: whether a segment is a row. `p` NULL: alone. `index`, `work`, `apart`: room for n + LANES.
 * Returns the bytes of the block, or TOO_LONG where they would be more than `room`. */
int64_t pressroom_floats_encode(const uint16_t *x, const uint16_t *p, size_t n, unsigned shift, size_t groups, int columns,
                                uint16_t *index, uint16_t *work, uint16_t *apart, uint8_t *out, size_t room, void *memory) {
    Tables *t = tables_of(memory);
    size_t length = groups * GROUP, segments = segments_of(n, groups);
    if (room < HEAD) return TOO_LONG;
    Head head = {p ? NEAR : ALONE, 0, (uint8_t)shift, 1, (uint32_t)n, 0, 0, (uint16_t)groups, 8, CONTEXTS - 1, 0, 0};
    Bits b = {out + HEAD, out + room, 0, 0, 0};
    int different = 0;
    if (p) {
        uint16_t rate[WINDOW];
        unsigned highest, least = 0, zeros = look_around(x, p, n, shift, &highest, rate);
        if (zeros >= 8) least = pruned_below(x, p, n);
        if (least) head.shift = head.unit = 0;
        head.top = (uint16_t)(least ? least : 2 * highest + 8);
        if (least) head.most = 1;
        /* The columns' sums and shifts lie in `apart` until the escapes need it: three times the length of a row. */
        int by_column = !least && columns && n >= 16 * length && 6 * length + LANES <= n;
        uint32_t *expect = (uint32_t *)(void *)apart, *differ = expect + length;
        uint16_t *add = (uint16_t *)(void *)(differ + length);
        int8_t *ks = (int8_t *)work;
        memset(apart, 0, by_column ? 10 * length : 0);
        for (size_t s = 0; s < segments; s++) {
            size_t from = s * length, count = n - from < length ? n - from : length;
            int k = 0;
            if (!least) {
                uint64_t expected, changed;
                segment_rates(x + from, p + from, count, shift, highest, rate, &expected, &changed);
                k = shift_of(expected, changed);
                put_shift(&b, k);
                different |= k;
            }
            if (by_column) column_rates(x + from, p + from, count, shift, highest, rate, k, expect, differ);
            ks[s] = (int8_t)k;
        }
        if (by_column) {
            uint64_t gain = 0, cost = 0;
            for (size_t i = 0; i < length; i++) {
                int k = shift_of(expect[i], differ[i]);
                gain += (uint64_t)expect[i] * saved[k + FURTHEST];
                cost += (uint64_t)(k < 0 ? -2 * k : 2 * k + 1);
                add[i] = (uint16_t)(k + FURTHEST);
            }
            by_column = (gain >> 20) > 2 * cost;
            if (by_column) {
                for (size_t i = 0; i < length; i++) put_shift(&b, (int)add[i] - FURTHEST);
                head.flags = SEGMENTS | COLUMNS;
            }
        }
        if (!by_column) memset(add = apart, 0, 2 * (length < n ? length : n));
        for (size_t s = 0; s < segments; s++) {
            size_t from = s * length, count = n - from < length ? n - from : length;
            int above = (int)head.top + ks[s] - (by_column ? FURTHEST : 0);
            uint16_t base = (uint16_t)(above < 0 ? 0 : above);
            /* The constants let the compiler shift all 16-bit lanes at once. */
            if (!head.unit) index_near(x + from, p + from, count, base, add, head.most, 0, 0, index + from);
            else if (shift == 7) index_near(x + from, p + from, count, base, add, head.most, 7, 1, index + from);
            else if (shift == 10) index_near(x + from, p + from, count, base, add, head.most, 10, 1, index + from);
            else index_near(x + from, p + from, count, base, add, head.most, shift, 1, index + from);
        }
    } else {
        uint64_t all = 0;
        for (size_t i = 0; i < n; i++) all += (x[i] >> 7) & 255;
        int64_t middle = (int64_t)((2 * all + n / 2) / n);
        for (size_t s = 0; s < segments; s++) {
            size_t from = s * length, count = n - from < length ? n - from : length;
            uint32_t sum = 0;
            for (size_t i = 0; i < count; i++) sum += (x[from + i] >> 7) & 255;
            int64_t k = (int64_t)((2 * (uint64_t)sum + count / 2) / count) - middle;
            k = k < -8 ? -8 : k > 7 ? 7 : k;
            put_shift(&b, (int)k);
            different |= k != 0;
            uint16_t *to = index + from;
            const uint16_t *xs = x + from;
            uint16_t c = (uint16_t)((k + 8) << 8);
            for (size_t i = 0; i < count; i++) to[i] = (uint16_t)(c | ((xs[i] >> 7) & 255));
        }
    }
    bits_end(&b);
    if (b.full) return TOO_LONG;
    uint8_t *at = out + HEAD;
    if (different || head.flags) {
        head.flags |= SEGMENTS;
        head.extra = (uint32_t)(b.at - at);
        at = b.at;
    }
    count_all(t, index, n);
    if (p) {
        uint16_t map[CONTEXTS];
        head.starts = merge_contexts(t, head.most);
        map_contexts(head.starts, map);
        remap(index, n, map);
    }
    tables_make(t, p ? COARSE : FINE, p != NULL);
    int pad = padding_of(t->freq);
    for (size_t i = n; i < padded_to_lanes(n); i++) index[i] = (uint16_t)pad;
    size_t escapes = p ? escape_all(t, x, index, n, apart) : 0, left = (size_t)(out + room - at);
    int64_t section = p ? section_write(t, index, padded_to_lanes(n), COARSE, work, at, left)
                        : section_write(t, index, padded_to_lanes(n), FINE, work, at, left);
    if (section < 0) return section;
    at += section;
    if (2 * escapes + (p ? 0 : n) > (size_t)(out + room - at)) return TOO_LONG;
    memcpy(at, apart, 2 * escapes);
    at += 2 * escapes;
    head.escapes = (uint32_t)escapes;
    if (!p) {
        for (size_t i = 0; i < n; i++) at[i] = (uint8_t)(((x[i] >> 8) & 0x80) | (x[i] & 0x7F));
        at += n;
    }
    memcpy(out, &head, HEAD);
    return at - out;
}

static uint16_t near_value(unsigned symbol, uint16_t parent, const uint8_t **escape, const uint8_t *end, int *damaged) {
    if (symbol < ZERO) {
        uint16_t d = (uint16_t)((symbol >> 1) ^ (0u - (symbol & 1)));
        return ordered((uint16_t)(ordered(parent) + d));
    }
    if (symbol == ZERO) return 0;
    if (*escape == end) { *damaged = 1; return 0; }
    uint16_t v = unaligned16(*escape);
    *escape += 2;
    return v;
}

#if WIDE
static inline Half h_ordered(Half v) { return h_xor(v, h_and(h_sign(v), h_all(0x7FFF))); }
#endif

/* `top`: room for n / GROUP + 2 values; `columns`: for n + LANES. */
int64_t pressroom_floats_decode(const uint8_t *in, size_t length, const uint16_t *p, uint16_t *out, size_t n, uint16_t *top,
                                uint16_t *columns, void *memory) {
    Tables *t = tables_of(memory);
    Head head;
    if (length < HEAD) return DAMAGED;
    memcpy(&head, in, HEAD);
    if (head.kind != (p ? NEAR : ALONE) || head.n != n || !n || !head.groups || (head.flags != 0 && head.flags != SEGMENTS && head.flags != (SEGMENTS | COLUMNS))) return DAMAGED;
    if (head.shift > 14 || head.unit > 1 || head.most >= CONTEXTS || head.zero || (!p && (head.escapes || head.top != 8 || head.starts))) return DAMAGED;
    if (p && !(head.starts & 1)) return DAMAGED;
    const uint8_t *at = in + HEAD, *end = in + length;
    if (head.extra > (size_t)(end - at) || (head.extra && !head.flags)) return DAMAGED;
    BitsIn b = {at, at + head.extra, 0, 0, 0};
    size_t segments = segments_of(n, head.groups), groups = (n + GROUP - 1) / GROUP;
    for (size_t s = 0, g = 0; s < segments; s++) { /* what each group's contexts start from */
        int k = head.flags ? get_shift(&b) : 0, v = (int)head.top + k - (head.flags & COLUMNS ? FURTHEST : 0);
        if (k < -FURTHEST || k > FURTHEST) return DAMAGED;
        if (!p && (v < 0 || v >= CONTEXTS)) return DAMAGED;
        for (size_t i = 0; i < head.groups && g < groups; i++) top[g++] = (uint16_t)(v < 0 ? 0 : v > 0xFF00 ? 0xFF00 : v);
    }
    size_t row = (size_t)head.groups * GROUP;
    if (head.flags & COLUMNS) {
        if (!p || row > n) return DAMAGED;
        for (size_t i = 0; i < row; i++) {
            int k = get_shift(&b);
            if (k < -FURTHEST || k > FURTHEST) return DAMAGED;
            columns[i] = (uint16_t)(k + FURTHEST);
        }
    }
    if (b.empty || b.at != b.end || b.count > 7 || b.held) return DAMAGED;
    top[groups] = 0;
    at += head.extra;
    uint32_t state[LANES];
    Words w;
    int64_t section = section_open(t, at, (size_t)(end - at), p ? COARSE : FINE, state, &w);
    if (section < 0) return section;
    at += section;
    const uint8_t *low = at, *escape = at;
    if ((size_t)(end - at) != (p ? 2 * (size_t)head.escapes : n)) return DAMAGED;
    unsigned shift = head.shift, unit = head.unit, most = head.most;
    uint16_t map[CONTEXTS];
    map_contexts(head.starts, map);
    int damaged = 0;
    size_t i = 0;
#if WIDE
    States st = states_load(state);
    Table table = h_table(map);
    size_t column = 0;
    if (p) for (; i + LANES <= n; i += LANES) {
        if (words_step(&w)) return DAMAGED;
        Half parent[2], base[2], symbol[2];
        for (int h = 0; h < 2; h++) {
            size_t from = i + 32 * (size_t)h;
            parent[h] = h_load(p + from);
            Half e = h_sll(h_srl(h_and(parent[h], h_all(0x7FFF)), (int)shift), (int)unit), above = h_all(top[from / GROUP]);
            if (head.flags & COLUMNS) {
                above = h_add(above, h_load(columns + column));
                column = column + GROUP < row ? column + GROUP : 0;
            }
            base[h] = h_sll(h_lookup(table, h_min(h_subs(above, e), h_all((int)most))), COARSE);
        }
        step64(t->slots, base, COARSE, &st, &w.at, symbol);
        for (int h = 0; h < 2; h++) {
            size_t from = i + 32 * (size_t)h;
            Half d = h_xor(h_srl(symbol[h], 1), h_sub(h_all(0), h_and(symbol[h], h_all(1))));
            Half child = h_ordered(h_add(h_ordered(parent[h]), d));
            uint32_t zeros = h_equal(symbol[h], h_all(ZERO)), escaped = h_equal(symbol[h], h_all(ESCAPE));
            if (zeros) child = h_clear(child, zeros);
            h_store(out + from, child);
            if (escaped) {
                if ((size_t)(end - escape) < 2 * (size_t)__builtin_popcount(escaped)) return DAMAGED;
                for (; escaped; escaped &= escaped - 1, escape += 2) memcpy(out + from + __builtin_ctz(escaped), escape, 2);
            }
        }
    }
    else for (; i + LANES <= n; i += LANES) {
        if (words_step(&w)) return DAMAGED;
        Half base[2], symbol[2];
        for (int h = 0; h < 2; h++) base[h] = h_all(top[i / GROUP + (size_t)h] << FINE);
        step64(t->slots, base, FINE, &st, &w.at, symbol);
        for (int h = 0; h < 2; h++) {
            size_t from = i + 32 * (size_t)h;
            Half rest = h_bytes(low + from), sign = h_sll(h_and(rest, h_all(0x80)), 8);
            h_store(out + from, h_or(sign, h_or(h_sll(symbol[h], 7), h_and(rest, h_all(0x7F)))));
        }
    }
    states_store(state, st);
#endif
    while (i < n) {
        uint8_t given[LANES], symbol[LANES];
        size_t count = n - i < LANES ? n - i : LANES;
        if (words_step(&w)) return DAMAGED;
        if (count < LANES) memset(given, padding_of(t->freq) >> 8, sizeof given);
        for (size_t l = 0; l < count; l++) {
            unsigned above = top[(i + l) / GROUP];
            if (head.flags & COLUMNS) above += columns[(i + l) % row];
            if (p) above = below(above, p[i + l], shift, unit);
            above = above < most ? above : most;
            if (p) above = map[above];
            given[l] = (uint8_t)above;
        }
        if (p) step_given(t, given, COARSE, state, &w, symbol);
        else step_given(t, given, FINE, state, &w, symbol);
        for (size_t l = 0; l < count; l++)
            out[i + l] = p ? near_value(symbol[l], p[i + l], &escape, end, &damaged)
                           : (uint16_t)((low[i + l] & 0x80) << 8 | symbol[l] << 7 | (low[i + l] & 0x7F));
        i += count;
    }
    if (damaged || (p && escape != end)) return DAMAGED;
    return finished(state, &w);
}
