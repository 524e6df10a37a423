/* Products of 8-bit integers for CPUs with AVX-512 VNNI, straight from the bits of a frozen weight.
 *
 * A panel of 64 output columns is decoded and laid out for the multiplier once, then used for all
 * rows of the activations. Weights are shifted by 128 to be unsigned, as the instruction wants
 * them; the excess of the activations takes that out again.
 *
 * p: activations (m, depth) int8, scale of their groups, weights, weight scale per row, absmax of
 *    NF4, y, scratch, excess of the groups; n: m, columns of y, depth, format, parts of m, scratch bytes of a thread;
 * f: 0 writes y, 1 adds to it
 */
#define VNNI                                                                                      \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")))
#define COLUMNS 64
#define ROWS 6

enum { HELD_INT8, HELD_NF4, HELD_BF16 };

VNNI static inline __m512i nf4_integers(const uint8_t *packed, float largest, float inverse) {
    const __m512 exact = _mm512_mul_ps(_mm512_loadu_ps(NF4), _mm512_set1_ps(largest * inverse));
    const __m256i table =
        _mm256_broadcastsi128_si256(_mm512_cvtepi32_epi8(_mm512_cvtps_epi32(exact)));
    const __m256i bytes = _mm256_loadu_si256((const __m256i *)packed);
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(bytes, mask));
    const __m256i high =
        _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask));
    const __m256i even = _mm256_unpacklo_epi8(high, low);
    const __m256i odd = _mm256_unpackhi_epi8(high, low);
    const __m512i first = _mm512_castsi256_si512(_mm256_permute2x128_si256(even, odd, 0x20));
    return _mm512_inserti64x4(first, _mm256_permute2x128_si256(even, odd, 0x31), 1);
}

VNNI static inline __m512i bf16_integers(const bf16 *values, float inverse) {
    __m512i result = _mm512_setzero_si512();
    const __m512 factor = _mm512_set1_ps(inverse);
    __m128i part[4];
    for (int i = 0; i < 4; i++) {
        const __m256i raw = _mm256_loadu_si256((const __m256i *)(values + 16 * i));
        const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16);
        const __m512 scaled = _mm512_mul_ps(_mm512_castsi512_ps(wide), factor);
        part[i] = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(scaled));
    }
    result = _mm512_inserti32x4(result, part[0], 0);
    result = _mm512_inserti32x4(result, part[1], 1);
    result = _mm512_inserti32x4(result, part[2], 2);
    return _mm512_inserti32x4(result, part[3], 3);
}

/* 64 weights of one row, from a column that is a multiple of 64. */
VNNI static inline __m512i weights_at(const arguments *a, int64_t width, int64_t row, int64_t at) {
    const int64_t from = row * width + at;
    if (a->n[3] == HELD_INT8) return _mm512_loadu_si512((const int8_t *)a->p[2] + from);
    const float inverse = 1.0f / ((const float *)a->p[3])[row];
    if (a->n[3] == HELD_BF16) return bf16_integers((const bf16 *)a->p[2] + from, inverse);
    return nf4_integers((const uint8_t *)a->p[2] + from / 2, ((const float *)a->p[4])[from / 64],
                        inverse);
}

/* Transpose 16 x 16 numbers of 32 bits in registers. */
VNNI static inline void transpose_16(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
        r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
        r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
        r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
    }
}

/* Panel of y = x W^T: rows first..first+63 of W, four weights of a row side by side. */
VNNI static void lay_out_rows(const arguments *a, int64_t first, uint8_t *panel) {
    const int64_t depth = a->n[2];
    const __m512i shift = _mm512_set1_epi8((char)0x80);
    for (int64_t at = 0; at < depth; at += 64) {
        for (int part = 0; part < 4; part++) {
            __m512i r[16];
            for (int i = 0; i < 16; i++)
                r[i] = _mm512_xor_si512(weights_at(a, depth, first + 16 * part + i, at), shift);
            transpose_16(r);
            for (int i = 0; i < 16; i++)
                _mm512_storeu_si512(panel + (at / 4 + i) * 256 + 64 * part, r[i]);
        }
    }
}

/* Panel of dx = g W: columns first..first+63 of W, four weights of a column side by side. */
VNNI static void lay_out_columns(const arguments *a, int64_t first, uint8_t *panel) {
    const int64_t depth = a->n[2], width = a->n[1];
    const __m512i shift = _mm512_set1_epi8((char)0x80);
    for (int64_t row = 0; row < depth; row += 4) {
        __m512i w[4];
        for (int i = 0; i < 4; i++)
            w[i] = _mm512_xor_si512(weights_at(a, width, row + i, first), shift);
        const __m512i low = _mm512_unpacklo_epi8(w[0], w[1]);
        const __m512i high = _mm512_unpackhi_epi8(w[0], w[1]);
        const __m512i low2 = _mm512_unpacklo_epi8(w[2], w[3]);
        const __m512i high2 = _mm512_unpackhi_epi8(w[2], w[3]);
        uint8_t *to = panel + row * 64;
        _mm512_storeu_si512(to, _mm512_unpacklo_epi16(low, low2));
        _mm512_storeu_si512(to + 64, _mm512_unpackhi_epi16(low, low2));
        _mm512_storeu_si512(to + 128, _mm512_unpacklo_epi16(high, high2));
        _mm512_storeu_si512(to + 192, _mm512_unpackhi_epi16(high, high2));
    }
}

/* Six rows of x times a panel. Every sum has a name of its own: compilers keep those in registers. */
#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define START(i)                                                                                  \
    const int8_t *x##i = x + (i < count ? i : count - 1) * stride;                                \
    const __m512i e##i = _mm512_set1_epi32(-excess[(i < count ? i : count - 1) * groups]);        \
    __m512i s##i##0 = e##i, s##i##1 = e##i, s##i##2 = e##i, s##i##3 = e##i;
#define ADD(i)                                                                                    \
    {                                                                                             \
        int32_t four;                                                                             \
        memcpy(&four, x##i + k, 4);                                                               \
        const __m512i each = _mm512_set1_epi32(four);                                             \
        s##i##0 = _mm512_dpbusd_epi32(s##i##0, b0, each);                                         \
        s##i##1 = _mm512_dpbusd_epi32(s##i##1, b1, each);                                         \
        s##i##2 = _mm512_dpbusd_epi32(s##i##2, b2, each);                                         \
        s##i##3 = _mm512_dpbusd_epi32(s##i##3, b3, each);                                         \
    }
#define STORE(i)                                                                                  \
    sum[i][0] = s##i##0, sum[i][1] = s##i##1, sum[i][2] = s##i##2, sum[i][3] = s##i##3;

VNNI static void tile(const int8_t *x, int64_t stride, const int32_t *excess, int64_t groups,
                      int count, const uint8_t *panel, int64_t depth, __m512i sum[ROWS][4]) {
    EACH_ROW(START)
    for (int64_t k = 0; k < depth; k += 4, panel += 256) {
        const __m512i b0 = _mm512_loadu_si512(panel), b1 = _mm512_loadu_si512(panel + 64);
        const __m512i b2 = _mm512_loadu_si512(panel + 128), b3 = _mm512_loadu_si512(panel + 192);
        EACH_ROW(ADD)
    }
    EACH_ROW(STORE)
}

/* Columns come out of lay_out_columns in groups of four that alternate between the vectors. */
VNNI static inline void in_order(__m512 s[4]) {
    const __m512 a = _mm512_shuffle_f32x4(s[0], s[1], 0x44);
    const __m512 b = _mm512_shuffle_f32x4(s[2], s[3], 0x44);
    const __m512 c = _mm512_shuffle_f32x4(s[0], s[1], 0xee);
    const __m512 d = _mm512_shuffle_f32x4(s[2], s[3], 0xee);
    s[0] = _mm512_shuffle_f32x4(a, b, 0x88);
    s[1] = _mm512_shuffle_f32x4(a, b, 0xdd);
    s[2] = _mm512_shuffle_f32x4(c, d, 0x88);
    s[3] = _mm512_shuffle_f32x4(c, d, 0xdd);
}

/* Some rows times a panel, group by group, each with its own scale. */
VNNI static void scaled_tile(const arguments *a, int64_t row, int count, const uint8_t *panel,
                             __m512 total[ROWS][4]) {
    const int64_t depth = a->n[2], groups = (depth + GROUP - 1) / GROUP;
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < 4; j++) total[i][j] = _mm512_setzero_ps();
    for (int64_t group = 0; group < groups; group++) {
        const int64_t first = group * GROUP;
        __m512i sum[ROWS][4];
        tile((const int8_t *)a->p[0] + row * depth + first, depth,
             (const int32_t *)a->p[7] + row * groups + group, groups, count,
             panel + first * COLUMNS, depth - first < GROUP ? depth - first : GROUP, sum);
        for (int i = 0; i < count; i++) {
            const int64_t at = (row + i) * groups + group;
            const __m512 scale = _mm512_set1_ps(((const float *)a->p[1])[at]);
            for (int j = 0; j < 4; j++)
                total[i][j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i][j]), scale, total[i][j]);
        }
    }
}

VNNI static void multiply(const arguments *a, int64_t begin, int64_t end, int is_forward) {
    const int64_t m = a->n[0], width = a->n[1], parts = a->n[4];
    const int me = thread_number && thread_count && thread_count() > 1 ? thread_number() : 0;
    uint8_t *panel = (uint8_t *)a->p[6] + me * a->n[5];
    int64_t laid_out = -1;
    for (int64_t unit = begin; unit < end; unit++) {
        const int64_t first = unit / parts * COLUMNS, part = unit % parts;
        if (first != laid_out) {
            if (is_forward)
                lay_out_rows(a, first, panel);
            else
                lay_out_columns(a, first, panel);
            laid_out = first;
        }
        const int64_t stop = m * (part + 1) / parts;
        for (int64_t row = m * part / parts; row < stop; row += ROWS) {
            const int count = (int)(stop - row < ROWS ? stop - row : ROWS);
            __m512 total[ROWS][4];
            scaled_tile(a, row, count, panel, total);
            for (int i = 0; i < count; i++) {
                float *y = (float *)a->p[5] + (row + i) * width + first;
                if (!is_forward) in_order(total[i]);
                for (int j = 0; j < 4; j++) {
                    __m512 value = total[i][j];
                    if (is_forward)
                        value = _mm512_mul_ps(
                            value, _mm512_loadu_ps((const float *)a->p[3] + first + 16 * j));
                    if (a->f[0] != 0.0f) value = _mm512_add_ps(value, _mm512_loadu_ps(y + 16 * j));
                    _mm512_storeu_ps(y + 16 * j, value);
                }
            }
        }
    }
}

/* y = x W^T, of weights (columns of y, depth) */
VNNI static void integer_forward(const arguments *a, int64_t begin, int64_t end) {
    multiply(a, begin, end, 1);
}

/* dx = g W, of weights (depth, columns of dx); g was scaled by the weight scale before */
VNNI static void integer_backward(const arguments *a, int64_t begin, int64_t end) {
    multiply(a, begin, end, 0);
}
