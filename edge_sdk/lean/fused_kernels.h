/* The kernels of fused.c, compiled once per instruction set: SET names them, TARGET is the set.
 *
 * Sizes and pointers come in `arguments`; each kernel says which. Rows are split among threads.
 */

/* exp(x) of x <= 0 to a few units in the last place; vectorizes, unlike a call. */
TARGET static inline float SET(power)(float x) {
    x = x < -87.0f ? -87.0f : x;
    float shifted = x * 1.44269504f + 12582912.0f;
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    int32_t exponent = bits - 0x4B400000;
    float whole = (float)exponent;
    float r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    int32_t scale = (exponent + 127) << 23;
    float factor;
    memcpy(&factor, &scale, 4);
    return y * factor;
}

/* 1 / (1 + exp(-g)). Only powers of negative numbers are formed: those of positive ones would lead
 * to denormal quotients, which are slow on some processors even in lanes that are thrown away. */
TARGET static inline float SET(sigmoid)(float g) {
    const float e = SET(power)(g < 0.0f ? g : -g);
    return (g < 0.0f ? e : 1.0f) / (1.0f + e);
}

/* y = x / rms(x) * weight, and 1 / rms of each row.
 * p: x, weight, y, inverse; n: d; f: epsilon */
TARGET static void SET(norm_forward)(const arguments *a, int64_t begin, int64_t end) {
    const int64_t d = a->n[0];
    const float *restrict weight = a->p[1];
    for (int64_t row = begin; row < end; row++) {
        const float *restrict x = (const float *)a->p[0] + row * d;
        float *restrict y = (float *)a->p[2] + row * d;
        float sum = 0.0f;
        _Pragma("omp simd reduction(+ : sum)") for (int64_t i = 0; i < d; i++) sum += x[i] * x[i];
        const float inverse = 1.0f / __builtin_sqrtf(sum / (float)d + a->f[0]);
        for (int64_t i = 0; i < d; i++) y[i] = x[i] * inverse * weight[i];
        ((float *)a->p[3])[row] = inverse;
    }
}

/* dx += gradient of norm_forward.  p: dy, x, weight, inverse, dx; n: d */
TARGET static void SET(norm_backward)(const arguments *a, int64_t begin, int64_t end) {
    const int64_t d = a->n[0];
    const float *restrict weight = a->p[2];
    for (int64_t row = begin; row < end; row++) {
        const float *restrict dy = (const float *)a->p[0] + row * d;
        const float *restrict x = (const float *)a->p[1] + row * d;
        float *restrict dx = (float *)a->p[4] + row * d;
        const float inverse = ((const float *)a->p[3])[row];
        float dot = 0.0f;
        _Pragma("omp simd reduction(+ : dot)") for (int64_t i = 0; i < d; i++)
            dot += dy[i] * weight[i] * x[i];
        const float along = dot * inverse * inverse * inverse / (float)d;
        for (int64_t i = 0; i < d; i++) dx[i] += dy[i] * weight[i] * inverse - x[i] * along;
    }
}

/* Rotate every head of a row by its position, in place; sign -1 rotates back.
 * p: x, cos, sin, positions; n: heads, head size; f: sign; the tables have half a head per row */
TARGET static void SET(rotate)(const arguments *a, int64_t begin, int64_t end) {
    const int64_t heads = a->n[0], half = a->n[1] / 2;
    const float sign = a->f[0];
    for (int64_t row = begin; row < end; row++) {
        const int64_t position = ((const int64_t *)a->p[3])[row];
        const float *restrict cosine = (const float *)a->p[1] + position * half;
        const float *restrict sine = (const float *)a->p[2] + position * half;
        for (int64_t head = 0; head < heads; head++) {
            float *restrict low = (float *)a->p[0] + (row * heads + head) * 2 * half;
            float *restrict high = low + half;
            for (int64_t i = 0; i < half; i++) {
                const float u = low[i], v = high[i], s = sign * sine[i];
                low[i] = u * cosine[i] - v * s;
                high[i] = v * cosine[i] + u * s;
            }
        }
    }
}

/* h = silu(gate) * up.  p: gate, up, h; n: width */
TARGET static void SET(gate_forward)(const arguments *a, int64_t begin, int64_t end) {
    const int64_t width = a->n[0];
    const float *restrict gate = (const float *)a->p[0];
    const float *restrict up = (const float *)a->p[1];
    float *restrict h = (float *)a->p[2];
    for (int64_t i = begin * width; i < end * width; i++)
        h[i] = gate[i] * SET(sigmoid)(gate[i]) * up[i];
}

/* gate and up become their gradients, dh becomes h.  p: dh, gate, up; n: width */
TARGET static void SET(gate_backward)(const arguments *a, int64_t begin, int64_t end) {
    const int64_t width = a->n[0];
    float *restrict dh = (float *)a->p[0];
    float *restrict gate = (float *)a->p[1];
    float *restrict up = (float *)a->p[2];
    for (int64_t i = begin * width; i < end * width; i++) {
        const float g = gate[i], u = up[i], d = dh[i];
        const float sigmoid = SET(sigmoid)(g);
        const float silu = g * sigmoid;
        gate[i] = d * u * (sigmoid + silu * (1.0f - sigmoid));
        up[i] = d * silu;
        dh[i] = silu * u;
    }
}

/* Integers within -127..127, of x or of x with its columns scaled; for each group of a row its scale
 * and 128 times the sum of its integers.
 * p: x, column scale or NULL, integers, scale, excess; n: d */
TARGET static void SET(quantize_rows)(const arguments *a, int64_t begin, int64_t end) {
    const int64_t d = a->n[0], groups = (d + GROUP - 1) / GROUP;
    const float *restrict columns = a->p[1];
    for (int64_t row = begin; row < end; row++) {
        for (int64_t group = 0; group < groups; group++) {
            const int64_t first = group * GROUP, size = d - first < GROUP ? d - first : GROUP;
            const float *restrict x = (const float *)a->p[0] + row * d + first;
            int8_t *restrict q = (int8_t *)a->p[2] + row * d + first;
            float scaled[GROUP];
            uint32_t largest = 0; /* of magnitudes, whose bits order like integers */
            for (int64_t i = 0; i < size; i++) {
                scaled[i] = columns ? x[i] * columns[first + i] : x[i];
                uint32_t bits;
                memcpy(&bits, &scaled[i], 4);
                bits &= 0x7FFFFFFF;
                largest = bits > largest ? bits : largest;
            }
            float top;
            memcpy(&top, &largest, 4);
            const float scale = top > 0.0f ? top / 127.0f : 1.0f;
            const float inverse = 1.0f / scale;
            int32_t sum = 0;
            for (int64_t i = 0; i < size; i++) {
                const float shifted = scaled[i] * inverse + 12582912.0f;
                int32_t bits;
                memcpy(&bits, &shifted, 4);
                bits -= 0x4B400000;
                q[i] = (int8_t)bits;
                sum += (int8_t)bits;
            }
            ((float *)a->p[3])[row * groups + group] = top == top ? scale : top;
            ((int32_t *)a->p[4])[row * groups + group] = 128 * sum;
        }
    }
}

/* y += product * row scale * column scale.  p: product, row scale, column scale or NULL, y; n: d */
TARGET static void SET(add_product)(const arguments *a, int64_t begin, int64_t end) {
    const int64_t d = a->n[0];
    const float *restrict columns = a->p[2];
    for (int64_t row = begin; row < end; row++) {
        const int32_t *restrict product = (const int32_t *)a->p[0] + row * d;
        float *restrict y = (float *)a->p[3] + row * d;
        const float scale = ((const float *)a->p[1])[row];
        if (columns)
            for (int64_t i = 0; i < d; i++) y[i] += (float)product[i] * scale * columns[i];
        else
            for (int64_t i = 0; i < d; i++) y[i] += (float)product[i] * scale;
    }
}

/* One step of AdamW, in place.
 * p: values, gradient, mean, mean square; n: numbers of a row, numbers in all;
 * f: factor of the values, 1 - beta1, beta2, step size, square root of the correction, epsilon */
TARGET static void SET(adamw)(const arguments *a, int64_t begin, int64_t end) {
    const int64_t stop = end * a->n[0] < a->n[1] ? end * a->n[0] : a->n[1];
    float *restrict value = a->p[0];
    const float *restrict gradient = a->p[1];
    float *restrict mean = a->p[2];
    float *restrict square = a->p[3];
    const float decay = a->f[0], fresh = a->f[1], kept = a->f[2], size = a->f[3];
    const float root = a->f[4], epsilon = a->f[5];
    for (int64_t i = begin * a->n[0]; i < stop; i++) {
        const float g = gradient[i];
        mean[i] += fresh * (g - mean[i]);
        square[i] = kept * square[i] + (1.0f - kept) * g * g;
        value[i] = decay * value[i] - size * mean[i] / (__builtin_sqrtf(square[i]) / root + epsilon);
    }
}

/* Logits become exponentials relative to the largest one so far; see vocabulary_loss.py.
 * p: logits, largest so far, shrinkage, sums of the exponentials; n: columns */
TARGET static void SET(exponentials)(const arguments *a, int64_t begin, int64_t end) {
    const int64_t width = a->n[0];
    for (int64_t row = begin; row < end; row++) {
        float *restrict x = (float *)a->p[0] + row * width;
        float *largest = (float *)a->p[1] + row;
        float top = *largest, sum = 0.0f;
        _Pragma("omp simd reduction(max : top)") for (int64_t i = 0; i < width; i++)
            top = x[i] > top ? x[i] : top;
        _Pragma("omp simd reduction(+ : sum)") for (int64_t i = 0; i < width; i++) {
            x[i] = SET(power)(x[i] - top);
            sum += x[i];
        }
        ((float *)a->p[2])[row] = SET(power)(*largest - top);
        ((float *)a->p[3])[row] = sum;
        *largest = top;
    }
}

/* Weights of whole blocks of 64.  p: packed, absmax, out; rows are blocks from n: first block */
TARGET static void SET(widen_nf4)(const arguments *a, int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; block++) {
        const uint8_t *restrict packed = (const uint8_t *)a->p[0] + (a->n[0] + block) * 32;
        const float largest = ((const float *)a->p[1])[a->n[0] + block];
        float *restrict out = (float *)a->p[2] + block * 64;
#if WIDTH == 16
        const __m512 table = _mm512_mul_ps(_mm512_loadu_ps(NF4), _mm512_set1_ps(largest));
        for (int part = 0; part < 4; part++) {
            const __m128i bytes = _mm_loadl_epi64((const __m128i *)(packed + 8 * part));
            const __m128i low = _mm_and_si128(bytes, _mm_set1_epi8(15));
            const __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15));
            const __m512i codes = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(high, low));
            _mm512_storeu_ps(out + 16 * part, _mm512_permutexvar_ps(codes, table));
        }
#else
        float table[16];
        for (int i = 0; i < 16; i++) table[i] = NF4[i] * largest;
        for (int i = 0; i < 32; i++) {
            out[2 * i] = table[packed[i] >> 4];
            out[2 * i + 1] = table[packed[i] & 15];
        }
#endif
    }
}

static const kernel SET(kernels)[KERNELS] = {
    SET(norm_forward),  SET(norm_backward), SET(rotate),      SET(gate_forward),
    SET(gate_backward), SET(quantize_rows), SET(add_product), SET(adamw),
    SET(exponentials),  SET(widen_nf4),
};
