/* Kernels that train layers of which only the survivors exist: forward, both backward products and the optimizer's step.
 * Compiled by native.py like kernels.c.
 *
 * Linear layers see the batch innermost: a feature is a row of `lanes` numbers, one an example, so that each survivor is
 * one multiply-add of whole vectors in the forward pass and in the gradient of the input, and a dot product of two rows
 * in its own gradient. Convolutions see images as PyTorch stores them, one at a time: each is copied into zero-padded
 * planes, where a survivor is an offset, and neighbouring pixels are the vector. A strided convolution is one without
 * stride over `phases` planes a channel: every second row and column, say. pattern.py lays out the indices.
 */
#include "vectors.h"

#if BYTES == 64
#define MOST 4 /* vectors of examples at once: their sums must fit into the registers */
#else
#define MOST 8
#endif
#define TILE (MOST * WIDTH) /* examples that a linear layer sees at once */

#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
typedef real quad __attribute__((vector_size(4 * REAL_BYTES), aligned(sizeof(real)), may_alias));
#endif
#endif

/* Every second number of two vectors that follow one another, and the opposite: two vectors' numbers in turns. */
#if defined(PICK) && NUMBERS == 16
#define EVENS(a, b) PICK(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
#define ODDS(a, b) PICK(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)
#define FIRST_TURNS(a, b) PICK(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define LAST_TURNS(a, b) PICK(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif defined(PICK) && NUMBERS == 8
#define EVENS(a, b) PICK(a, b, 0, 2, 4, 6, 8, 10, 12, 14)
#define ODDS(a, b) PICK(a, b, 1, 3, 5, 7, 9, 11, 13, 15)
#define FIRST_TURNS(a, b) PICK(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define LAST_TURNS(a, b) PICK(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#elif defined(PICK) && NUMBERS == 4
#define EVENS(a, b) PICK(a, b, 0, 2, 4, 6)
#define ODDS(a, b) PICK(a, b, 1, 3, 5, 7)
#define FIRST_TURNS(a, b) PICK(a, b, 0, 4, 1, 5)
#define LAST_TURNS(a, b) PICK(a, b, 2, 6, 3, 7)
#endif

/* The survivors of a layer, by rows (outputs) and by columns (inputs). */
typedef struct {
    int64_t rows, columns;
    const int64_t *row_start;    /* survivors of row r: row_start[r] to row_start[r + 1], in the order of the weights */
    const int32_t *row_index;    /* linear: column; convolution: offset into the padded input */
    const int64_t *column_start;
    const int32_t *column_index; /* linear: row; convolution: offset into the padded gradient of the output */
    const int32_t *column_order; /* which weight */
    real *weight, *bias;         /* (survivors), (rows) or NULL */
    real *weight_grad, *bias_grad;
    int64_t relu; /* linear: whether a ReLU follows, but for the last layer of a chain */
} Layer;

/* Adds over the lanes of `count` vectors, each to one number. */
static inline real total(vec sum) {
    real all = 0;
    UNROLL for (int64_t i = 0; i < WIDTH; i++) all += sum[i];
    return all;
}

/* The sums over WIDTH vectors' lanes at once: in each step, halves of two vectors are added, until lane i is sum i. */
#if defined(PICK) && NUMBERS >= 4
static inline vec totals(const vec *s) {
#if NUMBERS == 16
    vec a[8], b[4], c[2];
    UNROLL for (int i = 0; i < 8; i++)
        a[i] = PICK(s[2 * i], s[2 * i + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               PICK(s[2 * i], s[2 * i + 1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    UNROLL for (int i = 0; i < 4; i++)
        b[i] = PICK(a[2 * i], a[2 * i + 1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
               PICK(a[2 * i], a[2 * i + 1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    UNROLL for (int i = 0; i < 2; i++)
        c[i] = PICK(b[2 * i], b[2 * i + 1], 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
               PICK(b[2 * i], b[2 * i + 1], 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
    return EVENS(c[0], c[1]) + ODDS(c[0], c[1]);
#elif NUMBERS == 8
    vec a[4], b[2];
    UNROLL for (int i = 0; i < 4; i++)
        a[i] = PICK(s[2 * i], s[2 * i + 1], 0, 1, 2, 3, 8, 9, 10, 11) +
               PICK(s[2 * i], s[2 * i + 1], 4, 5, 6, 7, 12, 13, 14, 15);
    UNROLL for (int i = 0; i < 2; i++)
        b[i] = PICK(a[2 * i], a[2 * i + 1], 0, 1, 4, 5, 8, 9, 12, 13) +
               PICK(a[2 * i], a[2 * i + 1], 2, 3, 6, 7, 10, 11, 14, 15);
    return EVENS(b[0], b[1]) + ODDS(b[0], b[1]);
#else
    const vec a = PICK(s[0], s[1], 0, 1, 4, 5) + PICK(s[0], s[1], 2, 3, 6, 7);
    const vec b = PICK(s[2], s[3], 0, 1, 4, 5) + PICK(s[2], s[3], 2, 3, 6, 7);
    return EVENS(a, b) + ODDS(a, b);
#endif
}
#else
static inline vec totals(const vec *s) {
    vec all;
    UNROLL for (int64_t i = 0; i < WIDTH; i++) all[i] = total(s[i]);
    return all;
}
#endif

int64_t lth_tile(void) { return TILE; }

/* ------------------------------------------------------------------ linear layers, batch innermost */

/* T vectors of examples at once, with C sums side by side, which hide the latency of few vectors. */
#define INLINE static inline __attribute__((always_inline)) void
#define EACH UNROLL for (int t = 0; t < T; t++)

/* `value` where a ReLU lets it through, else 0; a NaN passes, as in PyTorch. */
static inline vec where_positive(vec was, vec value) {
    return (vec)(~(ints)(was <= 0) & (ints)value);
}

/* out[row] = bias + sum of weight * in[column]. */
INLINE forward_of(const int T, const int C, const Layer *l, const real *in, real *out) {
    const int64_t lanes = T * WIDTH;
    for (int64_t row = 0; row < l->rows; row++) {
        const int64_t end = l->row_start[row + 1];
        int64_t one = l->row_start[row];
        vec sum[4][MOST];
        EACH sum[0][t] = (vec){0} + (l->bias ? l->bias[row] : 0);
        UNROLL for (int c = 1; c < C; c++) { EACH sum[c][t] = (vec){0}; }
        for (; one + C <= end; one += C) {
            UNROLL for (int c = 0; c < C; c++) {
                const real *const from = in + l->row_index[one + c] * lanes;
                const vec w = (vec){0} + l->weight[one + c];
                EACH sum[c][t] += w * read(from + t * WIDTH);
            }
        }
        for (; one < end; one++) {
            const real *const from = in + l->row_index[one] * lanes;
            const vec w = (vec){0} + l->weight[one];
            EACH sum[0][t] += w * read(from + t * WIDTH);
        }
        UNROLL for (int c = 1; c < C; c++) { EACH sum[0][t] += sum[c][t]; }
        EACH write(out + row * lanes + t * WIDTH, l->relu ? where_positive(sum[0][t], sum[0][t]) : sum[0][t]);
    }
}

/* out[column] = sum of weight * grad[row]. `seen`: the layer's input, which is 0 where a ReLU before it let nothing
 * through; or NULL. */
INLINE backward_of(const int T, const Layer *l, const real *grad, const real *seen, real *out) {
    const int64_t lanes = T * WIDTH;
    for (int64_t column = 0; column < l->columns; column++) {
        vec sum[MOST];
        EACH sum[t] = (vec){0};
        for (int64_t one = l->column_start[column]; one < l->column_start[column + 1]; one++) {
            const real *const from = grad + l->column_index[one] * lanes;
            const vec w = (vec){0} + l->weight[l->column_order[one]];
            EACH sum[t] += w * read(from + t * WIDTH);
        }
        EACH {
            const int64_t at = column * lanes + t * WIDTH;
            write(out + at, seen ? where_positive(read(seen + at), sum[t]) : sum[t]);
        }
    }
}

/* The gradient of each weight: the dot product of grad[row] and in[column]. */
INLINE weights_of(const int T, const Layer *l, const real *in, const real *grad, const int add) {
    const int64_t lanes = T * WIDTH;
    for (int64_t row = 0; row < l->rows; row++) {
        const int64_t end = l->row_start[row + 1];
        int64_t one = l->row_start[row];
        vec g[MOST], all = {0};
        EACH {
            g[t] = read(grad + row * lanes + t * WIDTH);
            all += g[t];
        }
        if (l->bias_grad) l->bias_grad[row] = total(all) + (add ? l->bias_grad[row] : 0);
        for (; one + WIDTH <= end; one += WIDTH) {
            vec sum[NUMBERS];
            UNROLL for (int64_t i = 0; i < WIDTH; i++) {
                const real *const from = in + l->row_index[one + i] * lanes;
                sum[i] = g[0] * read(from);
                UNROLL for (int t = 1; t < T; t++) sum[i] += g[t] * read(from + t * WIDTH);
            }
            vec found = totals(sum);
            if (add) found += read(l->weight_grad + one);
            write(l->weight_grad + one, found);
        }
        for (; one < end; one++) {
            const real *const from = in + l->row_index[one] * lanes;
            vec sum = g[0] * read(from);
            UNROLL for (int t = 1; t < T; t++) sum += g[t] * read(from + t * WIDTH);
            l->weight_grad[one] = total(sum) + (add ? l->weight_grad[one] : 0);
        }
    }
}

static void forward(const Layer *l, const real *in, real *out, int64_t lanes) {
    switch (lanes / WIDTH) {
    case 1: forward_of(1, 4, l, in, out); break;
    case 2: forward_of(2, 4, l, in, out); break;
#if MOST == 8
    case 4: forward_of(4, 2, l, in, out); break;
#endif
    default: forward_of(MOST, 8 / MOST, l, in, out);
    }
}

static void backward(const Layer *l, const real *grad, const real *seen, real *out, int64_t lanes) {
    switch (lanes / WIDTH) {
    case 1: backward_of(1, l, grad, seen, out); break;
    case 2: backward_of(2, l, grad, seen, out); break;
#if MOST == 8
    case 4: backward_of(4, l, grad, seen, out); break;
#endif
    default: backward_of(MOST, l, grad, seen, out);
    }
}

static void weights(const Layer *l, const real *in, const real *grad, int64_t lanes, int add) {
    switch (lanes / WIDTH) {
    case 1: weights_of(1, l, in, grad, add); break;
    case 2: weights_of(2, l, in, grad, add); break;
#if MOST == 8
    case 4: weights_of(4, l, in, grad, add); break;
#endif
    default: weights_of(MOST, l, in, grad, add);
    }
}

/* Writes the transpose of a matrix, `rows` x `columns` with rows `step` apart, to `to` with rows `to_step` apart: in
 * squares of four, whose rows are picked apart in registers. */
static void transpose(const real *from, int64_t rows, int64_t columns, int64_t step, real *to, int64_t to_step) {
    int64_t top = 0;
#ifdef PICK
    for (; top + 4 <= rows; top += 4) {
        int64_t left = 0;
        for (; left + 4 <= columns; left += 4) {
            const real *const in = from + top * step + left;
            real *const out = to + left * to_step + top;
            const quad a = *(const quad *)in, b = *(const quad *)(in + step);
            const quad c = *(const quad *)(in + 2 * step), d = *(const quad *)(in + 3 * step);
            const quad ab = PICK(a, b, 0, 4, 1, 5), more_ab = PICK(a, b, 2, 6, 3, 7);
            const quad cd = PICK(c, d, 0, 4, 1, 5), more_cd = PICK(c, d, 2, 6, 3, 7);
            *(quad *)out = PICK(ab, cd, 0, 1, 4, 5), *(quad *)(out + to_step) = PICK(ab, cd, 2, 3, 6, 7);
            *(quad *)(out + 2 * to_step) = PICK(more_ab, more_cd, 0, 1, 4, 5);
            *(quad *)(out + 3 * to_step) = PICK(more_ab, more_cd, 2, 3, 6, 7);
        }
        for (; left < columns; left++)
            for (int64_t row = top; row < top + 4; row++) to[left * to_step + row] = from[row * step + left];
    }
#endif
    for (; top < rows; top++)
        for (int64_t column = 0; column < columns; column++) to[column * to_step + top] = from[top * step + column];
}

/* (examples, features) to (features, lanes), the lanes that are left over filled with 0; and back. */
static void to_lanes(const real *x, int64_t examples, int64_t features, real *out, int64_t lanes) {
    transpose(x, examples, features, features, out, lanes);
    for (int64_t f = 0; examples < lanes && f < features; f++)
        memset(out + f * lanes + examples, 0, (size_t)(lanes - examples) * sizeof(real));
}
static void from_lanes(const real *in, int64_t lanes, int64_t features, real *x, int64_t examples) {
    transpose(in, features, examples, lanes, x, features);
}

static int64_t lanes_for(int64_t examples) {
    int64_t lanes = WIDTH;
    while (lanes < examples && lanes < TILE) lanes *= 2;
    return lanes;
}

/* Numbers of a tile's activations: the input and every layer's output. */
static int64_t tile_size(const Layer *layers, int64_t count) {
    int64_t features = layers[0].columns;
    for (int64_t i = 0; i < count; i++) features += layers[i].rows;
    return features * TILE;
}

/* Runs layers forward over one tile; `acts` receives the input and every output. */
static real *tile_forward(const Layer *layers, int64_t count, const real *x, int64_t examples, real *acts) {
    const int64_t lanes = lanes_for(examples);
    to_lanes(x, examples, layers[0].columns, acts, lanes);
    for (int64_t i = 0; i < count; i++) {
        real *const out = acts + layers[i].columns * TILE;
        forward(&layers[i], acts, out, lanes);
        acts = out;
    }
    return acts;
}

/* From the gradient of the last output, in `grad` (lanes innermost), to those of the weights and, unless NULL, of x. */
static void tile_backward(
    const Layer *layers, int64_t count, real *acts, int64_t examples, real *grad, real *other, real *gx, int add
) {
    const int64_t lanes = lanes_for(examples);
    for (int64_t i = 0; i < count; i++) acts += layers[i].columns * TILE;
    for (int64_t i = count - 1; i >= 0; i--) {
        acts -= layers[i].columns * TILE;
        weights(&layers[i], acts, grad, lanes, add);
        if (i == 0 && !gx) return;
        backward(&layers[i], grad, i > 0 && layers[i - 1].relu ? acts : NULL, other, lanes);
        real *const swap = grad;
        grad = other, other = swap;
    }
    from_lanes(grad, lanes, layers[0].columns, gx, examples);
}

/* x (n, columns of the first) to y (n, rows of the last); `acts`: what backward needs, tile_size a tile. */
void lth_features_forward(const Layer *layers, int64_t count, const real *x, int64_t n, real *acts, int64_t kept, real *y) {
    const int64_t size = tile_size(layers, count), last = layers[count - 1].rows;
    for (int64_t first = 0; first < n; first += TILE) {
        const int64_t examples = n - first < TILE ? n - first : TILE;
        const real *const out = tile_forward(layers, count, x + first * layers[0].columns, examples, acts);
        from_lanes(out, lanes_for(examples), last, y + first * last, examples);
        if (kept) acts += size; /* without gradients, one tile's memory serves all */
    }
}

/* `scratch`: two tiles of the widest features. */
void lth_features_backward(
    const Layer *layers, int64_t count, const real *gy, int64_t n, real *acts, real *gx, real *scratch, int64_t widest
) {
    const int64_t size = tile_size(layers, count);
    const Layer *const end = &layers[count - 1];
    for (int64_t first = 0; first < n; first += TILE) {
        const int64_t examples = n - first < TILE ? n - first : TILE, lanes = lanes_for(examples);
        to_lanes(gy + first * end->rows, examples, end->rows, scratch, lanes);
        tile_backward(
            layers, count, acts, examples, scratch, scratch + widest * TILE, gx ? gx + first * layers[0].columns : NULL,
            first > 0
        );
        acts += size;
    }
}

/* ------------------------------------------------------------------ a whole step: forward, loss, backward, optimizer */

enum { SGD, ADAM };

/* torch.optim's SGD and Adam(W): settings, and a parameter with its gradient and state. */
typedef struct {
    int64_t kind, nesterov, decoupled;
    double lr, decay, momentum, dampening, beta1, beta2, eps;
} Settings;
typedef struct {
    real *value, *grad, *first, *second; /* momentum, or the two moments */
    float *steps;                        /* steps so far, for Adam */
    int64_t size, fresh, settings;       /* fresh: no momentum yet; settings: which group */
} Trained;

static void sgd(const Settings *s, const Trained *p) {
    const real decay = (real)s->decay, momentum = (real)s->momentum, rate = (real)(1 - s->dampening), lr = (real)s->lr;
    real *const value = p->value, *const grad = p->grad, *const buffer = p->first;
    for (int64_t i = 0; i < p->size; i++) {
        real g = grad[i] + decay * value[i];
        if (buffer) {
            buffer[i] = p->fresh ? g : momentum * buffer[i] + rate * g;
            g = s->nesterov ? g + momentum * buffer[i] : buffer[i];
        }
        value[i] -= lr * g;
    }
}

static void adam(const Settings *s, const Trained *p) {
    const double step = *p->steps += 1;
    const real size = (real)(s->lr / (1 - pow(s->beta1, step))), root = (real)sqrt(1 - pow(s->beta2, step));
    const real shrink = s->decoupled ? (real)(1 - s->lr * s->decay) : 1, decay = s->decoupled ? 0 : (real)s->decay;
    const real beta1 = (real)(1 - s->beta1), beta2 = (real)s->beta2, rest = (real)(1 - s->beta2), eps = (real)s->eps;
    real *const value = p->value, *const first = p->first, *const second = p->second;
    const real *const grad = p->grad;
    for (int64_t i = 0; i < p->size; i++) {
        const real v = value[i] * shrink, g = grad[i] + decay * v;
        first[i] += beta1 * (g - first[i]);
        second[i] = beta2 * second[i] + rest * g * g;
#if REAL_BYTES == 4
        value[i] = v - size * (first[i] / (sqrtf(second[i]) / root + eps));
#else
        value[i] = v - size * (first[i] / (sqrt(second[i]) / root + eps));
#endif
    }
}

/* The mean cross-entropy of logits (classes, lanes), replaced by its gradient; `n` examples in all tiles together. */
static double cross_entropy(real *logits, const int64_t *targets, int64_t examples, int64_t classes, int64_t lanes, int64_t n) {
    double loss = 0;
    for (int64_t lane = 0; lane < lanes; lane++) {
        real *const own = logits + lane;
        if (lane >= examples) {
            for (int64_t k = 0; k < classes; k++) own[k * lanes] = 0;
            continue;
        }
        real most = own[0], sum = 0;
        for (int64_t k = 1; k < classes; k++) most = own[k * lanes] > most ? own[k * lanes] : most;
        loss -= own[targets[lane] * lanes] - most;
        for (int64_t k = 0; k < classes; k++) {
            own[k * lanes] = (real)(REAL_BYTES == 4 ? expf((float)(own[k * lanes] - most)) : exp(own[k * lanes] - most));
            sum += own[k * lanes];
        }
        loss += log(sum);
        const real scale = 1 / (sum * (real)n);
        for (int64_t k = 0; k < classes; k++) own[k * lanes] *= scale;
        own[targets[lane] * lanes] -= 1 / (real)n;
    }
    return loss / (double)n;
}

typedef struct {
    const Layer *layers;
    int64_t count, widest;
    real *acts, *scratch; /* one tile's activations; two tiles of the widest features */
    const Settings *settings;
    const Trained *trained;
    int64_t parameters;
} Step;

/* One step on n examples; returns the mean loss. A target outside the classes is refused before: -1 is returned. */
double lth_step(const Step *step, const real *x, const int64_t *targets, int64_t n) {
    const Layer *const layers = step->layers, *const end = &layers[step->count - 1];
    for (int64_t i = 0; i < n; i++)
        if (targets[i] < 0 || targets[i] >= end->rows) return -1;
    double loss = 0;
    for (int64_t first = 0; first < n; first += TILE) {
        const int64_t examples = n - first < TILE ? n - first : TILE, lanes = lanes_for(examples);
        real *const out = tile_forward(layers, step->count, x + first * layers[0].columns, examples, step->acts);
        loss += cross_entropy(out, targets + first, examples, end->rows, lanes, n);
        memcpy(step->scratch, out, (size_t)(end->rows * lanes) * sizeof(real));
        tile_backward(
            layers, step->count, step->acts, examples, step->scratch, step->scratch + step->widest * TILE, NULL, first > 0
        );
    }
    for (int64_t i = 0; i < step->parameters; i++) {
        const Trained *const one = &step->trained[i];
        (step->settings[one->settings].kind == SGD ? sgd : adam)(&step->settings[one->settings], one);
    }
    return loss;
}

/* ------------------------------------------------------------------ convolutions, an image at a time */

typedef struct {
    Layer layer; /* columns: phases x channels */
    int64_t channels, height, width, out_height, out_width;
    int64_t top, left, stride_y, stride_x; /* padding above and to the left; strides */
    int64_t pitch, plane; /* numbers from a row of a plane to the next, and of a plane; planes of phases lie together */
    int64_t before, gplane; /* zeros before the gradient of an output plane; numbers of such a plane */
    int64_t length; /* numbers from the first to the last output pixel, rows `pitch` apart */
    int64_t planes, gplanes; /* numbers of all padded planes, and of all gradients, with what vectors read beyond */
} Conv;

/* The first column of the image that lies in a phase. */
static int64_t first_of(const Conv *c, int64_t phase) {
    return ((phase - c->left) % c->stride_x + c->stride_x) % c->stride_x;
}

/* Copies a line; of so few numbers, a call of memcpy takes longer than they do. */
static inline void copy_line(const real *from, real *to, int64_t width) {
    int64_t i = 0;
    for (; i + WIDTH <= width; i += WIDTH) write(to + i, read(from + i));
    for (; i < width; i++) to[i] = from[i];
}

/* Copies an image into its padded planes; what is padding there is 0 and stays so. */
static void pad(const Conv *c, const real *x, real *planes) {
    const int64_t phases = c->stride_y * c->stride_x;
    for (int64_t channel = 0; channel < c->channels; channel++) {
        real *const own = planes + channel * phases * c->plane;
        for (int64_t y = 0; y < c->height; y++) {
            const real *const from = x + (channel * c->height + y) * c->width;
            const int64_t row = y + c->top;
            real *const to = own + row % c->stride_y * c->stride_x * c->plane + row / c->stride_y * c->pitch;
            if (c->stride_x == 1) {
                copy_line(from, to + c->left, c->width);
                continue;
            }
            for (int64_t phase = 0; phase < c->stride_x; phase++) {
                const int64_t first = first_of(c, phase);
                real *const in_phase = to + phase * c->plane + (first + c->left) / c->stride_x;
                for (int64_t i = 0; first + i * c->stride_x < c->width; i++) in_phase[i] = from[first + i * c->stride_x];
            }
        }
    }
}

/* The opposite: takes the image out of gradients of padded planes. */
static void unpad(const Conv *c, const real *planes, real *x) {
    const int64_t phases = c->stride_y * c->stride_x;
    for (int64_t channel = 0; channel < c->channels; channel++) {
        const real *const own = planes + channel * phases * c->plane;
        for (int64_t y = 0; y < c->height; y++) {
            real *const to = x + (channel * c->height + y) * c->width;
            const int64_t row = y + c->top;
            const real *const from = own + row % c->stride_y * c->stride_x * c->plane + row / c->stride_y * c->pitch;
            if (c->stride_x == 1) {
                copy_line(from + c->left, to, c->width);
                continue;
            }
            for (int64_t phase = 0; phase < c->stride_x; phase++) {
                const int64_t first = first_of(c, phase);
                const real *const in_phase = from + phase * c->plane + (first + c->left) / c->stride_x;
                for (int64_t i = 0; first + i * c->stride_x < c->width; i++) to[first + i * c->stride_x] = in_phase[i];
            }
        }
    }
}

/* T vectors of neighbouring pixels, for all rows of a pattern: out[row] = bias + sum of weight * in[offset]. */
INLINE strips_of(
    const int T, int64_t rows, const int64_t *start, const int32_t *index, const real *weight, const real *bias,
    const real *in, real *out, int64_t step
) {
    for (int64_t row = 0; row < rows; row++) {
        vec sum[8];
        EACH sum[t] = (vec){0} + (bias ? bias[row] : 0);
        for (int64_t one = start[row]; one < start[row + 1]; one++) {
            const real *const from = in + index[one];
            const vec w = (vec){0} + weight[one];
            EACH sum[t] += w * read(from + t * WIDTH);
        }
        EACH write(out + row * step + t * WIDTH, sum[t]);
    }
}

/* A strip of `length` numbers, in parts whose sums fit into the registers and whose inputs stay in the first cache. */
static void strips(
    int64_t rows, const int64_t *start, const int32_t *index, const real *weight, const real *bias, const real *in,
    real *out, int64_t step, int64_t length
) {
    int64_t at = 0;
    for (; at + 7 * WIDTH < length; at += 8 * WIDTH)
        strips_of(8, rows, start, index, weight, bias, in + at, out + at, step);
    for (; at + 3 * WIDTH < length; at += 4 * WIDTH)
        strips_of(4, rows, start, index, weight, bias, in + at, out + at, step);
    for (; at + WIDTH < length; at += 2 * WIDTH)
        strips_of(2, rows, start, index, weight, bias, in + at, out + at, step);
    for (; at < length; at += WIDTH) strips_of(1, rows, start, index, weight, bias, in + at, out + at, step);
}

/* What follows a convolution and runs with it: nothing, a ReLU, the largest of each 2 x 2 pixels, or both. */
enum { RELU = 1, POOL = 2 };
enum { BLOCKED = 4 }; /* where a ReLU lets nothing through; 0 to 3: which of the 2 x 2 pixels is the largest */

/* Keeps of a line what a ReLU lets through where `was` is its output or its input. */
static void relu_line(const real *was, const real *from, real *to, int64_t width) {
    int64_t i = 0;
    for (; i + WIDTH <= width; i += WIDTH) write(to + i, where_positive(read(was + i), read(from + i)));
    for (; i < width; i++) to[i] = was[i] <= 0 ? 0 : from[i];
}

/* The largest of each 2 x 2 pixels of two lines, and which it is: the first of equals, and NaN above all, as in PyTorch. */
static void pool_lines(const real *top, const real *bottom, real *to, uint8_t *which, int64_t width, int64_t relu) {
    int64_t i = 0;
#ifdef EVENS
    typedef uint8_t bytes __attribute__((vector_size(NUMBERS), aligned(1), may_alias));
    for (; i + WIDTH <= width; i += WIDTH) {
        const vec a = read(top + 2 * i), b = read(top + 2 * i + WIDTH);
        const vec c = read(bottom + 2 * i), d = read(bottom + 2 * i + WIDTH);
        const vec others[3] = {ODDS(a, b), EVENS(c, d), ODDS(c, d)};
        vec most = EVENS(a, b);
        ints found = {0};
        UNROLL for (int k = 0; k < 3; k++) {
            const ints larger = (ints)(others[k] > most) | (ints)(others[k] != others[k]);
            most = EITHER(larger, others[k], most);
            found = (larger & (k + 1)) | (~larger & found);
        }
        if (relu) {
            const ints blocked = (ints)(most <= 0);
            most = (vec)(~blocked & (ints)most);
            found = (blocked & BLOCKED) | (~blocked & found);
        }
        write(to + i, most);
        if (which) *(bytes *)(which + i) = __builtin_convertvector(found, bytes);
    }
#endif
    for (; i < width; i++) {
        const real seen[4] = {top[2 * i], top[2 * i + 1], bottom[2 * i], bottom[2 * i + 1]};
        uint8_t found = 0;
        for (uint8_t k = 1; k < 4; k++)
            if (seen[k] > seen[found] || seen[k] != seen[k]) found = k;
        const int blocked = relu && seen[found] <= 0;
        to[i] = blocked ? 0 : seen[found];
        if (which) which[i] = blocked ? BLOCKED : found;
    }
}

/* The opposite: each gradient goes to the pixel that was the largest, and 0 to the others. */
static void unpool_lines(const real *from, const uint8_t *which, real *top, real *bottom, int64_t width) {
    int64_t i = 0;
#ifdef EVENS
    typedef uint8_t bytes __attribute__((vector_size(NUMBERS), aligned(1), may_alias));
    for (; i + WIDTH <= width; i += WIDTH) {
        const vec g = read(from + i);
        const ints found = __builtin_convertvector(*(const bytes *)(which + i), ints);
        vec part[4];
        UNROLL for (int k = 0; k < 4; k++) part[k] = (vec)((ints)(found == k) & (ints)g);
        write(top + 2 * i, FIRST_TURNS(part[0], part[1])), write(top + 2 * i + WIDTH, LAST_TURNS(part[0], part[1]));
        write(bottom + 2 * i, FIRST_TURNS(part[2], part[3])), write(bottom + 2 * i + WIDTH, LAST_TURNS(part[2], part[3]));
    }
#endif
    for (; i < width; i++) {
        top[2 * i] = which[i] == 0 ? from[i] : 0, top[2 * i + 1] = which[i] == 1 ? from[i] : 0;
        bottom[2 * i] = which[i] == 2 ? from[i] : 0, bottom[2 * i + 1] = which[i] == 3 ? from[i] : 0;
    }
}

/* Images `first` to `last` of x (n, channels, height, width) to y, through what follows; `scratch` as below.
 * `which`: where pooled, what backward needs, in the shape of y; or NULL. */
void lth_planes_forward(
    const Conv *c, int64_t then, const real *x, real *y, uint8_t *which, int64_t first, int64_t last, real *scratch
) {
    const Layer *const l = &c->layer;
    const int64_t height = then & POOL ? c->out_height / 2 : c->out_height;
    const int64_t width = then & POOL ? c->out_width / 2 : c->out_width;
    real *const out = scratch + c->planes + c->gplanes;
    for (int64_t image = first; image < last; image++) {
        pad(c, x + image * c->channels * c->height * c->width, scratch);
        strips(l->rows, l->row_start, l->row_index, l->weight, l->bias, scratch, out, c->gplane, c->length);
        for (int64_t row = 0; row < l->rows; row++) {
            for (int64_t i = 0; i < height; i++) {
                const int64_t at = ((image * l->rows + row) * height + i) * width;
                const real *const from = out + row * c->gplane + (then & POOL ? 2 * i : i) * c->pitch;
                if (then & POOL) pool_lines(from, from + c->pitch, y + at, which ? which + at : NULL, width, then & RELU);
                else if (then & RELU) relu_line(from, from, y + at, width);
                else copy_line(from, y + at, width);
            }
        }
    }
}

/* Writes the gradient of an output plane to its padded plane: gy, through what follows the convolution, backwards. */
static void to_plane(const Conv *c, int64_t then, const real *y, const uint8_t *which, const real *gy, real *own) {
    if (!(then & POOL)) {
        for (int64_t i = 0; i < c->out_height; i++) {
            const int64_t at = i * c->out_width;
            if (then & RELU) relu_line(y + at, gy + at, own + i * c->pitch, c->out_width);
            else copy_line(gy + at, own + i * c->pitch, c->out_width);
        }
        return;
    }
    const int64_t height = c->out_height / 2, width = c->out_width / 2;
    for (int64_t i = 0; i < height; i++) {
        real *const top = own + 2 * i * c->pitch;
        unpool_lines(gy + i * width, which + i * width, top, top + c->pitch, width);
        if (c->out_width % 2) top[2 * width] = top[c->pitch + 2 * width] = 0; /* pooling drops what is left over */
    }
    if (c->out_height % 2) memset(own + 2 * height * c->pitch, 0, (size_t)c->out_width * sizeof(real));
}

/* Dot products of one gradient with N inputs, each in C sums side by side, which hide the latency of few. */
INLINE products_of(const int N, const int C, const real *grad, const real *const *in, int64_t length, vec *sum) {
    vec more[4];
    for (int i = 0; i < N; i++) sum[i] = (vec){0};
    if (C == 2) { UNROLL for (int i = 0; i < N; i++) more[i & 3] = (vec){0}; }
    int64_t at = 0;
    for (; at + (C - 1) * WIDTH < length; at += C * WIDTH) {
        const vec g = read(grad + at);
        UNROLL for (int i = 0; i < N; i++) sum[i] += g * read(in[i] + at);
        if (C == 2) {
            const vec h = read(grad + at + WIDTH);
            UNROLL for (int i = 0; i < N; i++) more[i & 3] += h * read(in[i] + at + WIDTH);
        }
    }
    for (; at < length; at += WIDTH) {
        const vec g = read(grad + at);
        UNROLL for (int i = 0; i < N; i++) sum[i] += g * read(in[i] + at);
    }
    if (C == 2) { UNROLL for (int i = 0; i < N; i++) sum[i] += more[i & 3]; }
}

/* The gradients of weights that lie in one row: dot products of one gradient with many inputs. */
static void row_weights(const Conv *c, int64_t row, const real *grad, const real *planes, real *result) {
    const Layer *const l = &c->layer;
    const int64_t end = l->row_start[row + 1];
    const real *in[NUMBERS];
    vec sum[NUMBERS];
    int64_t one = l->row_start[row];
    for (; one + WIDTH / 2 < end; one += WIDTH) {
        const int64_t left = end - one < WIDTH ? end - one : WIDTH; /* of too few, the last one fills up */
        UNROLL for (int i = 0; i < WIDTH; i++) in[i] = planes + l->row_index[one + (i < left ? i : left - 1)];
        products_of(WIDTH, WIDTH <= 4 ? 2 : 1, grad, in, c->length, sum);
        const vec found = totals(sum);
        if (left == WIDTH) write(result + one, read(result + one) + found);
        else for (int i = 0; i < left; i++) result[one + i] += found[i];
    }
    for (; one + 2 <= end; one += 2) {
        in[0] = planes + l->row_index[one], in[1] = planes + l->row_index[one + 1];
        products_of(2, 2, grad, in, c->length, sum);
        result[one] += total(sum[0]), result[one + 1] += total(sum[1]);
    }
    for (; one < end; one++) {
        in[0] = planes + l->row_index[one];
        products_of(1, 2, grad, in, c->length, sum);
        result[one] += total(sum[0]);
    }
}

/* Adds the gradients of images `first` to `last` to weight_grad and bias_grad, and writes gx unless it is NULL.
 * `y` and `which`: forward's. `by_column`: the weights in the order of the columns, for gx. `scratch`: padded planes and
 * padded gradients, both 0 where padding is, then gradients of planes. */
void lth_planes_backward(
    const Conv *c, int64_t then, const real *x, const real *y, const uint8_t *which, const real *gy, real *gx,
    const real *by_column, int64_t first, int64_t last, real *scratch, real *weight_grad, real *bias_grad
) {
    const Layer *const l = &c->layer;
    const int64_t pixels = then & POOL ? c->out_height / 2 * (c->out_width / 2) : c->out_height * c->out_width;
    real *const grads = scratch + c->planes, *const back = grads + c->gplanes;
    for (int64_t image = first; image < last; image++) {
        pad(c, x + image * c->channels * c->height * c->width, scratch);
        for (int64_t row = 0; row < l->rows; row++) {
            real *const own = grads + row * c->gplane + c->before;
            const int64_t at = (image * l->rows + row) * pixels;
            to_plane(c, then, y ? y + at : NULL, which ? which + at : NULL, gy + at, own);
            if (bias_grad) {
                vec sum = {0};
                for (int64_t at = 0; at < c->length; at += WIDTH) sum += read(own + at);
                bias_grad[row] += total(sum);
            }
            row_weights(c, row, own, scratch, weight_grad);
        }
        if (gx) {
            strips(l->columns, l->column_start, l->column_index, by_column, NULL, grads, back, c->plane, c->plane);
            unpad(c, back, gx + image * c->channels * c->height * c->width);
        }
    }
}

/* ------------------------------------------------------------------ survivors in their dense tensor, and back */

void lth_scatter(const real *values, const int64_t *index, int64_t count, real *dense) {
    for (int64_t i = 0; i < count; i++) dense[index[i]] = values[i];
}
void lth_gather(const real *dense, const int64_t *index, int64_t count, real *values) {
    for (int64_t i = 0; i < count; i++) values[i] = dense[index[i]];
}
