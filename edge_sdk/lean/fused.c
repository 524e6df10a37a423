/* One-pass operations on fp32 rows: what plain torch needs several passes over memory for.
 *
 * Every kernel of fused_kernels.h is compiled for the instruction sets named below;
 * fused_start() picks one. Nothing here allocates. Loaded through ctypes, see native.py.
 */
#include <stdint.h>
#include <stddef.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define HAS_X86 1
#endif

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

typedef uint16_t bf16;

/* Numbers of a row of activations that share a scale: a column that stands out spoils no others. */
#define GROUP 128

/* Arguments of every kernel: pointers, sizes and numbers, as each kernel documents. */
typedef struct {
    void *p[10];
    int64_t n[6];
    float f[6];
} arguments;

typedef void (*kernel)(const arguments *, int64_t begin, int64_t end);

enum {
    NORM_FORWARD,
    NORM_BACKWARD,
    ROTATE,
    GATE_FORWARD,
    GATE_BACKWARD,
    QUANTIZE_ROWS,
    ADD_PRODUCT,
    ADAMW,
    EXPONENTIALS,
    WIDEN_NF4,
    KERNELS,
    INTEGER_FORWARD = KERNELS,
    INTEGER_BACKWARD,
    ATTEND,
    ATTEND_BACK,
};

static const float NF4[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f,
};

/* The threads of the library that loaded us: a second pool would fight with it for the cores. */
typedef void (*run_parallel)(void (*)(void *), void *, unsigned, unsigned);
typedef int (*number)(void);

static run_parallel parallel;
static number thread_number, thread_count;

#define SET(name) name##_plain
#define TARGET
#define WIDTH 1
#include "fused_kernels.h"
#undef SET
#undef TARGET
#undef WIDTH

#ifdef HAS_X86
#define SET(name) name##_avx2
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define WIDTH 8
#include "fused_kernels.h"
#undef SET
#undef TARGET
#undef WIDTH

#define SET(name) name##_avx512
#define TARGET                                                                                    \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")))
#define WIDTH 16
#include "fused_kernels.h"
#undef SET
#undef TARGET
#undef WIDTH

#include "fused_products.h"
#include "fused_attention.h"
#endif

static const kernel *kernels = kernels_plain;
static int multiplies_integers;

/* Choose the widest instruction set up to `width` numbers at once, and say which it is. */
EXPORT int fused_start(int width, void *parallel_, void *thread_number_, void *thread_count_) {
    parallel = (run_parallel)parallel_;
    thread_number = (number)thread_number_;
    thread_count = (number)thread_count_;
    kernels = kernels_plain;
    multiplies_integers = 0;
#ifdef HAS_X86
    __builtin_cpu_init();
    if (width >= 16 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        kernels = kernels_avx512;
        multiplies_integers = !!__builtin_cpu_supports("avx512vnni");
        return 16;
    }
    if (width >= 8 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        kernels = kernels_avx2;
        return 8;
    }
#endif
    return 1;
}

/* Say whether the two kernels of fused_products.h can run here. */
EXPORT int fused_multiplies_integers(void) { return multiplies_integers; }

typedef struct {
    kernel run;
    const arguments *given;
    int64_t rows;
} job;

static void run_share(void *data) {
    const job *work = data;
    int64_t me = thread_number(), all = thread_count();
    work->run(work->given, work->rows * me / all, work->rows * (me + 1) / all);
}

/* Run a kernel over `rows` rows, on up to `threads` threads. */
EXPORT void fused_run(int which, const arguments *given, int64_t rows, int threads) {
    job work = {NULL, given, rows};
#ifdef HAS_X86
    if (which == INTEGER_FORWARD) work.run = integer_forward;
    if (which == INTEGER_BACKWARD) work.run = integer_backward;
    if (which == ATTEND) work.run = attend;
    if (which == ATTEND_BACK) work.run = attend_back;
#endif
    if (which < KERNELS) work.run = kernels[which];
    if (threads > 1 && parallel && rows > 1)
        parallel(run_share, &work, (unsigned)threads, 0);
    else
        work.run(given, 0, rows);
}

/* Some systems look for this in every module that setuptools builds. */
EXPORT void *PyInit__fused(void) { return NULL; }
