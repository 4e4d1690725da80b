/* Kernels for networks whose cost is the number of their surviving weights. Compiled on the user's machine by native.py,
 * once with REAL float and once with REAL double, for the CPU that is there.
 *
 * Activations lie with the batch innermost: `lanes` images side by side at each pixel of each channel. One surviving
 * weight is then one multiply-add of whole vectors, wherever it stands in its matrix, and an offset into the input says
 * where: a feature of a linear layer, or the neighbour of a pixel (in the zero-padded plane of a channel) for a
 * convolution. Both are the operation `rows_of`. With one lane (batch 1), neighbouring pixels are the vector.
 *
 * Offsets, strides and sizes of values count pixels; each pixel holds `lanes` numbers. plan.py lays all of it out.
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
#define MOST 16 /* vectors that are summed at once: they must fit into the registers */
#elif defined(__AVX__)
#define BYTES 32
#define MOST 8
#elif defined(__aarch64__)
#define BYTES 16
#define MOST 16
#else
#define BYTES 16
#define MOST 8
#endif
#define WIDTH ((int64_t)(BYTES / sizeof(real)))

typedef real vec __attribute__((vector_size(BYTES), aligned(sizeof(real)), may_alias));
#define MASK __typeof__((vec){0} < (vec){0})
#define EITHER(mask, yes, no) ((vec)(((mask) & (MASK)(yes)) | (~(mask) & (MASK)(no))))

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

enum { LOAD, STORE, ROWS, PHASES, FLATTEN, MAX_POOL, SUM_POOL, AFFINE, UNARY, BINARY, COPY };
enum { CLAMP, LEAKY, SIGMOID, TANH, SILU, GELU, GELU_TANH, ELU, HARDSIGMOID, HARDSWISH, ABS, NEG, EXP, SQRT, SOFTPLUS };
enum { ADD, SUB, MUL, DIV, MAXIMUM, MINIMUM };

/* An activation: `channels` planes of `height` x `width` pixels, rows `pitch` apart, planes `plane` apart; `base` is the
 * first pixel of the first plane. Around each plane, and between its rows, lie `pad` pixels of zeros. */
typedef struct {
    int64_t base, channels, height, width, pitch, plane, pad, features; /* features: whether in the second arena */
} Value;

typedef struct {
    int64_t kind, function, in, other, out, tensor, count;
    double low, high;
    const int64_t *start; /* ROWS: survivors of row r are start[r] to start[r + 1] */
    const int32_t *index; /* ROWS: offsets; LOAD, PHASES: channels; FLATTEN: pixels; pools: windows */
    const real *weight, *bias;
} Op;

typedef struct {
    const Value *values;
    const Op *ops;
    int64_t count, split, scratch; /* ops from `split` on see all lanes of a tile at once; scratch: pixels of arena 0 */
    int64_t group, tile;           /* lanes of a group, and of a tile, for large batches */
} Program;

/* What stays the same from call to call of one thread: a program, the sizes of its tensors, and 64-byte aligned arenas. */
typedef struct {
    const Program *program;
    const int64_t *input_size, *output_size; /* numbers a sample */
    real *planes, *features;
} Call;

typedef struct {
    const Program *program;
    const Call *call;
    const real *const *inputs;
    real *const *outputs;
    int64_t lanes, wide;   /* numbers a pixel in each arena */
    int64_t first, column; /* the tile's first sample, the group's first lane in the tile */
} Run;

static inline vec read(const real *from) { return *(const vec *)from; }
static inline void write(real *to, vec value) { *(vec *)to = value; }

/* Comparisons that a NaN passes unchanged, as in PyTorch. */
static inline vec clamped(vec x, real low, real high) {
    const vec lows = (vec){0} + low, highs = (vec){0} + high;
    x = EITHER(x < lows, lows, x);
    return EITHER(x > highs, highs, x);
}

/* T vectors of one strip of pixels, for rows `first` to `last`; C sums side by side hide the latency of few vectors. */
typedef struct {
    const int64_t *start;
    const int32_t *index;
    const real *weight, *bias, *in, *residual;
    real *out;
    int64_t lanes, step, residual_step, first, last; /* step: from a row's output to the next row's */
    int clamp;
    real low, high;
} Strip;

#define STRIP(T, C)                                                                                                    \
    static void strip_##T(const Strip s) {                                                                             \
        const real *const in = s.in, *const weight = s.weight;                                                         \
        const int32_t *const index = s.index;                                                                          \
        const int64_t lanes = s.lanes;                                                                                 \
        for (int64_t row = s.first; row < s.last; row++) {                                                             \
            vec sum[C][T];                                                                                             \
            const vec bias = (vec){0} + s.bias[row];                                                                   \
            UNROLL for (int t = 0; t < T; t++) sum[0][t] = bias;                                                       \
            UNROLL for (int c = 1; c < C; c++) { UNROLL for (int t = 0; t < T; t++) sum[c][t] = (vec){0}; }            \
            int64_t one = s.start[row];                                                                                \
            const int64_t end = s.start[row + 1];                                                                      \
            for (; one + C <= end; one += C) {                                                                         \
                UNROLL for (int c = 0; c < C; c++) {                                                                   \
                    const real *const from = in + index[one + c] * lanes;                                              \
                    const vec w = (vec){0} + weight[one + c];                                                          \
                    UNROLL for (int t = 0; t < T; t++) sum[c][t] += w * read(from + t * WIDTH);                        \
                }                                                                                                      \
            }                                                                                                          \
            for (; one < end; one++) {                                                                                 \
                const real *const from = in + index[one] * lanes;                                                      \
                const vec w = (vec){0} + weight[one];                                                                  \
                UNROLL for (int t = 0; t < T; t++) sum[0][t] += w * read(from + t * WIDTH);                            \
            }                                                                                                          \
            real *const out = s.out + row * s.step;                                                                    \
            UNROLL for (int c = 1; c < C; c++) { UNROLL for (int t = 0; t < T; t++) sum[0][t] += sum[c][t]; }          \
            if (s.residual) {                                                                                          \
                UNROLL for (int t = 0; t < T; t++) sum[0][t] += read(s.residual + row * s.residual_step + t * WIDTH);  \
            }                                                                                                          \
            if (s.clamp) { UNROLL for (int t = 0; t < T; t++) sum[0][t] = clamped(sum[0][t], s.low, s.high); }         \
            UNROLL for (int t = 0; t < T; t++) write(out + t * WIDTH, sum[0][t]);                                      \
        }                                                                                                              \
    }

STRIP(1, 4)
STRIP(2, 2)
STRIP(3, 2)
STRIP(4, 1)
STRIP(5, 1)
STRIP(6, 1)
STRIP(7, 1)
STRIP(8, 1)
#if MOST == 16
STRIP(9, 1)
STRIP(10, 1)
STRIP(11, 1)
STRIP(12, 1)
STRIP(13, 1)
STRIP(14, 1)
STRIP(15, 1)
STRIP(16, 1)
#endif

static void (*const strips[])(Strip) = {
    0,       strip_1,  strip_2,  strip_3,  strip_4,  strip_5,  strip_6,  strip_7,  strip_8,
#if MOST == 16
    strip_9, strip_10, strip_11, strip_12, strip_13, strip_14, strip_15, strip_16,
#endif
};

/* One image, one pixel a row: a dot product of survivors with gathered inputs. */
static void dots(const Strip s) {
    for (int64_t row = s.first; row < s.last; row++) {
        real a = s.bias[row], sum[8] = {0};
        int64_t one = s.start[row];
        const int64_t end = s.start[row + 1];
        for (; one + 8 <= end; one += 8) {
            UNROLL for (int c = 0; c < 8; c++) sum[c] += s.weight[one + c] * s.in[s.index[one + c]];
        }
        for (; one < end; one++) a += s.weight[one] * s.in[s.index[one]];
        a += ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
        if (s.residual) a += s.residual[row * s.residual_step];
        if (s.clamp) {
            if (a < s.low) a = s.low;
            if (a > s.high) a = s.high;
        }
        s.out[row * s.step] = a;
    }
}

static real *arena_of(const Run *run, const Value *value) { return value->features ? run->call->features : run->call->planes; }
static int64_t lanes_of(const Run *run, const Value *value) { return value->features ? run->wide : run->lanes; }

/* The first number of row y of a channel; rows -pad to -1 are padding. */
static real *at(const Run *run, const Value *value, int64_t channel, int64_t y) {
    const int64_t pixel = value->base + channel * value->plane + (y + value->pad) * value->pitch + value->pad;
    return arena_of(run, value) + pixel * lanes_of(run, value);
}

/* Zeros above, below and between the rows of each plane, where convolutions read their padding. */
static void clear_padding(const Run *run, const Value *value) {
    const int64_t lanes = lanes_of(run, value), gap = value->pitch - value->width;
    if (value->pad == 0) return;
    for (int64_t channel = 0; channel < value->channels; channel++) {
        real *const plane = at(run, value, channel, -value->pad) - value->pad * lanes;
        real *const end = at(run, value, channel, value->height - 1) + value->width * lanes;
        memset(plane, 0, (value->pad * value->pitch + value->pad) * lanes * sizeof(real));
        for (int64_t y = 0; y + 1 < value->height; y++)
            memset(at(run, value, channel, y) + value->width * lanes, 0, gap * lanes * sizeof(real));
        memset(end, 0, (plane + value->plane * lanes - end) * sizeof(real));
    }
}

/* A strip of any length, in equal parts that fit into the registers. */
static void in_parts(Strip s, int64_t in, int64_t out, int64_t residual, int64_t vectors) {
    const int64_t parts = (vectors + MOST - 1) / MOST;
    for (int64_t part = 0; part < parts; part++) {
        const int64_t from = vectors * part / parts, to = vectors * (part + 1) / parts;
        Strip p = s;
        p.in += in + from * WIDTH;
        p.out += out + from * WIDTH;
        if (p.residual) p.residual += residual + from * WIDTH;
        strips[to - from](p);
    }
}

/* Linear layers and convolutions: out[row] = bias[row] + sum of weight * in[offset] (+ residual[row]), clamped. */
static void rows_of(const Run *run, const Op *op) {
    const Value *const in = run->program->values + op->in, *const out = run->program->values + op->out;
    const Value *const other = op->other < 0 ? 0 : run->program->values + op->other;
    const int64_t lanes = lanes_of(run, out);
    Strip s = {op->start,         op->index,           op->weight, op->bias,      at(run, in, 0, 0),
               0,                 at(run, out, 0, 0),  lanes,      out->plane * lanes, 0,
               0,                 out->channels,       (int)op->function,  (real)op->low,  (real)op->high};
    if (other) {
        s.residual = at(run, other, 0, 0);
        s.residual_step = other->plane * lanes;
    }
    if (out->height * out->width * lanes == 1) {
        dots(s);
        return;
    }
    /* All rows of pixels as one strip, over the padding between them, unless a row alone fills the registers. */
    const int fits = in->pitch == out->pitch && (!other || other->pitch == out->pitch);
    const int whole = out->height == 1 || (fits && (lanes % WIDTH || out->width * lanes < 4 * WIDTH));
    const int64_t lines = whole ? 1 : out->height;
    const int64_t length = ((whole ? out->height - 1 : 0) * out->pitch + out->width) * lanes;
    const int64_t vectors = (length + WIDTH - 1) / WIDTH, residual = other ? other->pitch * lanes : 0;
    if (lanes % WIDTH == 0) { /* a few pixels of all channels before the next pixels: their input stays in the cache */
        for (int64_t y = 0; y < lines; y++)
            in_parts(s, y * in->pitch * lanes, y * out->pitch * lanes, y * residual, vectors);
    } else { /* in the order of memory: what the last vector writes beyond its end is overwritten by what belongs there */
        for (int64_t row = 0; row < out->channels; row++) {
            s.first = row;
            s.last = row + 1;
            for (int64_t y = 0; y < lines; y++)
                in_parts(s, y * in->pitch * lanes, y * out->pitch * lanes, y * residual, vectors);
        }
    }
    clear_padding(run, out);
}

/* The first sample of these lanes: a group's, or in the second arena a tile's. */
static int64_t sample_of(const Run *run, const Value *value) { return run->first + (value->features ? 0 : run->column); }

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLES
#endif
#endif
#ifdef SHUFFLES
#define PAIR16(a, b, i) __builtin_shufflevector(a, b, i, 16 + i, 1 + i, 17 + i, 2 + i, 18 + i, 3 + i, 19 + i, 4 + i, \
                                                20 + i, 5 + i, 21 + i, 6 + i, 22 + i, 7 + i, 23 + i)
#define PAIR8(a, b, i) __builtin_shufflevector(a, b, i, 8 + i, 1 + i, 9 + i, 2 + i, 10 + i, 3 + i, 11 + i)
#define PAIR4(a, b, i) __builtin_shufflevector(a, b, i, 4 + i, 1 + i, 5 + i)
#define PAIR2(a, b, i) __builtin_shufflevector(a, b, i, 2 + i)
#define TRANSPOSE(N)                                                                                                   \
    static void transpose_##N(const real *from, int64_t size, vec *to) {                                               \
        vec a[N], b[N];                                                                                                \
        UNROLL for (int i = 0; i < N; i++) a[i] = read(from + i * size);                                               \
        UNROLL for (int step = 1; step < N; step *= 2) {                                                               \
            UNROLL for (int i = 0; i < N / 2; i++) {                                                                   \
                b[2 * i] = PAIR##N(a[i], a[i + N / 2], 0);                                                             \
                b[2 * i + 1] = PAIR##N(a[i], a[i + N / 2], N / 2);                                                     \
            }                                                                                                          \
            UNROLL for (int i = 0; i < N; i++) a[i] = b[i];                                                            \
        }                                                                                                              \
        UNROLL for (int i = 0; i < N; i++) to[i] = a[i];                                                               \
    }
#define NUMBERS (BYTES / REAL_BYTES)
#if NUMBERS == 16
TRANSPOSE(16)
#define transpose transpose_16
#elif NUMBERS == 8
TRANSPOSE(8)
#define transpose transpose_8
#elif NUMBERS == 4
TRANSPOSE(4)
#define transpose transpose_4
#else
TRANSPOSE(2)
#define transpose transpose_2
#endif

/* Features of whole vectors of samples: a square of WIDTH samples and WIDTH neighbouring features at a time. */
static void load_squares(const real *from, int64_t size, const int32_t *index, int64_t count, real *to, int64_t lanes) {
    int64_t first = 0;
    while (first < count) {
        int64_t start = index[first], end = first + 1;
        if (start > size - WIDTH) start = size - WIDTH;
        while (end < count && index[end] < start + WIDTH) end++;
        for (int64_t lane = 0; lane < lanes; lane += WIDTH) {
            vec square[NUMBERS];
            transpose(from + lane * size + start, size, square);
            for (int64_t i = first; i < end; i++) write(to + i * lanes + lane, square[index[i] - start]);
        }
        first = end;
    }
}
#endif

/* The input tensor, sample after sample, into lanes. */
static void load(const Run *run, const Op *op) {
    const Value *const out = run->program->values + op->out;
    const int64_t lanes = lanes_of(run, out), size = run->call->input_size[op->tensor], pixels = out->height * out->width;
    const real *const from = run->inputs[op->tensor] + sample_of(run, out) * size;
    if (pixels == 1 && lanes == 1 && out->plane == 1) {
        real *const to = at(run, out, 0, 0);
        for (int64_t i = 0; i < out->channels; i++) to[i] = from[op->index[i]];
        return;
    }
#ifdef SHUFFLES
    if (pixels == 1 && out->plane == 1 && lanes % WIDTH == 0 && size >= WIDTH) {
        load_squares(from, size, op->index, out->channels, at(run, out, 0, 0), lanes);
        return;
    }
#endif
    for (int64_t channel = 0; channel < out->channels; channel++)
        for (int64_t y = 0; y < out->height; y++) {
            real *to = at(run, out, channel, y);
            const real *pixel = from + op->index[channel] * pixels + y * out->width;
            for (int64_t x = 0; x < out->width; x++, pixel++, to += lanes)
                for (int64_t lane = 0; lane < lanes; lane++) to[lane] = pixel[lane * size];
        }
    clear_padding(run, out);
}

static void store(const Run *run, const Op *op) {
    const Value *const in = run->program->values + op->in;
    const int64_t lanes = lanes_of(run, in), size = run->call->output_size[op->tensor], pixels = in->height * in->width;
    real *const to = run->outputs[op->tensor] + sample_of(run, in) * size;
    for (int64_t channel = 0; channel < in->channels; channel++)
        for (int64_t y = 0; y < in->height; y++) {
            const real *from = at(run, in, channel, y);
            real *pixel = to + channel * pixels + y * in->width;
            for (int64_t x = 0; x < in->width; x++, pixel++, from += lanes)
                for (int64_t lane = 0; lane < lanes; lane++) pixel[lane * size] = from[lane];
        }
}

/* The phases of a strided convolution's input: out channel c holds the pixels (y * step + dy, x * step + dx) of channel
 * `index[3 c]`, where (dy, dx) = index[3 c + 1 … 2]; what lies outside the input is zero. */
static void phases(const Run *run, const Op *op) {
    const Value *const in = run->program->values + op->in, *const out = run->program->values + op->out;
    const int64_t lanes = lanes_of(run, out), down = op->count >> 32, across = op->count & 0xffffffff;
    for (int64_t channel = 0; channel < out->channels; channel++) {
        const int64_t dy = op->index[3 * channel + 1], dx = op->index[3 * channel + 2];
        for (int64_t y = 0; y < out->height; y++) {
            real *to = at(run, out, channel, y);
            if (y * down + dy >= in->height) {
                memset(to, 0, out->width * lanes * sizeof(real));
                continue;
            }
            const real *const from = at(run, in, op->index[3 * channel], y * down + dy);
            for (int64_t x = 0; x < out->width; x++, to += lanes)
                if (x * across + dx < in->width)
                    memcpy(to, from + (x * across + dx) * lanes, lanes * sizeof(real));
                else
                    memset(to, 0, lanes * sizeof(real));
        }
    }
    clear_padding(run, out);
}

/* Pixels of planes as features: feature f is the pixel `index[f]` behind the first. From a group's lanes to the tile's. */
static void flatten(const Run *run, const Op *op) {
    const Value *const in = run->program->values + op->in, *const out = run->program->values + op->out;
    const int64_t lanes = lanes_of(run, in), wide = lanes_of(run, out);
    const real *const from = at(run, in, 0, 0);
    real *to = at(run, out, 0, 0) + (in->features == out->features ? 0 : run->column);
    for (int64_t feature = 0; feature < out->channels; feature++, to += wide)
        for (int64_t lane = 0; lane < lanes; lane++) to[lane] = from[op->index[feature] * lanes + lane];
}

/* The larger of each pair; a NaN wins, as in PyTorch. */
static inline vec larger(vec a, vec b) { return EITHER((b > a) | (b != b), b, a); }
static inline vec both(int largest, vec a, vec b) {
    if (largest) return larger(a, b);
    return a + b;
}

/* Windows: index holds the first and last + 1 row of each output row, then the columns of each output column. SUM_POOL
 * multiplies by weight[y * width + x] (one over the count). With lanes of less than a vector, rows first, along contiguous
 * memory, into a line; then each output's columns. */
static void pool(const Run *run, const Op *op) {
    const Value *const in = run->program->values + op->in, *const out = run->program->values + op->out;
    const int64_t lanes = lanes_of(run, out), length = in->width * lanes, step = in->pitch * lanes;
    const int32_t *const rows = op->index, *const columns = op->index + 2 * out->height;
    const int largest = op->kind == MAX_POOL, whole = lanes % WIDTH == 0;
    real *const line = run->call->planes + run->program->scratch * run->lanes;
    for (int64_t channel = 0; channel < out->channels; channel++)
        for (int64_t y = 0; y < out->height; y++) {
            const real *const first = at(run, in, channel, rows[2 * y]);
            const int64_t down = rows[2 * y + 1] - rows[2 * y];
            real *to = at(run, out, channel, y);
            if (!whole)
                for (int64_t i = 0; i < length; i += WIDTH) {
                    vec best = read(first + i);
                    for (int64_t r = 1; r < down; r++) {
                        const vec next = read(first + r * step + i);
                        best = both(largest, best, next);
                    }
                    write(line + i, best);
                }
            for (int64_t x = 0; x < out->width; x++, to += lanes) {
                const int64_t start = columns[2 * x], across = columns[2 * x + 1] - start;
                const real factor = largest ? 1 : op->weight[y * out->width + x];
                if (whole) {
                    for (int64_t lane = 0; lane < lanes; lane += WIDTH) {
                        const real *const corner = first + start * lanes + lane;
                        vec best = read(corner);
                        for (int64_t r = 0; r < down; r++)
                            for (int64_t c = r == 0; c < across; c++) {
                                const vec next = read(corner + r * step + c * lanes);
                                best = both(largest, best, next);
                            }
                        write(to + lane, best * factor);
                    }
                    continue;
                }
                for (int64_t lane = 0; lane < lanes; lane++) {
                    real best = line[start * lanes + lane];
                    for (int64_t c = start + 1; c < start + across; c++) {
                        const real next = line[c * lanes + lane];
                        best = !largest ? best + next : next > best || next != next ? next : best;
                    }
                    to[lane] = best * factor;
                }
            }
        }
    clear_padding(run, out);
}

static void unary(int64_t function, real a, real b, const real *x, real *y, int64_t n) {
#define EACH(value)                                                                                                    \
    for (int64_t i = 0; i < n; i++) {                                                                                  \
        const real v = x[i];                                                                                           \
        y[i] = (real)(value);                                                                                          \
    }                                                                                                                  \
    break
    switch (function) {
    case CLAMP: EACH(v < a ? a : v > b ? b : v);
    case LEAKY: EACH(v < 0 ? v * a : v);
    case SIGMOID: EACH(1 / (1 + exp(-(double)v)));
    case TANH: EACH(tanh((double)v));
    case SILU: EACH(v / (1 + exp(-(double)v)));
    case GELU: EACH(v * 0.5 * (1 + erf(v * 0.70710678118654752440)));
    case GELU_TANH: EACH(v * 0.5 * (1 + tanh(0.79788456080286535588 * (v + 0.044715 * v * v * v))));
    case ELU: EACH(v > 0 ? b * v : b * a * expm1((double)v));
    case HARDSIGMOID: EACH(v < -3 ? 0 : v > 3 ? 1 : v / 6 + 0.5);
    case HARDSWISH: EACH(v * (v < -3 ? 0 : v > 3 ? 1 : v / 6 + 0.5));
    case ABS: EACH(v < 0 ? -v : v);
    case NEG: EACH(-v);
    case EXP: EACH(exp((double)v));
    case SQRT: EACH(sqrt((double)v));
    case SOFTPLUS: EACH(v * a > b ? v : log1p(exp((double)(v * a))) / a);
    }
#undef EACH
}

static void binary(int64_t function, const real *x, const real *z, int64_t repeat, real *y, int64_t n) {
    /* z is as long as x, or has `repeat` numbers that are read again for each pixel. */
#define EACH(value)                                                                                                    \
    for (int64_t i = 0; i < n; i += repeat)                                                                            \
        for (int64_t j = 0; j < repeat; j++) {                                                                         \
            const real v = x[i + j], w = z[j];                                                                         \
            y[i + j] = (value);                                                                                        \
        }                                                                                                              \
    break
    switch (function) {
    case ADD: EACH(v + w);
    case SUB: EACH(v - w);
    case MUL: EACH(v * w);
    case DIV: EACH(v / w);
    case MAXIMUM: EACH(v >= w || v != v ? v : w);
    case MINIMUM: EACH(v <= w || v != v ? v : w);
    }
#undef EACH
}

/* Operations on each number: UNARY, BINARY, AFFINE (a factor and a shift a channel, clamped), COPY (of channels). */
static void elementwise(const Run *run, const Op *op) {
    const Value *const in = run->program->values + op->in, *const out = run->program->values + op->out;
    const Value *const other = op->other < 0 ? 0 : run->program->values + op->other;
    const int64_t lanes = lanes_of(run, out), length = out->width * lanes;
    const int one_pixel = other && other->height * other->width == 1;
    for (int64_t channel = 0; channel < in->channels; channel++)
        for (int64_t y = 0; y < out->height; y++) {
            const real *const x = at(run, in, channel, y);
            real *const to = at(run, out, op->kind == COPY ? op->count + channel : channel, y);
            if (op->kind == UNARY) {
                unary(op->function, (real)op->low, (real)op->high, x, to, length);
            } else if (op->kind == BINARY) {
                const real *const z = at(run, other, channel, one_pixel ? 0 : y);
                binary(op->function, x, z, one_pixel ? lanes : length, to, length);
            } else if (op->kind == AFFINE) {
                const real factor = op->weight[channel], shift = op->bias[channel];
                for (int64_t i = 0; i < length; i++) to[i] = x[i] * factor + shift;
                if (op->function) unary(CLAMP, (real)op->low, (real)op->high, to, to, length);
            } else {
                memcpy(to, x, length * sizeof(real));
            }
        }
    clear_padding(run, out);
}

static void perform(const Run *run, const Op *op) {
    switch (op->kind) {
    case LOAD: load(run, op); break;
    case STORE: store(run, op); break;
    case ROWS: rows_of(run, op); break;
    case PHASES: phases(run, op); break;
    case FLATTEN: flatten(run, op); break;
    case MAX_POOL:
    case SUM_POOL: pool(run, op); break;
    default: elementwise(run, op);
    }
}

/* How many numbers a vector of this build holds. */
int64_t lth_width(void) { return WIDTH; }

/* Apply a program to samples `first` to `last` of the inputs. Whole tiles first; what is left goes through as many whole
 * vectors as it fills, and then in lanes of its own. */
void lth_run(const Call *call, const real *const *inputs, real *const *outputs, int64_t first, int64_t last) {
    const Program *const program = call->program;
    while (first < last) {
        const int64_t left = last - first;
        int64_t lanes = program->group, wide = program->tile;
        if (left < wide) {
            wide = left < WIDTH ? left : left / WIDTH * WIDTH;
            lanes = wide % lanes ? (wide < WIDTH ? wide : WIDTH) : lanes;
        }
        Run run = {program, call, inputs, outputs, lanes, wide, first, 0};
        for (; run.column < wide; run.column += lanes)
            for (int64_t i = 0; i < program->split; i++) perform(&run, program->ops + i);
        run.column = 0;
        for (int64_t i = program->split; i < program->count; i++) perform(&run, program->ops + i);
        first += wide;
    }
}

/* The same for a program from one tensor to one, for the shortest way from Python. */
void lth_apply(const Call *call, const real *input, real *output, int64_t count) { lth_run(call, &input, &output, 0, count); }
