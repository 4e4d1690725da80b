/* Kernels for networks whose cost is the number of their surviving weights. Compiled on the user's machine by native.py,
 * for the CPU that is there.
 *
 * Activations lie with the batch innermost: `lanes` images side by side at each pixel of each channel. One surviving
 * weight is then one multiply-add of whole vectors, wherever it stands in its matrix, and an offset into the input says
 * where: a feature of a linear layer, or the neighbour of a pixel (in the zero-padded plane of a channel) for a
 * convolution. Both are the operation `rows_of`. With one lane (batch 1), neighbouring pixels are the vector.
 *
 * Offsets, strides and sizes of values count pixels; each pixel holds `lanes` numbers. plan.py lays all of it out.
 */
#include "vectors.h"

#if BYTES == 64 || defined(__aarch64__)
#define MOST 16 /* vectors that are summed at once: they must fit into the registers */
#else
#define MOST 12
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
    int64_t pooled; /* ROWS: the value that takes the maxima of 2 x 2 pixels, or -1 */
    double low, high;
    /* ROWS: the input is cut into `count` blocks, which stay in the cache. Of block b and row r, with i = b * rows + r, the
     * survivors are start[i] to start[i + 1], and read offset[] pixels behind base[i]. */
    const int64_t *start, *base;
    const uint16_t *offset;
    const int32_t *index; /* LOAD, PHASES: channels; FLATTEN: pixels; pools: windows */
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

/* Comparisons that a NaN passes unchanged, as in PyTorch. */
static inline vec clamped(vec x, real low, real high) {
    const vec lows = low - (vec){0}, highs = high - (vec){0};
    x = EITHER(x < lows, lows, x);
    return EITHER(x > highs, highs, x);
}

/* The larger of each pair; a NaN wins, as in PyTorch. */
static inline vec larger(vec a, vec b) { return EITHER((b > a) | (b != b), b, a); }

/* One block of a layer for a tile of its output: R lines of T vectors, of all rows (output channels). The sums stay in
 * registers over all survivors of a row; between blocks they wait in `sums`. */
typedef struct {
    const int64_t *start, *base;
    const uint16_t *offset;
    const real *weight, *bias, *in, *residual;
    real *out, *sums;
    int64_t rows, lanes, first, last;                /* whether the block is the first, and the last */
    int64_t in_line, out_line, residual_line;        /* from a line to the next */
    int64_t out_step, residual_step;                 /* from a row to the next */
    int64_t end;                                     /* where the last vector of a line begins */
    int64_t few;                                     /* numbers in a line of less than a vector, otherwise 0 */
    int64_t clamp, pooled;                           /* pooled: of 2 lines, the maxima of 2 x 2 vectors are kept */
    real low, high;
} Strip;

/* Keeps a pointer in a register of its own: compilers would rather add up the address of each vector. */
#define SEPARATE(pointer) __asm__("" : "+r"(pointer))
#define ALL(R, T) UNROLL for (int r = 0; r < R; r++) UNROLL for (int t = 0; t < T; t++)
#define PLACE(T) (t < T - 1 ? t * WIDTH : T == 1 ? 0 : s->end) /* of vector t in its line */

/* Written for literal T, R and C, so that every compiler keeps the sums in registers. C sums side by side hide the latency
 * of few vectors. */
#define STRIP(T, R, C)                                                                                                 \
    static void strip_##T##_##R(const Strip *s) {                                                                      \
        const real *const weight = s->weight;                                                                          \
        const uint16_t *const offset = s->offset;                                                                      \
        const int64_t lanes = s->lanes, in_line = s->in_line;                                                          \
        for (int64_t row = 0; row < s->rows; row++) {                                                                  \
            real *const sums = s->sums + row * (R * T * WIDTH);                                                        \
            vec sum[C][R][T];                                                                                          \
            if (s->first) {                                                                                            \
                const vec bias = (vec){0} + s->bias[row];                                                              \
                ALL(R, T) sum[0][r][t] = bias;                                                                         \
                if (s->residual) {                                                                                     \
                    const real *const from = s->residual + row * s->residual_step;                                     \
                    ALL(R, T) sum[0][r][t] += read(from + r * s->residual_line + PLACE(T));                            \
                }                                                                                                      \
            } else {                                                                                                   \
                ALL(R, T) sum[0][r][t] = read(sums + (r * T + t) * WIDTH);                                             \
            }                                                                                                          \
            UNROLL for (int c = 1; c < C; c++) { ALL(R, T) sum[c][r][t] = (vec){0}; }                                  \
            const real *const in = s->in + s->base[row] * lanes;                                                       \
            int64_t one = s->start[row];                                                                               \
            const int64_t end = s->start[row + 1];                                                                     \
            for (; one + C <= end; one += C) {                                                                         \
                UNROLL for (int c = 0; c < C; c++) {                                                                   \
                    const real *line[2] = {in + offset[one + c] * lanes, in + offset[one + c] * lanes + in_line};      \
                    const vec w = weight[one + c] - (vec){0};                                                          \
                    SEPARATE(line[1]);                                                                                 \
                    ALL(R, T) sum[c][r][t] += w * read(line[r] + PLACE(T));                                            \
                }                                                                                                      \
            }                                                                                                          \
            if (C > 1)                                                                                                 \
                for (; one < end; one++) {                                                                             \
                    const real *line[2] = {in + offset[one] * lanes, in + offset[one] * lanes + in_line};              \
                    const vec w = weight[one] - (vec){0};                                                              \
                    ALL(R, T) sum[0][r][t] += w * read(line[r] + PLACE(T));                                            \
                }                                                                                                      \
            UNROLL for (int c = 1; c < C; c++) { ALL(R, T) sum[0][r][t] += sum[c][r][t]; }                             \
            if (!s->last) {                                                                                            \
                ALL(R, T) write(sums + (r * T + t) * WIDTH, sum[0][r][t]);                                             \
                continue;                                                                                              \
            }                                                                                                          \
            real *const out = s->out + row * s->out_step;                                                              \
            if (R == 2 && T % 2 == 0 && s->pooled) {                                                                   \
                UNROLL for (int t = 0; t < T; t += 2) {                                                                \
                    const vec upper = larger(sum[0][0][t], sum[0][0][t + 1]);                                          \
                    const vec lower = larger(sum[0][R - 1][t], sum[0][R - 1][t + 1]), most = larger(upper, lower);     \
                    write(out + t / 2 * WIDTH, s->clamp ? clamped(most, s->low, s->high) : most);                      \
                }                                                                                                      \
                continue;                                                                                              \
            }                                                                                                          \
            if (s->clamp) { ALL(R, T) sum[0][r][t] = clamped(sum[0][r][t], s->low, s->high); }                         \
            if (T == 1 && s->few) {                                                                                    \
                for (int64_t i = 0; i < s->few; i++) out[i] = sum[0][0][0][i];                                         \
            } else {                                                                                                   \
                ALL(R, T) write(out + r * s->out_line + PLACE(T), sum[0][r][t]);                                       \
            }                                                                                                          \
        }                                                                                                              \
    }
STRIP(1, 1, 4)
STRIP(2, 1, 4)
STRIP(3, 1, 2)
STRIP(4, 1, 2)
STRIP(5, 1, 2)
STRIP(6, 1, 1)
STRIP(7, 1, 1)
STRIP(8, 1, 1)
STRIP(9, 1, 1)
STRIP(10, 1, 1)
STRIP(11, 1, 1)
STRIP(12, 1, 1)
STRIP(1, 2, 4)
STRIP(2, 2, 2)
STRIP(3, 2, 1)
STRIP(4, 2, 1)
STRIP(5, 2, 1)
STRIP(6, 2, 1)
#if MOST == 16
STRIP(13, 1, 1)
STRIP(14, 1, 1)
STRIP(15, 1, 1)
STRIP(16, 1, 1)
STRIP(7, 2, 1)
STRIP(8, 2, 1)
#endif

static void (*const strips[2][MOST + 1])(const Strip *) = {
    {0, strip_1_1, strip_2_1, strip_3_1, strip_4_1, strip_5_1, strip_6_1, strip_7_1, strip_8_1, strip_9_1, strip_10_1,
     strip_11_1, strip_12_1,
#if MOST == 16
     strip_13_1, strip_14_1, strip_15_1, strip_16_1
#endif
    },
    {0, strip_1_2, strip_2_2, strip_3_2, strip_4_2, strip_5_2, strip_6_2,
#if MOST == 16
     strip_7_2, strip_8_2
#endif
    },
};

/* One image, one pixel a row: a dot product of survivors with inputs from anywhere. They are put together one by one:
 * gather instructions are slower. */
#define SOME (BYTES < 32 ? BYTES : 32)
#define SOME_NUMBERS (SOME / REAL_BYTES)
typedef real some __attribute__((vector_size(SOME), aligned(sizeof(real)), may_alias));
#if SOME_NUMBERS == 8
#define PICKED(x, i) ((some){x[(i)[0]], x[(i)[1]], x[(i)[2]], x[(i)[3]], x[(i)[4]], x[(i)[5]], x[(i)[6]], x[(i)[7]]})
#elif SOME_NUMBERS == 4
#define PICKED(x, i) ((some){x[(i)[0]], x[(i)[1]], x[(i)[2]], x[(i)[3]]})
#else
#define PICKED(x, i) ((some){x[(i)[0]], x[(i)[1]]})
#endif

static void dots(const Strip *s) {
    const real *const weight = s->weight;
    for (int64_t row = 0; row < s->rows; row++) {
        const real *const in = s->in + s->base[row];
        int64_t one = s->start[row];
        const int64_t end = s->start[row + 1];
        some sum = {0};
        real a = s->first ? s->bias[row] : s->sums[row], b = s->first && s->residual ? s->residual[row * s->residual_step] : 0;
        for (; one + SOME_NUMBERS <= end; one += SOME_NUMBERS)
            sum += *(const some *)(weight + one) * PICKED(in, s->offset + one);
        for (; one + 2 <= end; one += 2) {
            a += weight[one] * in[s->offset[one]];
            b += weight[one + 1] * in[s->offset[one + 1]];
        }
        if (one < end) a += weight[one] * in[s->offset[one]];
        UNROLL for (int i = 0; i < SOME_NUMBERS; i += 2) {
            a += sum[i];
            b += sum[i + 1];
        }
        a += b;
        if (s->last && s->clamp) {
            if (a < s->low) a = s->low;
            if (a > s->high) a = s->high;
        }
        *(s->last ? s->out + row * s->out_step : s->sums + row) = a;
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
    if (gap * lanes < 16) { /* a call of memset costs more */
        for (int64_t channel = 0; channel < value->channels; channel++) {
            real *const plane = at(run, value, channel, -value->pad) - value->pad * lanes;
            real *const end = at(run, value, channel, value->height - 1) + value->width * lanes;
            memset(plane, 0, (value->pad * value->pitch + value->pad) * lanes * sizeof(real));
            for (real *row = at(run, value, channel, 0) + value->width * lanes; row < end; row += value->pitch * lanes)
                for (int64_t i = 0; i < gap * lanes; i++) row[i] = 0;
            memset(end, 0, (plane + value->plane * lanes - end) * sizeof(real));
        }
        return;
    }
    for (int64_t channel = 0; channel < value->channels; channel++) {
        real *const plane = at(run, value, channel, -value->pad) - value->pad * lanes;
        real *const end = at(run, value, channel, value->height - 1) + value->width * lanes;
        memset(plane, 0, (value->pad * value->pitch + value->pad) * lanes * sizeof(real));
        for (int64_t y = 0; y + 1 < value->height; y++)
            memset(at(run, value, channel, y) + value->width * lanes, 0, gap * lanes * sizeof(real));
        memset(end, 0, (plane + value->plane * lanes - end) * sizeof(real));
    }
}

/* A layer's output in tiles, each for all rows before the next, so that what they read stays in the cache: `lines` lines
 * of `length` numbers. */
static void tiles(Strip s, const Op *op, int64_t lines, int64_t length) {
    const real *const in = s.in, *const residual = s.residual;
    real *const out = s.out;
    const int64_t vectors = (length + WIDTH - 1) / WIDTH, least = s.pooled ? 2 : 1;
    s.few = length < WIDTH ? length : 0;
    for (int64_t y = 0, high; y < lines; y += high) {
        high = y + 1 < lines && !s.few ? 2 : 1; /* lines at once */
        const int64_t most = MOST / high / least, parts = (vectors / least + most - 1) / most;
        for (int64_t part = 0; part < parts; part++) {
            const int64_t from = vectors / least * part / parts * least, to = vectors / least * (part + 1) / parts * least;
            s.end = (to * WIDTH < length || s.few ? to * WIDTH : length) - WIDTH - from * WIDTH;
            s.out = s.pooled ? out + y / 2 * s.out_line + from / 2 * WIDTH : out + y * s.out_line + from * WIDTH;
            s.in = in + y * s.in_line + from * WIDTH;
            if (residual) s.residual = residual + y * s.residual_line + from * WIDTH;
            for (int64_t block = 0; block < op->count; block++) {
                s.start = op->start + block * s.rows;
                s.base = op->base + block * s.rows;
                s.first = block == 0;
                s.last = block == op->count - 1;
                if (length == 1)
                    dots(&s);
                else
                    strips[high - 1][to - from](&s);
            }
        }
    }
}

/* Linear layers and convolutions: out[row] = bias[row] + sum of weight * in[offset] (+ residual[row]), clamped. */
static void rows_of(const Run *run, const Op *op) {
    const Value *const in = run->program->values + op->in, *out = run->program->values + op->out;
    const Value *const other = op->other < 0 ? 0 : run->program->values + op->other;
    const int64_t lanes = lanes_of(run, out), pooled = op->pooled >= 0 && lanes == WIDTH;
    /* All rows of pixels as one line, over the padding between them, unless a row alone fills the registers. */
    const int fits = in->pitch == out->pitch && (!other || other->pitch == out->pitch);
    const int whole = out->height == 1 || (fits && !pooled && (lanes % WIDTH || out->width * lanes < 4 * WIDTH));
    if (pooled) out = run->program->values + op->pooled;
    Strip s = {
        .offset = op->offset, .weight = op->weight, .bias = op->bias,
        .in = at(run, in, 0, 0), .out = at(run, out, 0, 0), .sums = run->call->planes + run->program->scratch * run->lanes,
        .rows = out->channels, .lanes = lanes, .in_line = in->pitch * lanes, .out_line = out->pitch * lanes,
        .out_step = out->plane * lanes, .clamp = op->function, .low = (real)op->low, .high = (real)op->high, .pooled = pooled,
    };
    if (other) {
        s.residual = at(run, other, 0, 0);
        s.residual_line = other->pitch * lanes;
        s.residual_step = other->plane * lanes;
    }
    if (pooled)
        tiles(s, op, 2 * out->height, 2 * out->width * lanes);
    else if (whole)
        tiles(s, op, 1, ((out->height - 1) * out->pitch + out->width) * lanes);
    else
        tiles(s, op, out->height, out->width * lanes);
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
/* Squares are transposed by exchanging halves, then halves of halves. */
#define KEPT(d, j) (((j) & (d)) ? NUMBERS + (j) - (d) : (j))
#define MOVED(d, j) (((j) & (d)) ? NUMBERS + (j) : (j) + (d))
#define LIST2(F, d, j) F(d, j), F(d, j + 1)
#define LIST4(F, d, j) LIST2(F, d, j), LIST2(F, d, j + 2)
#define LIST8(F, d, j) LIST4(F, d, j), LIST4(F, d, j + 4)
#define LIST16(F, d, j) LIST8(F, d, j), LIST8(F, d, j + 8)
#if NUMBERS == 16
#define LIST LIST16
#elif NUMBERS == 8
#define LIST LIST8
#elif NUMBERS == 4
#define LIST LIST4
#else
#define LIST LIST2
#endif
#define EXCHANGE(d)                                                                                                    \
    UNROLL for (int i = 0; i < NUMBERS; i++) {                                                                         \
        if (i & d) continue;                                                                                           \
        const vec a = square[i], b = square[i + d];                                                                    \
        square[i] = __builtin_shufflevector(a, b, LIST(KEPT, d, 0));                                                   \
        square[i + d] = __builtin_shufflevector(a, b, LIST(MOVED, d, 0));                                              \
    }

static inline void transpose(const real *from, int64_t size, vec *square) {
    UNROLL for (int i = 0; i < NUMBERS; i++) square[i] = read(from + i * size);
#if NUMBERS > 8
    EXCHANGE(8)
#endif
#if NUMBERS > 4
    EXCHANGE(4)
#endif
#if NUMBERS > 2
    EXCHANGE(2)
#endif
    EXCHANGE(1)
}

/* Features of whole vectors of samples: a square of WIDTH samples and WIDTH neighbouring features at a time. */
static void load_squares(const real *from, int64_t size, const int32_t *index, int64_t count, real *to, int64_t lanes) {
    for (int64_t lane = 0; lane < lanes; lane += WIDTH)
        for (int64_t first = 0, end; first < count; first = end) {
            int64_t start = index[first];
            if (start > size - WIDTH) start = size - WIDTH;
            vec square[NUMBERS];
            transpose(from + lane * size + start, size, square);
            for (end = first; end < count && index[end] < start + WIDTH; end++)
                write(to + end * lanes + lane, square[index[end] - start]);
        }
}

/* The same for neighbouring pixels of a line, of which there are at least WIDTH. */
static void load_line(const real *from, int64_t size, int64_t count, real *to, int64_t lanes) {
    for (int64_t lane = 0; lane < lanes; lane += WIDTH)
        for (int64_t first = 0; first < count; first += WIDTH) {
            const int64_t start = first < count - WIDTH ? first : count - WIDTH;
            vec square[NUMBERS];
            transpose(from + lane * size + start, size, square);
            UNROLL for (int i = 0; i < NUMBERS; i++) write(to + (start + i) * lanes + lane, square[i]);
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
#ifdef SHUFFLES
            if (lanes % WIDTH == 0 && out->width >= WIDTH) {
                load_line(pixel, size, out->width, to, lanes);
                continue;
            }
#endif
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
    if (lanes == WIDTH) {
        for (int64_t feature = 0; feature < out->channels; feature++, to += wide)
            write(to, read(from + op->index[feature] * WIDTH));
        return;
    }
    for (int64_t feature = 0; feature < out->channels; feature++, to += wide)
        for (int64_t lane = 0; lane < lanes; lane++) to[lane] = from[op->index[feature] * lanes + lane];
}

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
    if (op->function && lanes == WIDTH) return; /* the convolution before it has done it */
    real *const line = run->call->planes + run->program->scratch * run->lanes;
    int pairs = largest && lanes == 1; /* the commonest case */
    for (int64_t x = 0; x < out->width; x++) pairs &= columns[2 * x] == 2 * x && columns[2 * x + 1] == 2 * x + 2;
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
            if (pairs) {
                for (int64_t x = 0; x < out->width; x++) {
                    const real left = line[2 * x], right = line[2 * x + 1];
                    to[x] = ((right > left) | (right != right)) ? right : left;
                }
                continue;
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
