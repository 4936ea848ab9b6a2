/* The arithmetic of recipes on rows of floats: bit for bit what NumPy computes, in one pass over the memory.
 *
 * Compiled into one library with kernel.c. Only IEEE 754 operations in a fixed order: no fused multiply-add, no
 * approximate division, so that every machine gets the same bytes.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#pragma STDC FP_CONTRACT OFF

static inline float of_bits(uint32_t bits) { float v; memcpy(&v, &bits, 4); return v; }

/* Over `scale`, rounded to the nearest, ties to even, within -127 to 127; what is no number becomes 0. */
static inline int8_t quantised(float value, float scale) {
    const float whole = 12582912.0f; /* 1.5 * 2^23: adding it leaves no bits behind the point */
    float q = value / scale;
    q = q > 127.0f ? 127.0f : q;
    q = q < -127.0f ? -127.0f : q;
    q = q == q ? q : 0.0f;
    return (int8_t)(int32_t)((q + whole) - whole);
}

/* The 127th part of the largest magnitude of each row goes into `scales`, the quantised row into `out`; either may be
 * NULL. `wide`: float32 instead of bfloat16. Returns how many rows have a NaN: which one of its many encodings the scale
 * gets is left to the caller. */
int64_t pressroom_int8_rows(const void *in, int wide, size_t rows, size_t columns, int8_t *out, float *scales) {
    int64_t strange = 0;
    for (size_t r = 0; r < rows; r++) {
        float scale;
        if (wide) {
            const uint32_t *x = (const uint32_t *)in + r * columns;
            uint32_t most = 0;
            for (size_t i = 0; i < columns; i++) {
                uint32_t m = x[i] & 0x7FFFFFFFu;
                most = m > most ? m : most;
            }
            scale = of_bits(most) / 127.0f;
            if (out) for (size_t i = 0; i < columns; i++) out[r * columns + i] = quantised(of_bits(x[i]), scale);
            strange += most > 0x7F800000u;
        } else {
            const uint16_t *x = (const uint16_t *)in + r * columns;
            uint16_t most = 0;
            for (size_t i = 0; i < columns; i++) {
                uint16_t m = x[i] & 0x7FFFu;
                most = m > most ? m : most;
            }
            scale = of_bits((uint32_t)most << 16) / 127.0f;
            if (out) for (size_t i = 0; i < columns; i++) out[r * columns + i] = quantised(of_bits((uint32_t)x[i] << 16), scale);
            strange += most > 0x7F80u;
        }
        if (scales) scales[r] = scale;
    }
    return strange;
}
