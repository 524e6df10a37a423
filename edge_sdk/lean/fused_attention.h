/* Causal attention of packed examples for CPUs with AVX-512, six queries of a head at a time.
 *
 * Nothing is kept for the way back: the probabilities are computed again there. The head size is a
 * multiple of 64. A task is one example and one key head, with all the queries it serves.
 *
 * p: q, k, v, output or its gradient, row at which each example starts and the end of the last,
 *    scratch; going back also dq, dk, dv, all written;
 * n: heads, key heads, head size, scratch bytes of a thread, rows of the longest example up to 64;
 * f: scale of the scores
 */
#define WIDE512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define QUERIES 6
#define EACH_QUERY(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)

/* out (6, 64) = scale * a (6, depth) times b (depth, 64) */
#define BEGIN(i)                                                                                  \
    __m512 s##i##0 = zero, s##i##1 = zero, s##i##2 = zero, s##i##3 = zero;                        \
    const float *a##i = a + (i < count ? i : count - 1) * stride;
#define MULTIPLY(i)                                                                               \
    {                                                                                             \
        const __m512 each = _mm512_set1_ps(a##i[k]);                                              \
        s##i##0 = _mm512_fmadd_ps(each, b0, s##i##0);                                             \
        s##i##1 = _mm512_fmadd_ps(each, b1, s##i##1);                                             \
        s##i##2 = _mm512_fmadd_ps(each, b2, s##i##2);                                             \
        s##i##3 = _mm512_fmadd_ps(each, b3, s##i##3);                                             \
    }
#define FINISH(i)                                                                                 \
    if (i < count) {                                                                              \
        float *to = out + i * out_stride;                                                         \
        _mm512_storeu_ps(to, _mm512_mul_ps(s##i##0, factor));                                     \
        _mm512_storeu_ps(to + 16, _mm512_mul_ps(s##i##1, factor));                                \
        _mm512_storeu_ps(to + 32, _mm512_mul_ps(s##i##2, factor));                                \
        _mm512_storeu_ps(to + 48, _mm512_mul_ps(s##i##3, factor));                                \
    }

WIDE512 static void rows_times(const float *a, int64_t stride, int count, const float *b,
                               int64_t b_stride, int64_t depth, float *out, int64_t out_stride,
                               float scale) {
    const __m512 zero = _mm512_setzero_ps(), factor = _mm512_set1_ps(scale);
    EACH_QUERY(BEGIN)
    for (int64_t k = 0; k < depth; k++, b += b_stride) {
        const __m512 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b + 16);
        const __m512 b2 = _mm512_loadu_ps(b + 32), b3 = _mm512_loadu_ps(b + 48);
        EACH_QUERY(MULTIPLY)
    }
    EACH_QUERY(FINISH)
}

/* out (size, 64) += transposed factors (6, size) times rows (6, 64) */
#define HOLD(i)                                                                                   \
    const float *r##i = rows + (i < count ? i : count - 1) * stride;                              \
    const __m512 h##i##0 = _mm512_loadu_ps(r##i), h##i##1 = _mm512_loadu_ps(r##i + 16);           \
    const __m512 h##i##2 = _mm512_loadu_ps(r##i + 32), h##i##3 = _mm512_loadu_ps(r##i + 48);
#define SPREAD(i)                                                                                 \
    {                                                                                             \
        const __m512 each = _mm512_set1_ps(factors[i * factor_stride + k]);                       \
        o0 = _mm512_fmadd_ps(each, h##i##0, o0);                                                  \
        o1 = _mm512_fmadd_ps(each, h##i##1, o1);                                                  \
        o2 = _mm512_fmadd_ps(each, h##i##2, o2);                                                  \
        o3 = _mm512_fmadd_ps(each, h##i##3, o3);                                                  \
    }

WIDE512 static void add_spread(const float *factors, int64_t factor_stride, int64_t size,
                               const float *rows, int64_t stride, int count, float *out,
                               int64_t out_stride) {
    EACH_QUERY(HOLD)
    for (int64_t k = 0; k < size; k++, out += out_stride) {
        __m512 o0 = _mm512_loadu_ps(out), o1 = _mm512_loadu_ps(out + 16);
        __m512 o2 = _mm512_loadu_ps(out + 32), o3 = _mm512_loadu_ps(out + 48);
        EACH_QUERY(SPREAD)
        _mm512_storeu_ps(out, o0);
        _mm512_storeu_ps(out + 16, o1);
        _mm512_storeu_ps(out + 32, o2);
        _mm512_storeu_ps(out + 48, o3);
    }
}

/* What a task works on: an example, a key head, and scratch of its thread. */
typedef struct {
    int64_t first, length, padded, size, q_stride, kv_stride;
    const float *k, *v;
    float *k_across, *v_across, *p, *dp;
} attention_task;

WIDE512 static void lay_across(const float *x, int64_t stride, int64_t length, int64_t size,
                               float *out, int64_t padded) {
    for (int64_t i = 0; i < size; i++) {
        for (int64_t row = 0; row < length; row++) out[i * padded + row] = x[row * stride + i];
        for (int64_t row = length; row < padded; row++) out[i * padded + row] = 0.0f;
    }
}

WIDE512 static attention_task attention_at(const arguments *a, int64_t task) {
    const int64_t key_heads = a->n[1], example = task / key_heads, head = task % key_heads;
    const int64_t *starts = a->p[4];
    const int me = thread_number && thread_count && thread_count() > 1 ? thread_number() : 0;
    attention_task t;
    t.first = starts[example];
    t.length = starts[example + 1] - t.first;
    t.padded = a->n[4];
    t.size = a->n[2];
    t.q_stride = a->n[0] * t.size;
    t.kv_stride = key_heads * t.size;
    t.k = (const float *)a->p[1] + t.first * t.kv_stride + head * t.size;
    t.v = (const float *)a->p[2] + t.first * t.kv_stride + head * t.size;
    t.k_across = (float *)((char *)a->p[5] + me * a->n[3]);
    t.v_across = t.k_across + t.size * t.padded;
    t.p = t.v_across + t.size * t.padded;
    t.dp = t.p + QUERIES * t.padded;
    lay_across(t.k, t.kv_stride, t.length, t.size, t.k_across, t.padded);
    return t;
}

/* Probabilities of some queries over all keys up to the last of them; zero where none may look. */
WIDE512 static void probabilities(const attention_task *t, const float *q, int64_t at, int count,
                                  int64_t keys, float scale) {
    for (int64_t column = 0; column < keys; column += 64)
        rows_times(q, t->q_stride, count, t->k_across + column, t->padded, t->size, t->p + column,
                   t->padded, scale);
    for (int64_t i = 0; i < QUERIES; i++) {
        float *restrict p = t->p + i * t->padded;
        const int64_t seen = i < count ? at + i + 1 : 0;
        float largest = p[0], sum = 0.0f;
        _Pragma("omp simd reduction(max : largest)") for (int64_t k = 0; k < seen; k++)
            largest = p[k] > largest ? p[k] : largest;
        _Pragma("omp simd reduction(+ : sum)") for (int64_t k = 0; k < seen; k++) {
            p[k] = power_avx512(p[k] - largest);
            sum += p[k];
        }
        const float inverse = 1.0f / sum;
        for (int64_t k = 0; k < seen; k++) p[k] *= inverse;
        for (int64_t k = seen; k < keys; k++) p[k] = 0.0f;
    }
}

WIDE512 static void attend(const arguments *a, int64_t begin, int64_t end) {
    const int64_t group = a->n[0] / a->n[1];
    for (int64_t task = begin; task < end; task++) {
        const attention_task t = attention_at(a, task);
        for (int64_t g = 0; g < group; g++) {
            const int64_t from = t.first * t.q_stride + (task % a->n[1] * group + g) * t.size;
            for (int64_t at = 0; at < t.length; at += QUERIES) {
                const int count = (int)(t.length - at < QUERIES ? t.length - at : QUERIES);
                const int64_t offset = from + at * t.q_stride, keys = at + count;
                probabilities(&t, (const float *)a->p[0] + offset, at, count, keys, a->f[0]);
                for (int64_t column = 0; column < t.size; column += 64)
                    rows_times(t.p, t.padded, count, t.v + column, t.kv_stride, keys,
                               (float *)a->p[3] + offset + column, t.q_stride, 1.0f);
            }
        }
    }
}

/* dp becomes the gradient of the scores */
WIDE512 static void scores_back(const attention_task *t, int count, int64_t keys, float scale) {
    for (int64_t i = 0; i < QUERIES; i++) {
        const float *restrict p = t->p + i * t->padded;
        float *restrict dp = t->dp + i * t->padded;
        float dot = 0.0f;
        if (i < count)
            _Pragma("omp simd reduction(+ : dot)") for (int64_t k = 0; k < keys; k++)
                dot += p[k] * dp[k];
        for (int64_t k = 0; k < keys; k++)
            dp[k] = i < count ? p[k] * (dp[k] - dot) * scale : 0.0f;
    }
}

WIDE512 static void attend_back(const arguments *a, int64_t begin, int64_t end) {
    const int64_t group = a->n[0] / a->n[1];
    for (int64_t task = begin; task < end; task++) {
        const attention_task t = attention_at(a, task);
        lay_across(t.v, t.kv_stride, t.length, t.size, t.v_across, t.padded);
        float *dk = (float *)a->p[7] + (t.k - (const float *)a->p[1]);
        float *dv = (float *)a->p[8] + (t.v - (const float *)a->p[2]);
        for (int64_t row = 0; row < t.length; row++) {
            memset(dk + row * t.kv_stride, 0, t.size * sizeof(float));
            memset(dv + row * t.kv_stride, 0, t.size * sizeof(float));
        }
        for (int64_t g = 0; g < group; g++) {
            const int64_t from = t.first * t.q_stride + (task % a->n[1] * group + g) * t.size;
            for (int64_t at = 0; at < t.length; at += QUERIES) {
                const int count = (int)(t.length - at < QUERIES ? t.length - at : QUERIES);
                const int64_t offset = from + at * t.q_stride, keys = at + count;
                const float *q = (const float *)a->p[0] + offset;
                const float *dout = (const float *)a->p[3] + offset;
                probabilities(&t, q, at, count, keys, a->f[0]);
                for (int64_t column = 0; column < keys; column += 64)
                    rows_times(dout, t.q_stride, count, t.v_across + column, t.padded, t.size,
                               t.dp + column, t.padded, 1.0f);
                scores_back(&t, count, keys, a->f[0]);
                for (int64_t column = 0; column < t.size; column += 64) {
                    rows_times(t.dp, t.padded, count, t.k + column, t.kv_stride, keys,
                               (float *)a->p[6] + offset + column, t.q_stride, 1.0f);
                    add_spread(t.dp, t.padded, keys, q + column, t.q_stride, count, dk + column,
                               t.kv_stride);
                    add_spread(t.p, t.padded, keys, dout + column, t.q_stride, count, dv + column,
                               t.kv_stride);
                }
            }
        }
    }
}
