/* Operations on each element or each row: norms, rotation, activations, dropout, loss. */
#include "nonlinear.h"
#include "norm.h"
#include "operations.h"

enum { LONGEST_ROW = 4096 }; /* elements of a row whose gradient is computed */
enum { CHUNK = 4096 }; /* elements per work item of a thread, and per row of the dropout keys */

/* ---- norms ---------------------------------------------------------------------------------------------- */

/* `norm_row_back` for C elements; n is C, or WHOLE */
INLINE void norm_back_upto(const void *x, const void *weight, const void *dy, void *dx, const float *stats,
                           const void *add, float *dweight, float *dbias, int64_t C, int64_t n, int centered,
                           int bf16) {
  float normalized[LONGEST_ROW], dnormalized[LONGEST_ROW];
  float mean = stats[0], rstd = stats[1];
  vec along[2] = {{0}, {0}}, common[2] = {{0}, {0}};
  for (int64_t start = 0; start < C; start += 2 * LANES)
    for (int which = 0; which < 2; which++) { /* two sums of each, to hide latency */
      int64_t i = start + which * LANES;
      if (n != WHOLE && i >= n) break;
      vec t = (load_upto(x, i, n, bf16) - mean) * rstd;
      vec g = load_upto(dy, i, n, bf16);
      if (dweight) store(dweight, i, load(dweight, i, 0) + g * t, 0);
      if (dbias) store(dbias, i, load(dbias, i, 0) + g, 0);
      if (weight) g *= load_upto(weight, i, n, bf16);
      along[which] += g * t; /* g is 0 from C on */
      common[which] += g;
      store(normalized, i, t, 0), store(dnormalized, i, g, 0);
    }
  float a = sum_of(along[0] + along[1]) / C, b = centered ? sum_of(common[0] + common[1]) / C : 0.0f;
  for (int64_t i = 0; i < C; i += LANES) {
    vec out = rstd * (load(dnormalized, i, 0) - b - load(normalized, i, 0) * a);
    if (add) out = rounded(out) + load_upto(add, i, n, bf16);
    store_upto(dx, i, n, out, bf16);
  }
}

INLINE void norm_row_back(const void *x, const void *weight, const void *dy, void *dx, const float *stats,
                          const void *add, float *dweight, float *dbias, int64_t C, int centered, int bf16) {
  if (C % (2 * LANES) == 0)
    norm_back_upto(x, weight, dy, dx, stats, add, dweight, dbias, C, WHOLE, centered, bf16);
  else
    norm_back_upto(x, weight, dy, dx, stats, add, dweight, dbias, C, C, centered, bf16);
}

INLINE int64_t offset(const int64_t strides[3], const Rows *n, int64_t row) {
  if (n->outer == 1 && n->middle == 1) return row * strides[2];
  return row / (n->middle * n->inner) * strides[0] + row / n->inner % n->middle * strides[1] +
         row % n->inner * strides[2];
}

/* Rows of x are (outer, middle, inner) with strides; y is contiguous. stats (rows, 2): mean and rstd of each row. */
EXPORT void norm_forward(const void *x, const int64_t *strides, const Rows *n, const void *weight,
                         const void *bias, void *y, float *stats, float eps, int centered, int bf16,
                         int threads) {
  int64_t rows = n->outer * n->middle * n->inner, C = n->C;
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * C > CHUNK)
  for (int64_t row = 0; row < rows; row++) {
    const void *from = at(x, offset(strides, n, row), bf16);
    void *to = at_(y, row * C, bf16);
    if (bf16)
      norm_row(from, weight, bias, to, stats + 2 * row, C, eps, centered, 1);
    else
      norm_row(from, weight, bias, to, stats + 2 * row, C, eps, centered, 0);
  }
}

/* dx may be dy; `add`, with the layout of dx, is added to it, unless it is NULL. dweight and dbias (C) are in the
 * dtype of x; NULL where the norm has no such parameter. Returns 0, or 1 if memory cannot be allocated. */
EXPORT int norm_backward(const void *x, const int64_t *strides, const void *dy, const int64_t *dy_strides,
                         const Rows *n, const void *weight, const float *stats, const void *add, void *dx,
                         const int64_t *dx_strides, void *dweight, void *dbias, int centered, int bf16,
                         int threads) {
  int64_t rows = n->outer * n->middle * n->inner, C = n->C, padded = (C + LANES - 1) / LANES * LANES;
  float *sums = dweight ? calloc((size_t)(threads * 2 * padded), sizeof(float)) : NULL; /* one per thread */
  if (dweight && !sums) return 1;
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * C > CHUNK)
  for (int64_t row = 0; row < rows; row++) {
    const void *from = at(x, offset(strides, n, row), bf16);
    const void *gradient = at(dy, offset(dy_strides, n, row), bf16);
    float *to_weight = dweight ? sums + 2 * padded * THREAD : NULL;
    float *to_bias = dbias ? to_weight + padded : NULL;
    int64_t place = offset(dx_strides, n, row);
    const void *more = add ? at(add, place, bf16) : NULL;
    void *to = at_(dx, place, bf16);
    if (bf16)
      norm_row_back(from, weight, gradient, to, stats + 2 * row, more, to_weight, to_bias, C, centered, 1);
    else
      norm_row_back(from, weight, gradient, to, stats + 2 * row, more, to_weight, to_bias, C, centered, 0);
  }
  for (int64_t i = 0; dweight && i < C; i += LANES) {
    vec dweights = {0}, dbiases = {0};
    for (int64_t thread = 0; thread < threads; thread++) {
      dweights += load(sums + thread * 2 * padded, i, 0);
      dbiases += load(sums + thread * 2 * padded + padded, i, 0);
    }
    store_upto(dweight, i, C, dweights, bf16);
    if (dbias) store_upto(dbias, i, C, dbiases, bf16);
  }
  free(sums);
  return 0;
}

/* ---- embedding ------------------------------------------------------------------------------------------ */

enum { COLUMNS = 64 }; /* of a work item of a thread */

/* Adds row r of dy (rows, C), bf16, to row tokens[r] of sums (V, C), fp32, in the order of the rows. */
EXPORT void embedding_backward(const int64_t *tokens, const void *dy, float *sums, int64_t rows, int64_t C,
                               int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * C > CHUNK)
  for (int64_t first = 0; first < C; first += COLUMNS) {
    int64_t last = MIN(first + COLUMNS, C);
    for (int64_t row = 0; row < rows; row++) {
      const void *from = at(dy, row * C, 1);
      float *to = sums + tokens[row] * C;
      for (int64_t i = first; i < last; i += LANES)
        store_upto(to, i, last, load_upto(to, i, last, 0) + load_upto(from, i, last, 1), 0);
    }
  }
}

/* ---- rotation (RoPE) ------------------------------------------------------------------------------------ */

/* y = x (cos, cos) + (second half, first half of x) (-sin, sin): x and y (outer, middle, inner, D) with strides,
 * and may be the same; tables (inner, D) fp32. `inverse` rotates in the other direction: the gradient. */
EXPORT void rotate(const void *x, const int64_t *strides, const Rows *n, const float *cosine,
                   const float *sine, void *y, const int64_t *y_strides, int inverse, int bf16, int threads) {
  int64_t rows = n->outer * n->middle * n->inner, D = n->C, half = D / 2;
  float sign = inverse ? -1.0f : 1.0f;
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * D > CHUNK)
  for (int64_t row = 0; row < rows; row++) {
    const void *from = at(x, offset(strides, n, row), bf16);
    const float *c = cosine + row % n->inner * D, *s = sine + row % n->inner * D + half;
    void *to = at_(y, offset(y_strides, n, row), bf16);
    for (int64_t i = 0; i < half; i += LANES) {
      vec cos_ = load_upto(c, i, half, 0), sin_ = sign * load_upto(s, i, half, 0);
      vec a, b;
      if (bf16) {
        a = load_upto(from, i, half, 1), b = load_upto(at(from, half, 1), i, half, 1);
        store_upto(to, i, half, fused(a, cos_, -(b * sin_)), 1);
        store_upto(at_(to, half, 1), i, half, fused(b, cos_, a * sin_), 1);
      } else {
        a = load_upto(from, i, half, 0), b = load_upto(at(from, half, 0), i, half, 0);
        store_upto(to, i, half, fused(a, cos_, -(b * sin_)), 0);
        store_upto(at_(to, half, 0), i, half, fused(b, cos_, a * sin_), 0);
      }
    }
  }
}

/* ---- activations ---------------------------------------------------------------------------------------- */

/* Elements from … to - 1; n is `to`, or WHOLE */
INLINE void activate_upto(int kind, const void *h, const void *dy, void *out, int64_t from, int64_t to, int64_t n,
                          int bf16) {
  if (dy)
    for (int64_t i = from; i < to; i += LANES) {
      vec x = load_upto(h, i, n, bf16);
      store_upto(out, i, n, load_upto(dy, i, n, bf16) * derivative(kind, x, bf16), bf16);
    }
  else
    for (int64_t i = from; i < to; i += LANES)
      store_upto(out, i, n, activated(kind, load_upto(h, i, n, bf16), bf16), bf16);
}

INLINE void activate(int kind, const void *h, const void *dy, void *out, int64_t from, int64_t to, int bf16) {
  if (to == from + CHUNK)
    activate_upto(kind, h, dy, out, from, to, WHOLE, bf16);
  else
    activate_upto(kind, h, dy, out, from, to, to, bf16);
}

/* out = f(h), or dy f'(h) if dy is not NULL; n elements */
EXPORT void activation(int kind, const void *h, const void *dy, void *out, int64_t n, int bf16, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (n > CHUNK)
  for (int64_t from = 0; from < n; from += CHUNK) {
    int64_t to = MIN(from + CHUNK, n);
#define KIND(k)                                       \
  case k:                                             \
    if (bf16)                                         \
      activate(k, h, dy, out, from, to, 1);           \
    else                                              \
      activate(k, h, dy, out, from, to, 0);           \
    break;
    switch (kind) { KIND(GELU) KIND(GELU_TANH) KIND(RELU2) }
#undef KIND
  }
}

/* `gate_row` for F elements; n is F, or WHOLE */
INLINE void gate_upto(const void *h, const void *dy, void *out, int64_t F, int64_t n, int bf16) {
  const void *up = at(h, F, bf16);
  for (int64_t i = 0; i < F; i += LANES) {
    vec g = load_upto(h, i, n, bf16), u = load_upto(up, i, n, bf16), s = logistic(g);
    if (!dy) {
      store_upto(out, i, n, g * s * u, bf16);
    } else {
      vec d = load_upto(dy, i, n, bf16);
      store_upto(out, i, n, d * u * s * (1.0f + g * (1.0f - s)), bf16);
      store_upto(at_(out, F, bf16), i, n, d * g * s, bf16);
    }
  }
}

INLINE void gate_row(const void *h, const void *dy, void *out, int64_t F, int bf16) {
  if (F % LANES == 0)
    gate_upto(h, dy, out, F, WHOLE, bf16);
  else
    gate_upto(h, dy, out, F, F, bf16);
}

/* swiglu: h (rows, 2 F) is gate and value; out (rows, F) = silu(gate) value, or with dy (rows, F) the gradient
 * (rows, 2 F) */
EXPORT void gated(const void *h, const void *dy, void *out, int64_t rows, int64_t F, int bf16, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * F > CHUNK)
  for (int64_t row = 0; row < rows; row++) {
    const void *from = at(h, row * 2 * F, bf16), *gradient = dy ? at(dy, row * F, bf16) : NULL;
    void *to = at_(out, row * (dy ? 2 * F : F), bf16);
    if (bf16)
      gate_row(from, gradient, to, F, 1);
    else
      gate_row(from, gradient, to, F, 0);
  }
}

/* ---- dropout -------------------------------------------------------------------------------------------- */

INLINE void drop(const void *x, const void *add, void *y, int64_t from, int64_t to, const uint32_t keys[2],
                 uint32_t threshold, float scale, int bf16) {
  for (int64_t i = from; i < to; i += LANES) {
    vec out = load_upto(x, i, to, bf16) * dropout_factor(keys, (uint32_t)(i - from), threshold, scale);
    if (add) out += load_upto(add, i, to, bf16);
    store_upto(y, i, to, out, bf16);
  }
}

/* y = x with each of its n elements 0 with probability p, else scaled by 1 / (1 - p); plus `add`, unless it is NULL.
 * Without `add` it is its own gradient. */
EXPORT void dropout(const void *x, const void *add, void *y, int64_t n, float p, uint64_t seed, int bf16,
                    int threads) {
  uint32_t threshold = dropout_threshold(p);
#pragma omp parallel for schedule(static) num_threads(threads) if (n > CHUNK)
  for (int64_t from = 0; from < n; from += CHUNK) {
    uint32_t keys[2];
    row_keys(seed, (uint64_t)(from / CHUNK), keys);
    if (bf16)
      drop(x, add, y, from, MIN(from + CHUNK, n), keys, threshold, 1 / (1 - p), 1);
    else
      drop(x, add, y, from, MIN(from + CHUNK, n), keys, threshold, 1 / (1 - p), 0);
  }
}

/* ---- loss ----------------------------------------------------------------------------------------------- */

INLINE float loss_row(const void *x, int64_t target, void *dx, int64_t V, float weight, int bf16) {
  vec top = splat(-INFINITY), total = {0};
  for (int64_t i = 0; i < V; i += LANES) {
    vec here = load_upto(x, i, V, bf16);
    if (i + LANES > V) here = choose(lanes_below(V - i), here, splat(-INFINITY));
    top = larger(here, top);
  }
  float most = largest_of(top);
  int keep = dx && !bf16; /* in bf16 it would be rounded twice */
  for (int64_t i = 0; i < V; i += LANES) {
    vec e = vexp(load_upto(x, i, V, bf16) - most);
    if (i + LANES > V) e = choose(lanes_below(V - i), e, splat(0));
    total += e;
    if (keep) store_upto(dx, i, V, e, 0);
  }
  float sum = sum_of(total);
  if (dx) {
    float scale = weight / sum;
    for (int64_t i = 0; i < V; i += LANES) {
      vec e = keep ? load_upto(dx, i, V, 0) : vexp(load_upto(x, i, V, bf16) - most);
      store_upto(dx, i, V, e * scale, bf16);
    }
    float p = expf(get(x, target, bf16) - most) * scale;
    put(dx, target, p - weight, bf16);
  }
  return most + logf(sum) - get(x, target, bf16);
}

/* Loss in nats of each row: logits (rows, V), targets (rows,). Stores its gradient times `weight` in dlogits, unless
 * that is NULL. Returns the first row whose target is not in the vocabulary, or -1. */
EXPORT int64_t cross_entropy(const void *logits, const int64_t *targets, float *losses, void *dlogits,
                             int64_t rows, int64_t V, float weight, int bf16, int threads) {
  for (int64_t row = 0; row < rows; row++)
    if (targets[row] < 0 || targets[row] >= V) return row;
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * V > CHUNK)
  for (int64_t row = 0; row < rows; row++) {
    const void *from = at(logits, row * V, bf16);
    void *to = dlogits ? at_(dlogits, row * V, bf16) : NULL;
    losses[row] = bf16 ? loss_row(from, targets[row], to, V, weight, 1)
                       : loss_row(from, targets[row], to, V, weight, 0);
  }
  return -1;
}
