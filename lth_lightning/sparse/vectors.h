/* Numbers and vectors of the kernels: REAL and the machine's widest vector of it. native.py compiles each C file with this
 * header, once with REAL float and once with REAL double.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifndef REAL
#define REAL float
#define REAL_BYTES 4
#endif
typedef REAL real;

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define NUMBERS (BYTES / REAL_BYTES) /* of a vector; for the preprocessor */
#define WIDTH ((int64_t)NUMBERS)

typedef real vec __attribute__((vector_size(BYTES), aligned(sizeof(real)), may_alias));
#if REAL_BYTES == 4
typedef int32_t ints __attribute__((vector_size(BYTES))); /* what comparing vectors gives: 0, or all bits, a lane */
#else
typedef int64_t ints __attribute__((vector_size(BYTES)));
#endif
#define EITHER(mask, yes, no) ((vec)(((ints)(mask) & (ints)(yes)) | (~(ints)(mask) & (ints)(no))))

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

static inline vec read(const real *from) { return *(const vec *)from; }
static inline void write(real *to, vec value) { *(vec *)to = value; }
